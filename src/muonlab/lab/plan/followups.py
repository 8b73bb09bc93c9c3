"""Experiments that follow from the result of another: `refine` (a finer grid around its winners) and `head_to_head` (its two best
for longer). What is taken from the result becomes part of the plan."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.plan.config import HeadToHead, Refine
from muonlab.lab.plan.experiment import Experiment
from muonlab.lab.plan.grid import Grid, Values, overlap, read_grid
from muonlab.lab.runs.store import load_sweep
from muonlab.names import did_you_mean
from muonlab.train.layers import laid
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import ENDED
from muonlab.train.settings import flat, merge, nested


@dataclass(frozen=True)
class Expansion:
    """A follow-up as an ordinary experiment: what its TOML would say, had it been written by hand."""

    base: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    baseline: str | None
    result: dict[str, Any]  # what was found in the first experiment's result, for the plan


def expand(path: Path, follow: Refine | HeadToHead, first: Experiment) -> Expansion:
    """Raises InputError where the first experiment is not finished, or its result does not answer."""
    where = f"{path}: {'refine' if isinstance(follow, Refine) else 'head_to_head'}"
    source, means = _means(where, path.parent / follow.of, first)
    if not means:
        raise InputError(f"{where}: all cells of {follow.of} have diverged runs: there is no winner")
    return (
        _refined(where, follow, first, source, means) if isinstance(follow, Refine) else _met(where, follow, first, source, means)
    )


# -- the first experiment's result --------------------------------------------------------------------------------------


def _means(where: str, file: Path, first: Experiment) -> tuple[str, dict[str, float]]:
    """Where the result was found, and the mean metric of each cell whose runs all finished. The committed result counts before
    the one in runs/, so that everybody gets the same; either must be whole, and of the recipes that the file now has."""
    committed, folder = file.parent / first.name / "results.json", Path("runs") / first.name
    problems = []
    for source, name in ((committed, f"{first.name}/results.json"), (folder, str(folder))):
        if not source.exists():
            problems.append(f"there is no {source}")
            continue
        plan, runs = _committed(source) if source is committed else _swept(source)
        then = {cell["name"]: _of_today(cell["recipe"]) for cell in plan["cells"]}
        if any(then.get(cell.name) != cell.recipe.run_id(0) for cell in first.cells):
            problems.append(f"{source} is the result of other recipes than {file.name} has")
            continue
        ended = {(cell, seed): value for cell, seed, status, value in runs if status in ENDED}
        expected = [(cell.name, seed) for cell in first.cells for seed in first.config.seeds]
        if missing := sum(key not in ended for key in expected):
            problems.append(f"in {source} {missing} of {len(expected)} runs have not ended")
            continue
        values = {cell.name: [ended[cell.name, seed] for seed in first.config.seeds] for cell in first.cells}
        whole = {cell: [v for v in found if v is not None] for cell, found in values.items()}
        return name, {cell: statistics.fmean(v) for cell, v in whole.items() if len(v) == len(values[cell])}
    raise InputError(f"{where}: {'; '.join(problems)}. Finish it first: muonlab sweep {file}")


def _of_today(recipe: dict[str, Any]) -> str | None:
    """The identity of a recipe that was written down, at seed 0: keys that recipes have gained since stand at their defaults.
    None for one that cannot be read any more."""
    try:
        return Recipe.model_validate(recipe).run_id(0)
    except ValueError:  # pydantic's too
        return None


_Runs = list[tuple[str, int, str, float | None]]  # cell, seed, status, metric


def _committed(path: Path) -> tuple[dict[str, Any], _Runs]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        plan, metric = found["plan"], found["plan"]["metric"]
        return plan, [(run["cell"], run["seed"], run["status"], run.get(metric)) for run in found["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a result of muonlab report: {error!r}") from None


def _swept(folder: Path) -> tuple[dict[str, Any], _Runs]:
    sweep = load_sweep(folder)
    values = [run.value(sweep.plan["metric"]) if run.status == "finished" else None for run in sweep.runs]
    return sweep.plan, [(run.cell, run.seed, run.status, value) for run, value in zip(sweep.runs, values, strict=True)]


# -- refine -----------------------------------------------------------------------------------------------------------


def _refined(where: str, follow: Refine, first: Experiment, source: str, means: dict[str, float]) -> Expansion:
    known = list(dict.fromkeys(cell.arm for cell in first.cells if cell.swept))
    if not known:
        raise InputError(f"{where}: {follow.of} has no grid to refine")
    for arm in follow.arms or ():
        if arm not in known:
            raise InputError(f"{where}: arms: {follow.of} has no arm {arm!r} with a grid; {did_you_mean(arm, known)}")
    arms, winners = {}, {}
    for arm in follow.arms or known:
        candidates = [cell for cell in first.cells if cell.arm == arm and cell.name in means]
        if not candidates:
            raise InputError(f"{where}: every cell of {arm} has diverged runs: there is no winner to refine")
        best = min(candidates, key=lambda cell: means[cell.name])
        winners[arm] = {"cell": best.name, "mean": means[best.name], "swept": best.swept}
        changes, grid = _parts(first, arm)
        new = _finer_grid(f"{where}: {arm}", grid, best.swept, follow)
        finer = new.keys()
        fixed = {key: value for key, value in best.swept.items() if key not in finer}
        if not finer:
            raise InputError(f"{where}: {arm}: there is nothing between the values of {', '.join(best.swept)} to refine")
        arms[arm] = {**merge(changes, nested(fixed)), "grid": new.crossed, "zip": new.zipped}
    return Expansion(first.base, arms, None, {"from": source, "winners": winners})


def _parts(first: Experiment, arm: str) -> tuple[dict[str, Any], Grid]:
    """An arm's own changes, and its grid."""
    changes = dict(first.config.arms[arm])
    return changes, read_grid({"grid": first.config.grid, "zip": first.config.zip}, changes, arm, [])


def _finer_grid(where: str, grid: Grid, best: Mapping[str, Any], follow: Refine) -> Grid:
    crossed: Values = {}
    for key, values in grid.crossed.items():
        if _numbers(values) and len({*values}) > 1:
            ordered = sorted({*values})
            crossed[key] = _finer(f"{where}: {key}", ordered, ordered.index(best[key]), follow)
    zipped: Values = {}
    if grid.zipped:
        rows = list(zip(*grid.zipped.values(), strict=True))
        at = rows.index(tuple(best[key] for key in grid.zipped))
        if len(rows) > 1:
            if odd := [key for key, values in grid.zipped.items() if not _numbers(values)]:
                raise InputError(f"{where}: {', '.join(odd)} advances with the others and has no values between those given")
            zipped = {key: _finer(f"{where}: {key}", values, at, follow) for key, values in grid.zipped.items()}
    return Grid(crossed, zipped)


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _finer(where: str, values: list[float], at: int, follow: Refine) -> list[float]:
    """`points` values from the neighbour before values[at] to the one behind it, as the grid is spaced: evenly, or by factors."""
    best = values[at]
    if at in (0, len(values) - 1) and not follow.beyond:
        remedy = "Widen the first grid, or say beyond = true"
        raise InputError(f"{where}: the winner, {best:g}, is the last value tried: the best may lie beyond. {remedy}")
    by_factors = _by_factors(values)
    ends = []
    for step in (-1, 1):
        other = at + step
        inside = 0 <= other < len(values)
        opposite = values[at - step]
        ends.append(values[other] if inside else best * best / opposite if by_factors else 2 * best - opposite)
    half = follow.points // 2
    found = [_between(ends[0], best, i / half, by_factors) for i in range(half)]
    found += [_between(best, ends[1], i / half, by_factors) for i in range(half + 1)]
    if all(isinstance(v, int) for v in values):
        return list(dict.fromkeys(round(v) for v in found))
    return list(dict.fromkeys(v if v in (best, *ends) else float(f"{v:.4g}") for v in found))


def _between(a: float, b: float, share: float, by_factors: bool) -> float:
    if share in (0, 1):
        return b if share else a
    return a * (b / a) ** share if by_factors else a + (b - a) * share


def _by_factors(values: list[float]) -> bool:
    """True if the quotients of a grid's values are more alike than their differences."""
    if min(values) <= 0 or len(values) < 3:
        return False
    pairs = list(itertools.pairwise(values))
    steps, logs = [abs(b - a) for a, b in pairs], [abs(math.log(b / a)) for a, b in pairs]
    return _unevenness(logs) < _unevenness(steps)


def _unevenness(steps: list[float]) -> float:
    return statistics.pstdev(steps) / statistics.fmean(steps) if any(steps) else math.inf


# -- head to head -----------------------------------------------------------------------------------------------------


def _met(where: str, follow: HeadToHead, first: Experiment, source: str, means: dict[str, float]) -> Expansion:
    """Of several arms the best cell each, of one arm the two best cells."""
    ranked = sorted((cell for cell in first.cells if cell.name in means), key=lambda cell: means[cell.name])
    if follow.cells is not None:
        for name in follow.cells:
            if name not in means:
                raise InputError(f"{where}: cells: {follow.of} has no {name!r} that finished; {did_you_mean(name, means)}")
        chosen = [cell for cell in ranked if cell.name in follow.cells]
    else:
        by_arm = {}
        for cell in ranked:
            by_arm.setdefault(cell.arm, cell)
        chosen = (list(by_arm.values()) if len(by_arm) > 1 else ranked)[:2]
    if len(chosen) < 2:
        raise InputError(f"{where}: {follow.of} has only one cell whose runs all finished: nothing to compare it with")
    base = merge(first.base, {"train": {"steps": follow.steps}})
    arms = {}
    for cell in chosen:
        arms[cell.name] = merge(_parts(first, cell.arm)[0], nested(cell.swept))
        if own := overlap(["train.steps", "preset"], list(flat(arms[cell.name]))):
            raise InputError(f"{where}: {cell.name} sets {own} itself: write this comparison out by hand")
        steps, before = Recipe.model_validate(laid(base, arms[cell.name])).train.steps, cell.recipe.train.steps
        if steps <= before:
            raise InputError(f"{where}: steps: expected more than the {before} of {follow.of}, got {steps}")
    found = {"from": source, "winners": {cell.name: {"mean": means[cell.name], "swept": cell.swept} for cell in chosen}}
    return Expansion(base, arms, chosen[-1].name, found)
