"""An experiment as a value: its cells with their recipes, and the plan that a sweep's folder keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from muonlab.lab.plan.config import ExperimentConfig
from muonlab.lab.plan.disguise import find as find_disguises
from muonlab.lab.runs.store import run_folder_name
from muonlab.train.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One thing that is run with every seed: an arm at one point of its grid."""

    name: str
    arm: str
    swept: dict[str, Any]  # dotted key -> value at this point of the grid
    recipe: Recipe


@dataclass(frozen=True)
class Experiment:
    name: str  # the file's stem, and the profile's name
    config: ExperimentConfig
    cells: list[Cell]
    baseline: str | None  # a cell's name
    base: dict[str, Any]  # the recipe that all arms start from, with `set` and overrides
    found: dict[str, Any] = field(default_factory=dict)  # what the plan says beside the configuration


def plan_of(experiment: Experiment, machine: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's folder says of its experiment (experiment.json): settings, cells with their whole recipes, and the runs,
    seed by seed, so that half a sweep has as many runs of each arm. machine: device, threads and precision of each run."""
    how = {"arms", "grid", "zip", "set", "base", "refine", "head_to_head", "profiles"}  # the cells are made from these
    config = experiment.config.model_dump(mode="json", exclude=how)
    targets = experiment.config.all_targets()
    disguises = {
        d.cell: {"same_as": d.same_as, "because": d.because}
        for d in find_disguises([(c.name, c.recipe.canonical()) for c in experiment.cells])
        if d.same_as is not None
    }
    config |= {"target": targets[0] if targets else None, "targets": targets}
    if (budget := experiment.config.budget) is not None:
        config["budget"] = budget.model_dump(exclude_none=True)
    return {
        "format": 1,
        "name": experiment.name,
        **config,
        **experiment.found,
        "baseline": experiment.baseline,
        "machine": machine,
        "changes": [],  # of the settings above since the first sweep
        "cells": [
            {"name": c.name, "arm": c.arm, "swept": c.swept, "recipe": c.recipe.canonical(), **disguises.get(c.name, {})}
            for c in experiment.cells
        ],
        "runs": [
            {"cell": c.name, "seed": seed, "id": (run_id := c.recipe.run_id(seed)), "folder": run_folder_name(c.name, seed, run_id)}
            for seed in experiment.config.seeds
            for c in experiment.cells
        ],
    }
