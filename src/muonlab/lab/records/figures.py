"""The figures of a record, computed from its runs alone; certify writes them, verify computes them again."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from muonlab.lab import stats
from muonlab.lab.records.rules import LEVEL, exact, exact_sum, half_up, judge, mean_of, pairwise
from muonlab.lab.runs.store import RunRecord


def run_rows(runs: list[RunRecord], steps: int | None) -> list[dict[str, Any]]:
    """One row a run: what counts of it, or why it is a failure. steps: the declared step, whose evaluation counts; else the last.

    A diverged run is a failure wherever it diverged. An unfinished one counts where it got to the declared step.
    """
    rows = []
    for run in runs:
        counted, why = _counted(run, steps)
        row = {"run": run.folder, "seed": run.seed, "status": run.status, "step": None, "val_loss": None, "seconds": None}
        rows.append(row | (counted or {}) | {"failure": why})
    return rows


def _counted(run: RunRecord, steps: int | None) -> tuple[dict[str, Any] | None, str | None]:
    if run.status == "diverged":
        return None, "diverged"
    if steps is None and run.status != "finished":
        return None, run.status
    found = [row for row in run.evaluations if steps is None or row["step"] == steps]
    if not found:
        return None, f"no evaluation at step {steps}" if run.status == "finished" else f"{run.status} before step {steps}"
    return {"step": found[-1]["step"], "val_loss": found[-1]["val_loss"], "seconds": found[-1].get("seconds")}, None


def figures(
    rule: str, target: float, rows: list[dict[str, Any]], copies: list[str], against: dict[str, Any] | None
) -> dict[str, Any]:
    """All figures and the judgement. Nothing is met with a failure among the runs: a run without a value cannot be averaged, and
    leaving it out would make a record of the lucky ones."""
    values = [row["val_loss"] for row in rows if row["failure"] is None]
    failures = [row for row in rows if row["failure"] is not None]
    steps = {row["step"] for row in rows if row["failure"] is None}
    missing = _unfit(values, failures, copies)
    summary = _summary(values)
    found = {
        "runs": len(rows),
        "n": len(values),
        "failures": len(failures),
        "steps": steps.pop() if len(steps) == 1 else None,
        "val_loss": summary,
        "seconds": _summary([row["seconds"] for row in rows if row["failure"] is None and row["seconds"] is not None]),
        "p": None,
        "statistic": None,
    }
    if _judgeable(values):
        p = judge("speedrun", values, target)
        judged = p if rule == "speedrun" else judge(rule, values, target)
        found["p"] = _p(p.statistic)
        found["statistic"] = _p(p.statistic) if rule == "speedrun" else float(half_up(judged.statistic, 6))
        if not judged.met:
            missing.append(_not_met(rule, target, summary, judged.statistic, judged.more_runs))
    found["against"] = _against(found, values, against, missing)
    return found | {"met": not missing, "missing": missing}


def _unfit(values: list[float], failures: list[dict[str, Any]], copies: list[str]) -> list[str]:
    """What stands in the way of any rule."""
    missing = []
    if failures:
        listed = "; ".join(f"{row['run']}: {row['failure']}" for row in failures[:5]) + ("; …" if len(failures) > 5 else "")
        missing.append(
            f"{len(failures)} of the runs failed ({listed}): a failure counts, and no rule is met with one among the runs"
        )
    if len(values) < 2:
        missing.append(f"at least two runs with a value are needed, there are {len(values)}")
    elif not _judgeable(values):
        missing.append("all losses are equal: one run counted several times is no evidence")
    if copies:
        missing.append(f"these runs have the same losses at every evaluation, as copies of one run have: {', '.join(copies)}")
    return missing


def _judgeable(values: Sequence[float]) -> bool:
    return len(values) > 1 and len({*values}) > 1


def _not_met(rule: str, target: float, summary: dict[str, Any] | None, statistic: float, more: int | None) -> str:
    mean = summary["mean"] if summary else math.nan
    said = f"p = {_p(statistic)}, needed < {LEVEL}" if rule == "speedrun" else f"{half_up(statistic, 6)}, needed 0.004"
    if more is None:
        remedy = f"the mean {mean} is not below {target}: more runs like these will not help"
        remedy = remedy if mean >= target else f"the mean {mean} is too near to {target}: more runs like these will hardly help"
    else:
        remedy = (
            f"at this mean and scatter {more} more {'run' if more == 1 else 'runs'} would meet it (declare the number beforehand)"
        )
    return f"the rule is not met: {said}; {remedy}"


def _against(
    found: dict[str, Any], values: list[float], against: dict[str, Any] | None, missing: list[str]
) -> dict[str, Any] | None:
    """The pairwise comparison with an earlier record (the content of its record.json)."""
    if against is None:
        return None
    earlier = against["figures"]
    base = {"name": against["name"], "n": earlier["n"], "steps": earlier["steps"], "mean": earlier["val_loss"]["mean"]}
    if not values or found["steps"] is None:
        missing.append("the comparison with the earlier record needs runs of one number of steps")
        return base | {"statistic": None, "met": False}
    before = Fraction(exact(earlier["val_loss"]["sum"])) / earlier["n"]
    judged = pairwise(mean_of(values), found["steps"], len(values), before, earlier["steps"], earlier["n"])
    if not judged.met:
        remedy = "more runs will not help" if judged.more_runs is None else f"{judged.more_runs} more runs at this mean would"
        missing.append(f"{against['name']} is not beaten: {half_up(judged.statistic, 6)}, needed 0.004; {remedy}")
    return base | {"statistic": float(half_up(judged.statistic, 6)), "met": judged.met}


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    """Six decimals, rounded half up; the mean also to four, as such results are published, and the exact sum for what builds on
    it. The interval is Student's at 99 %."""
    if not values:
        return None
    found = stats.summarize(list(values), LEVEL)
    mean = mean_of(values)

    def rounded(value: float) -> float | None:
        return None if math.isnan(value) else float(half_up(value, 6))

    return {
        "n": len(values),
        "mean": float(half_up(mean, 6)),
        "mean_4": str(half_up(mean, 4)),
        "sum": str(exact_sum(values)),
        "std": rounded(found.std),
        "median": float(statistics.median(map(exact, values))),
        "min": min(values),
        "max": max(values),
        "low": rounded(found.low),
        "high": rounded(found.high),
    }


def _p(p: float) -> float:
    """Four digits: the same on every machine."""
    return float(f"{p:.4g}")


def copies_among(runs: list[RunRecord]) -> list[str]:
    """Runs whose evaluations are all equal to another's, three or more of them: chance does not do that."""
    curves: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        curve = tuple((row["step"], row["val_loss"]) for row in run.evaluations)
        if len(curve) > 2:
            curves.setdefault(curve, []).append(run.folder)
    return [name for names in curves.values() if len(names) > 1 for name in names]
