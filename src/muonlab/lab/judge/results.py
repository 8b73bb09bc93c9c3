"""A sweep's runs as the figures of its report: one row an arm, one a run. Plain data, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from muonlab.lab import stats
from muonlab.lab.judge.effects import Effects, Factor, factors_of, main_effects
from muonlab.lab.judge.standings import standings
from muonlab.lab.judge.targets import ToTarget, latest_of, targets_of, to_target
from muonlab.lab.runs.store import RunRecord, Sweep
from muonlab.train.run_folder import ENDED
from muonlab.train.settings import flat

METRICS = {
    "val_loss": "final validation loss",
    "best_val_loss": "lowest validation loss",
    "train_loss": "last training loss",
    "seconds": "training time",
}


@dataclass(frozen=True)
class Measured:
    """A further metric of an arm: shown, and judged by nobody."""

    metric: str
    summary: stats.Summary | None
    comparison: stats.Comparison | None


@dataclass(frozen=True)
class ArmResult:
    """One cell of the experiment, over its seeds."""

    name: str
    arm: str
    swept: dict[str, Any]
    changes: dict[str, Any]  # what differs from the baseline's recipe (dotted key -> value)
    planned: int
    finished: int
    diverged: int
    values: list[float]  # the metric of the finished runs
    summary: stats.Summary | None  # of these
    steps_to_target: float | None  # median over the runs (Kaplan-Meier); of the first target
    tokens_to_target: float | None
    seconds_to_target: float | None
    reached: int
    seconds: float | None  # median training seconds of the finished runs
    comparison: stats.Comparison | None = None
    percent: float | None = None  # the difference, of the baseline's mean
    verdict: stats.Verdict | None = None
    pairing: stats.Pairing | None = None  # where runs share seeds with the baseline's
    targets: tuple[ToTarget, ...] = ()
    further: tuple[Measured, ...] = ()
    open: bool = False  # of a race that has not decided this arm and has seeds left


@dataclass(frozen=True)
class Results:
    plan: dict[str, Any]
    arms: list[ArmResult]
    runs: list[RunRecord]
    factors: list[Factor]  # what the arms differ in, if that makes up a factorial design or a sweep of one value
    effects: Effects | None = None
    audit: tuple[str, ...] = ()  # expected against found runs, in sentences

    @property
    def baseline(self) -> ArmResult | None:
        return next((arm for arm in self.arms if arm.name == self.plan["baseline"]), None)

    @property
    def swept_key(self) -> str | None:
        """The one key that a grid sweeps over, or the one number that tells all arms apart."""
        keys = {key for arm in self.arms for key in arm.swept}
        if keys:
            return keys.pop() if len(keys) == 1 else None
        numeric = [f for f in self.factors if f.numeric]
        return (
            numeric[0].name if len(self.factors) == len(numeric) == 1 and len(self.arms) > 2 and len(numeric[0].keys) == 1 else None
        )

    @property
    def is_grid(self) -> bool:
        return any(arm.swept for arm in self.arms)

    def best(self) -> list[ArmResult]:
        """The best cell of each arm, by the mean; cells with diverged runs are out."""
        found: dict[str, ArmResult] = {}
        for arm in self.arms:
            if arm.summary is None or arm.diverged or arm.finished < arm.planned:
                continue
            before = found.get(arm.arm)
            if before is None or before.summary is None or arm.summary.mean < before.summary.mean:
                found[arm.arm] = arm
        return list(found.values())

    def edges(self, arm: ArmResult) -> list[str]:
        """The keys of which an arm's value is the smallest or largest that was tried: the optimum may lie beyond."""
        found = []
        for key, best in arm.swept.items():
            values = [other.swept.get(key) for other in self.arms if other.arm == arm.arm]
            numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            if len({*numbers}) > 1 and len(numbers) == len(values) and best in (min(numbers), max(numbers)):
                found.append(key)
        return found

    def finals(self, metric: str | None = None) -> list[dict[str, Any]]:
        """The metric of every finished run that has it."""
        arms = {arm.name: arm for arm in self.arms}
        found = []
        for run in self.runs:
            value = value_of(run, metric or self.plan["metric"])
            if run.status == "finished" and value is not None:
                arm = arms[run.cell]
                found.append({"arm": run.cell, "family": arm.arm, "seed": run.seed, "value": value, **self.point(arm)})
        return found

    def point(self, arm: ArmResult) -> dict[str, Any]:
        """Where an arm stands in its grid, or in the sweep or design that the named arms make up."""
        return arm.swept or {factor.name: factor.levels[arm.name] for factor in self.factors}


def value_of(run: RunRecord, metric: str) -> float | None:
    """A run's metric, None where it has none or it is not finite."""
    value = run.value(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def compute(sweep: Sweep, audit: Sequence[str] = ()) -> Results:
    """All figures of a sweep, from what is in its folder now. audit: its sentences, for the report to open with."""
    plan = sweep.plan
    recipes = {cell["name"]: flat(cell["recipe"]) for cell in plan["cells"]}
    reference = recipes.get(plan["baseline"] or plan["cells"][0]["name"], {}) if plan["cells"] else {}
    latest = latest_of(sweep.runs)
    arms = [_arm(sweep, cell, recipes[cell["name"]], reference, latest) for cell in plan["cells"]]
    factors = factors_of(plan["cells"], recipes)
    values = {arm.name: arm.values for arm in arms}
    seeds = {tuple(run.seed for run in sweep.of(arm.name) if value_of(run, plan["metric"]) is not None) for arm in arms}
    level = {"alpha": plan["alpha"], "baseline": plan["baseline"], "shared_seeds": len(seeds) == 1}
    effects = main_effects(factors, values, **level) if len(factors) > 1 else None
    return Results(plan, _judged(sweep, arms), sweep.runs, factors, effects, tuple(audit))


def _arm(
    sweep: Sweep, cell: dict[str, Any], recipe: dict[str, Any], reference: dict[str, Any], latest: dict[str, float]
) -> ArmResult:
    plan, runs = sweep.plan, sweep.of(cell["name"])
    finished = [run for run in runs if run.status == "finished"]
    ended = [run for run in runs if run.status in ENDED]
    values = _values(finished, plan["metric"])
    seconds = _values(finished, "seconds")
    baseline = sweep.of(plan["baseline"]) if plan["baseline"] not in (None, cell["name"]) else None
    level = {"alpha": plan["alpha"]}
    targets = tuple(to_target(target, runs, baseline, latest, **level) for target in targets_of(plan))
    first = targets[0] if targets else None
    return ArmResult(
        name=cell["name"],
        arm=cell["arm"],
        swept=cell["swept"],
        changes={key: value for key, value in sorted(recipe.items()) if key not in reference or value != reference[key]},
        planned=len(runs),
        finished=len(finished),
        diverged=len(ended) - len(finished),
        values=values,
        summary=stats.summarize(values, plan["alpha"]) if values else None,
        steps_to_target=first.median("steps") if first else None,
        tokens_to_target=first.median("tokens") if first else None,
        seconds_to_target=first.median("seconds") if first else None,
        reached=first.reached if first else 0,
        seconds=statistics.median(seconds) if seconds else None,
        targets=targets,
        further=tuple(_measured(finished, baseline, metric, plan["alpha"]) for metric in plan.get("metrics", [])),
    )


def _values(runs: list[RunRecord], metric: str) -> list[float]:
    return [value for run in runs if (value := value_of(run, metric)) is not None]


def _measured(finished: list[RunRecord], baseline: list[RunRecord] | None, metric: str, alpha: float) -> Measured:
    values = _values(finished, metric)
    others = _values([run for run in baseline or [] if run.status == "finished"], metric)
    comparison = stats.compare(values, others, alpha=alpha) if values and others else None
    return Measured(metric, stats.summarize(values, alpha) if values else None, comparison)


def _judged(sweep: Sweep, arms: list[ArmResult]) -> list[ArmResult]:
    """The arms, each but the baseline with its comparison and verdict. Both kinds of claims go through Holm's adjustment. Runs
    that share a seed are pairs where the measured correlation makes that worth it, else Welch's comparison stands.

    Of a race: what its own test says. It stopped when it liked what it saw, so no test for a fixed number of runs holds there.
    """
    plan = sweep.plan
    baseline = next((arm for arm in arms if arm.name == plan["baseline"]), None)
    if baseline is None:
        return arms
    if plan.get("race"):
        at = standings(sweep)
        return [
            arm
            if arm is baseline
            else replace(
                arm,
                comparison=at[arm.name].comparison,
                percent=_percent(at[arm.name].comparison, baseline),
                verdict=at[arm.name].verdict,
                open=at[arm.name].open,
            )
            for arm in arms
        ]
    level = {"alpha": plan["alpha"], "margin": plan["margin"]}
    others = [arm for arm in arms if arm is not baseline and arm.values and baseline.values]
    pairs = {arm.name: _pairing(sweep, arm, baseline, **level) for arm in others}
    found: dict[str, stats.Comparison] = {}
    for arm in others:
        pair = pairs[arm.name]
        whole = pair is not None and pair.helps and pair.n == len(arm.values) == len(baseline.values)
        found[arm.name] = pair if pair is not None and whole else stats.compare(arm.values, baseline.values, **level)
    verdicts = stats.judge(found, **level)
    return [
        arm
        if arm is baseline
        else replace(
            arm,
            comparison=(comparison := found.get(arm.name)),
            percent=_percent(comparison, baseline),
            verdict=_doubted(verdicts.get(arm.name), arm, baseline),
            pairing=pairs.get(arm.name),
        )
        for arm in arms
    ]


def _percent(comparison: stats.Comparison | None, baseline: ArmResult) -> float | None:
    if comparison is None or baseline.summary is None or baseline.summary.mean == 0:
        return None
    return 100 * comparison.difference / abs(baseline.summary.mean)


def _pairing(sweep: Sweep, arm: ArmResult, baseline: ArmResult, *, alpha: float, margin: float | None) -> stats.Pairing | None:
    """Of the finished runs that share a seed; None for fewer than three pairs, or where no loss differs from another."""
    metric = sweep.plan["metric"]
    sides = [
        {
            run.seed: value
            for run in sweep.of(side.name)
            if run.status == "finished" and (value := value_of(run, metric)) is not None
        }
        for side in (arm, baseline)
    ]
    shared = sorted(sides[0].keys() & sides[1].keys())
    pairs = [[side[seed] for seed in shared] for side in sides]
    if len(shared) < 3 or any(len({*side}) < 2 for side in pairs):
        return None
    return stats.paired(*pairs, alpha=alpha, margin=margin)


def _doubted(verdict: stats.Verdict | None, arm: ArmResult, baseline: ArmResult) -> stats.Verdict | None:
    """The verdict, or `undecided` where runs diverged or are missing: the mean of those that are left says too little."""
    for side in (arm, baseline):
        if side.diverged:
            which = "all" if not side.finished else str(side.diverged)
            return stats.Verdict("undecided", f"{which} of the {side.diverged + side.finished} runs of {side.name} diverged")
    if verdict is not None and any(len(side.values) < side.planned for side in (arm, baseline)):
        return stats.Verdict("undecided", f"runs are missing; so far {verdict.word}: {verdict.reason}")
    return verdict


def plain(value: Any) -> Any:
    """For JSON, which has no nan and no infinity: None. Dataclasses as dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, digits: int = 4) -> str:
    """A figure for a table; an en dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
