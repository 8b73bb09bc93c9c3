"""How soon runs reach a target: in steps, tokens and seconds, with the runs that never did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muonlab.lab import stats
from muonlab.lab.runs.store import RunRecord
from muonlab.train.run_folder import ENDED

CLOCKS = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}  # name of the figure -> key of a row


@dataclass(frozen=True)
class ToTarget:
    """Of one arm and one target. A clock is None where some run does not have it (imported logs may lack tokens or seconds)."""

    target: float
    ended: int
    reached: int
    steps: stats.TimeSummary | None
    tokens: stats.TimeSummary | None
    seconds: stats.TimeSummary | None
    ratio: stats.Ratio | None  # of steps: the arm's to the baseline's

    def median(self, clock: str) -> float | None:
        """None where the runs do not tell it: beside their number of steps, seconds say how fast a machine was. Slow runs that miss
        the target are followed for longer, and would give a median of seconds where there is none of steps."""
        own: stats.TimeSummary | None = getattr(self, clock)
        if own is None or (self.steps is not None and self.steps.median is None):
            return None
        return own.median


def targets_of(plan: dict[str, Any]) -> list[float]:
    """All targets of a plan; those of an older format have one or none."""
    return plan.get("targets") or ([] if plan["target"] is None else [plan["target"]])


def to_target(
    target: float, runs: list[RunRecord], baseline: list[RunRecord] | None, latest: dict[str, float], *, alpha: float
) -> ToTarget:
    """The runs that ended, on each clock. latest: of each clock, the last moment of any run of the experiment.

    baseline: the runs to form the ratio with, None for none.
    """
    ended = [run for run in runs if run.status in ENDED]
    times = {clock: _times(target, ended, clock, latest) for clock in CLOCKS}
    summaries = {clock: stats.time_to_target(t, alpha=alpha) if t is not None else None for clock, t in times.items()}
    ratio = None
    if baseline is not None:
        others = _times(target, [run for run in baseline if run.status in ENDED], "steps", latest)
        own = times["steps"]
        if own is not None and others is not None and own.reached and others.reached:
            ratio = stats.steps_ratio(own, others, alpha=alpha)
    reached = sum(run.first_at(target) is not None for run in ended)
    return ToTarget(target, len(ended), reached, ratio=ratio, **summaries)


def latest_of(runs: list[RunRecord]) -> dict[str, float]:
    """The last moment of any run on each clock."""
    return {
        clock: max((row[key] for run in runs for row in run.rows[-1:] if row.get(key) is not None), default=0.0)
        for clock, key in CLOCKS.items()
    }


def _times(target: float, runs: list[RunRecord], clock: str, latest: dict[str, float]) -> stats.Times | None:
    """When each run reached the target. A run that ended before is censored at its end; one that diverged will never get there: it
    is censored at the last moment of all runs, since its early end is no mere lack of patience."""
    key = CLOCKS[clock]
    values: list[float | None] = []
    ends: list[float] = []
    for run in runs:
        hit, last = run.first_at(target), (run.rows[-1] if run.rows else {})
        at = hit.get(key) if hit is not None else latest[clock] if run.status == "diverged" else last.get(key)
        if at is None:
            return None
        values.append(None if hit is None else at)
        ends += [at] if hit is None else []
    return stats.Times(tuple(values), tuple(ends)) if values else None
