"""An experiment file: a question, a base recipe, arms (what each changes), grids, seeds, and what decides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, ValidationInfo, field_validator, model_validator

from muonlab.errors import InputError, did_you_mean
from muonlab.train.recipe import Recipe
from muonlab.train.settings import flat, merge, nested, read_toml, validated, with_overrides


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
    seeds: tuple[NonNegativeInt, ...] = Field(description="a list, or a number n for 0 … n−1; one run for each arm and seed")
    metric: Literal["val_loss", "best_val_loss"] = Field("val_loss", description="lower is better")
    target: float | None = Field(None, description="validation loss whose first crossing is timed, in steps and seconds")
    baseline: str | None = Field(None, description="the arm that the others are compared with; default: the first, without grids")
    margin: PositiveFloat | None = Field(None, description="differences of the metric below this one do not matter (equivalence)")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of the tests and of the confidence intervals (1 − alpha)")
    tuned_by: str | None = Field(None, description="experiment file that chose these settings; its seeds may not be used here")

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any, _: ValidationInfo) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _seeds_fit(self) -> ExperimentConfig:
        if not self.seeds:
            raise ValueError("seeds: expected at least one seed (three or more for a verdict), got none")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different ones, got {list(self.seeds)}")
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

    overrides: "dotted.key=value" changes of the base recipe, as for a run.
    """
    path = Path(path)
    config = validated(ExperimentConfig, read_toml(path), str(path))
    base = merge(with_overrides(read_toml(path.parent / config.base), overrides), config.set)
    cells: list[Cell] = []
    problems: list[str] = []
    for arm, changes in config.arms.items():
        changes = dict(changes)
        grid = _grid(config.grid, changes.pop("grid", {}), f"{path}: arms.{arm}.grid", problems)
        for point in itertools.product(*grid.values()):
            swept = dict(zip(grid, point, strict=True))
            name = " ".join([arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in swept.items())])
            try:
                recipe = validated(Recipe, merge(merge(base, changes), nested(swept)), f"{path}: arm {name!r}")
                cells.append(Cell(name, arm, swept, recipe))
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(*dict.fromkeys(problems))
    if config.tuned_by is not None:
        tuning = validated(ExperimentConfig, read_toml(path.parent / config.tuned_by), config.tuned_by)
        if shared := sorted({*tuning.seeds} & {*config.seeds}):
            raise InputError(f"{path}: seeds {shared} tuned these settings ({config.tuned_by}); confirm them with others")
    return Experiment(path.stem, config, cells, _baseline(path, config, cells))


def _grid(shared: Mapping[str, Any], own: Any, where: str, problems: list[str]) -> dict[str, list[Any]]:
    """Dotted key -> values. A key's list may be written nested (optimizer.lr = [..]) or dotted in quotes."""
    if not isinstance(own, Mapping):
        problems.append(f"{where}: expected a table of key = [values], got {own!r}")
        own = {}
    grid = flat({**shared, **own})
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
    slug = re.sub(r"[^A-Za-z0-9.=+-]+", "-", cell).strip("-.")[:60]
    return f"{slug}-seed{seed}-{run_id}"


def plan_of(experiment: Experiment) -> dict[str, Any]:
    """What a sweep's folder says of its experiment (experiment.json): settings, cells with their whole recipes, runs."""
    config = experiment.config.model_dump(mode="json", exclude={"arms", "grid", "set", "base"})
    return {
        "format": 1,
        "name": experiment.name,
        **config,
        "baseline": experiment.baseline,
        "cells": [{"name": c.name, "arm": c.arm, "swept": c.swept, "recipe": c.recipe.canonical()} for c in experiment.cells],
        "runs": [
            {"cell": c.name, "seed": seed, "folder": run_folder_name(c.name, seed, c.recipe.run_id(seed))}
            for c in experiment.cells
            for seed in experiment.config.seeds
        ],
    }
