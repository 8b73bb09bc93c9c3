"""A sweep's runs as the figures of its report: one row an arm, one an evaluation, one a run. Plain data, no torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from muonlab.lab import stats
from muonlab.lab.race import standings
from muonlab.lab.store import RunRecord, Sweep
from muonlab.train.run_folder import ENDED
from muonlab.train.settings import flat


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
    summary: stats.Summary | None  # of the finished runs' metric
    steps_to_target: float | None  # median over the runs; a miss counts as later than all others
    seconds_to_target: float | None
    reached: int
    seconds: float | None  # median training seconds of the finished runs
    comparison: stats.Comparison | None = None
    verdict: stats.Verdict | None = None
    open: bool = False  # of a race that has not decided this arm and has seeds left


@dataclass(frozen=True)
class Results:
    plan: dict[str, Any]
    arms: list[ArmResult]
    runs: list[RunRecord]

    @property
    def baseline(self) -> ArmResult | None:
        return next((arm for arm in self.arms if arm.name == self.plan["baseline"]), None)

    @property
    def swept_key(self) -> str | None:
        """The one key that a grid sweeps over, if there is exactly one."""
        keys = {key for arm in self.arms for key in arm.swept}
        return keys.pop() if len(keys) == 1 else None

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

    def on_edge(self, arm: ArmResult) -> bool:
        """True if an arm's best value is the smallest or largest that was tried: the optimum may lie beyond."""
        for key, best in arm.swept.items():
            values = [other.swept.get(key) for other in self.arms if other.arm == arm.arm]
            numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            if len({*numbers}) > 1 and len(numbers) == len(values) and best in (min(numbers), max(numbers)):
                return True
        return False

    def curves(self) -> list[dict[str, Any]]:
        """Mean, lowest and highest validation loss over the seeds, for each arm and evaluated step."""
        points = []
        for arm in self.arms:
            by_step: dict[int, list[dict[str, Any]]] = {}
            for run in self.runs:
                if run.cell == arm.name:
                    for row in run.evaluations:
                        by_step.setdefault(row["step"], []).append(row)
            for step, rows in sorted(by_step.items()):
                losses = [row["val_loss"] for row in rows]
                points.append(
                    {
                        "arm": arm.name,
                        "step": step,
                        "seconds": statistics.fmean(row["seconds"] for row in rows),
                        "mean": statistics.fmean(losses),
                        "low": min(losses),
                        "high": max(losses),
                        "seeds": len(losses),
                    }
                )
        return points

    def finals(self) -> list[dict[str, Any]]:
        """The metric of every finished run."""
        swept = {arm.name: arm.swept for arm in self.arms}
        arm_of = {arm.name: arm.arm for arm in self.arms}
        metric = self.plan["metric"]
        return [
            {"arm": run.cell, "family": arm_of[run.cell], "seed": run.seed, "value": run.result[metric], **swept[run.cell]}
            for run in self.runs
            if run.status == "finished"
        ]


def compute(sweep: Sweep) -> Results:
    """All figures of a sweep, from what is in its folder now."""
    plan = sweep.plan
    recipes = {cell["name"]: flat(cell["recipe"]) for cell in plan["cells"]}
    reference = recipes.get(plan["baseline"] or plan["cells"][0]["name"], {})
    arms = [_arm(sweep, cell, recipes[cell["name"]], reference) for cell in plan["cells"]]
    return Results(plan, _judged(sweep, arms), sweep.runs)


def _arm(sweep: Sweep, cell: dict[str, Any], recipe: dict[str, Any], reference: dict[str, Any]) -> ArmResult:
    plan, runs = sweep.plan, sweep.of(cell["name"])
    finished = [run for run in runs if run.status == "finished"]
    ended = [run for run in runs if run.status in ENDED]
    target = plan["target"]
    hits = [run.first_at(target) for run in ended] if target is not None else []
    values = [run.result[plan["metric"]] for run in finished]
    return ArmResult(
        name=cell["name"],
        arm=cell["arm"],
        swept=cell["swept"],
        changes={key: value for key, value in sorted(recipe.items()) if key not in reference or value != reference[key]},
        planned=len(runs),
        finished=len(finished),
        diverged=len(ended) - len(finished),
        summary=stats.summarize(values, plan["alpha"]) if values else None,
        steps_to_target=stats.median_with_misses([hit["step"] if hit else None for hit in hits]),
        seconds_to_target=stats.median_with_misses([hit["seconds"] if hit else None for hit in hits]),
        reached=sum(hit is not None for hit in hits),
        seconds=statistics.median([run.result["seconds"] for run in finished]) if finished else None,
    )


def _judged(sweep: Sweep, arms: list[ArmResult]) -> list[ArmResult]:
    """The arms, each but the baseline with its comparison and verdict. Both kinds of claims go through Holm's adjustment.

    Of a race: what its own test says. It stopped when it liked what it saw, so no test for a fixed number of runs holds here.
    """
    plan = sweep.plan
    baseline = next((arm for arm in arms if arm.name == plan["baseline"]), None)
    if baseline is None:
        return arms
    if plan.get("race"):
        found = standings(sweep)
        return [
            replace(arm, comparison=at.comparison, verdict=at.verdict, open=at.open) if (at := found.get(arm.name)) else arm
            for arm in arms
        ]
    values = {arm.name: [r.result[plan["metric"]] for r in sweep.of(arm.name) if r.status == "finished"] for arm in arms}
    level = {"alpha": plan["alpha"], "margin": plan["margin"]}
    others = [arm.name for arm in arms if arm is not baseline and values[arm.name] and values[baseline.name]]
    found = {name: stats.compare(values[name], values[baseline.name], **level) for name in others}
    p = stats.holm([c.p for c in found.values()])
    p_same = stats.holm([math.nan if c.p_equivalence is None else c.p_equivalence for c in found.values()])
    verdicts = {
        name: stats.decide(comparison, len(found), p[i], p_same[i], **level) for i, (name, comparison) in enumerate(found.items())
    }
    return [
        arm
        if arm is baseline
        else replace(arm, comparison=found.get(arm.name), verdict=_doubted(verdicts.get(arm.name), arm, baseline))
        for arm in arms
    ]


def _doubted(verdict: stats.Verdict | None, arm: ArmResult, baseline: ArmResult) -> stats.Verdict | None:
    """The verdict, or `undecided` where runs diverged or are missing: the mean of those that are left says too little."""
    for side in (arm, baseline):
        if side.diverged:
            which = "all" if not side.finished else str(side.diverged)
            return stats.Verdict("undecided", f"{which} of the {side.diverged + side.finished} runs of {side.name} diverged")
    if verdict is not None and (arm.finished < arm.planned or baseline.finished < baseline.planned):
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
