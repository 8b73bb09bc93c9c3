"""An experiment file: a question, a base recipe, arms (what each changes), grids, seeds, and what decides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, WithJsonSchema, model_validator

from muonlab.errors import InputError
from muonlab.names import did_you_mean
from muonlab.streams import stream_seed
from muonlab.train.recipe import Recipe
from muonlab.train.settings import flat, merge, nested, read_toml, validated, with_overrides


def _counted(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


_SEED_LIST = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Seeds = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_counted),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _SEED_LIST]}),
]


class ExperimentConfig(BaseModel):
    """The content of an experiment's TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="muonlab experiment")

    question: str = Field(description="what the experiment answers, in a sentence")
    base: str = Field(description="the recipe that all arms start from, a path relative to this file")
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> what it changes in the recipe, and optionally `grid`: key -> list of values"
    )
    grid: dict[str, Any] = Field({}, description="key -> list of values, crossed with every arm")
    set: dict[str, Any] = Field({}, description="changes of the recipe for all arms")
    seeds: Seeds = Field(description="a list, or a number n for 0 … n−1; one run for each arm and seed")
    metric: Literal["val_loss", "best_val_loss"] = Field("val_loss", description="lower is better")
    target: float | None = Field(None, description="validation loss whose first crossing is timed, in steps and seconds")
    baseline: str | None = Field(None, description="the arm that the others are compared with; default: the first, without grids")
    margin: PositiveFloat | None = Field(None, description="differences of the metric below this one do not matter (equivalence)")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of the tests and of the confidence intervals (1 − alpha)")
    tuned_by: str | None = Field(None, description="experiment file that chose these settings; its seeds may not be used here")

    @model_validator(mode="after")
    def _seeds_fit(self) -> ExperimentConfig:
        if not self.seeds:
            raise ValueError("seeds: expected at least one seed (three or more for a verdict), got none")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different ones, got {list(self.seeds)}")
        for name in self.arms:
            if not 0 < len(name) <= 60 or not name.isprintable():
                raise ValueError(f"arms: expected names of 1 to 60 printable characters, got {name!r}")
        return self


@dataclass(frozen=True)
class Cell:
    """One thing that is run with every seed: an arm at one point of its grid."""

    name: str
    arm: str
    swept: dict[str, Any]  # dotted key -> value at this point of the grid
    recipe: Recipe


@dataclass(frozen=True)
class Experiment:
    name: str  # the file's stem
    config: ExperimentConfig
    cells: list[Cell]
    baseline: str | None  # a cell's name


def load_experiment(path: str | Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """Reads an experiment and the recipes of all its cells. Raises InputError, all problems at once.

    overrides: "dotted.key=value" changes for all arms, as for a run; not of keys that an arm sets itself.
    """
    path = Path(path)
    config = validated(ExperimentConfig, read_toml(path), str(path))
    base = with_overrides(merge(_referred(path, "base", config.base), config.set), overrides)
    fixed = list(flat(with_overrides({}, overrides)))
    cells: list[Cell] = []
    problems: list[str] = []
    for arm, changes in config.arms.items():
        changes = dict(changes)
        grid = _grid(config.grid, changes.pop("grid", {}), f"{path}: arms.{arm}.grid", problems)
        if clash := _overlap(fixed, [*flat(changes), *grid]):
            problems.append(f"--set {clash}: arm {arm!r} sets this key itself; change it in {path}")
        if clash := _overlap(list(grid), list(flat(changes))):
            problems.append(f"{path}: arm {arm!r} both sets and sweeps {clash}")
        for point in itertools.product(*grid.values()):
            swept = dict(zip(grid, point, strict=True))
            name = " ".join([arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in swept.items())])
            if any(cell.name == name for cell in cells):
                problems.append(f"{path}: there are two arms {name!r}: the same runs would count twice")
            try:
                recipe = validated(Recipe, merge(merge(base, changes), nested(swept)), f"{path}: arm {name!r}")
                cells.append(Cell(name, arm, swept, recipe))
            except InputError as error:
                problems.extend(error.problems)
    folders = [run_folder_name(cell.name, 0, cell.recipe.run_id(0)) for cell in cells]
    if len({*folders}) < len(folders):
        problems.append(f"{path}: two arms have equal recipes and names too alike for folders of their own: rename one")
    if problems:
        raise InputError(*dict.fromkeys(problems))
    if config.tuned_by is not None:
        tuning = validated(ExperimentConfig, _referred(path, "tuned_by", config.tuned_by), config.tuned_by)
        if shared := sorted({*tuning.seeds} & {*config.seeds}):
            raise InputError(f"{path}: seeds {shared} tuned these settings ({config.tuned_by}); confirm them with others")
    return Experiment(path.stem, config, cells, _baseline(path, config, cells))


def _overlap(keys: list[str], others: list[str]) -> str | None:
    """The first of `keys` that is one of `others`, or a table above or below one."""
    return next((k for k in keys for o in others if f"{k}.".startswith(f"{o}.") or f"{o}.".startswith(f"{k}.")), None)


def _referred(path: Path, key: str, name: str) -> dict[str, Any]:
    """The TOML file that a key of the experiment names, relative to it."""
    try:
        return read_toml(path.parent / name)
    except InputError as error:
        raise InputError(f"{path}: {key}: {error}") from None


def _grid(shared: Mapping[str, Any], own: Any, where: str, problems: list[str]) -> dict[str, list[Any]]:
    """Dotted key -> values. A key's list may be written nested (optimizer.lr = [..]) or dotted in quotes."""
    if not isinstance(own, Mapping):
        problems.append(f"{where}: expected a table of key = [values], got {own!r}")
        own = {}
    grid = {**flat(shared), **flat(own)}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"{where}: {key}: expected a list of values, got {values!r}")
    return {key: values for key, values in grid.items() if isinstance(values, list)}


def _baseline(path: Path, config: ExperimentConfig, cells: list[Cell]) -> str | None:
    names = [cell.name for cell in cells]
    if config.baseline is None:
        return names[0] if len(names) > 1 and not any(cell.swept for cell in cells) else None
    if config.baseline not in names:
        raise InputError(f"{path}: baseline: there is no arm {config.baseline!r}; {did_you_mean(config.baseline, names)}")
    return config.baseline


def run_folder_name(cell: str, seed: int, run_id: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.=+-]+", "-", cell)
    if slug != cell.replace(" ", "-"):  # keep apart what looks alike once its odd characters are gone
        slug += f"-{stream_seed(0, cell) % 16**6:06x}"
    return f"{slug.lstrip('.-')}-seed{seed}-{run_id}"


def plan_of(experiment: Experiment, machine: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's folder says of its experiment (experiment.json): settings, cells with their whole recipes, and the runs,
    seed by seed, so that half a sweep has as many runs of each arm. machine: device, threads and precision of each run."""
    config = experiment.config.model_dump(mode="json", exclude={"arms", "grid", "set", "base"})
    return {
        "format": 1,
        "name": experiment.name,
        **config,
        "baseline": experiment.baseline,
        "machine": machine,
        "changes": [],  # of the settings above since the first sweep
        "cells": [{"name": c.name, "arm": c.arm, "swept": c.swept, "recipe": c.recipe.canonical()} for c in experiment.cells],
        "runs": [
            {"cell": c.name, "seed": seed, "id": (run_id := c.recipe.run_id(seed)), "folder": run_folder_name(c.name, seed, run_id)}
            for seed in experiment.config.seeds
            for c in experiment.cells
        ],
    }
