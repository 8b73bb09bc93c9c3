"""Loss curves for drawing: means over seeds, and each run's own, thinned to what a chart can show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from muonlab.lab.runs.store import RunRecord

CLOCKS = ("step", "tokens", "seconds")
MEAN_POINTS = 200  # of a mean curve: about one for each three pixels of a chart
RUN_POINTS = 60  # of each run in a small chart

Row = dict[str, Any]


def loss_key(runs: list[RunRecord]) -> str:
    """What the curves show: the validation loss, or the training loss where no run was ever evaluated."""
    return (
        "val_loss" if any(run.evaluations for run in runs) or not any(_points(run, "train_loss") for run in runs) else "train_loss"
    )


def mean_curves(cells: list[str], runs: list[RunRecord], key: str) -> list[Row]:
    """Mean, lowest and highest loss over the seeds, for each arm and step; between a run's own steps interpolated. Of the finished
    runs, if an arm has any: where others break off, a mean would jump. Clocks that a run lacks are left out of its arm's rows."""
    rows: list[Row] = []
    stray = {(run.cell, run.seed) for run in strays(runs)}
    for cell in cells:
        here = (run for run in runs if run.cell == cell and (run.cell, run.seed) not in stray)
        found = [points for run in here if (points := _points(run, key))]
        if not found:
            continue
        steps = sorted({row["step"] for points in found for row in points})
        grid = _thinned(steps, MEAN_POINTS)
        table = {clock: np.array([_at(points, clock, grid) for points in found]) for clock in (*CLOCKS[1:], key)}
        for i, step in enumerate(grid):
            losses = table[key][:, i]
            losses = losses[~np.isnan(losses)]
            if not len(losses):
                continue
            row: Row = {"arm": cell, "step": step, "seeds": len(losses)}
            row |= {"mean": _short(losses.mean()), "low": _short(losses.min()), "high": _short(losses.max())}
            for clock in CLOCKS[1:]:
                times = table[clock][:, i]
                times = times[~np.isnan(times)]
                if len(times) == len(losses):
                    row[clock] = _short(times.mean())
            rows.append(row)
    return rows


def strays(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs that did not finish, of arms of which others did."""
    whole = {run.cell for run in runs if run.status == "finished"}
    return [run for run in runs if run.cell in whole and run.status != "finished"]


def run_curves(runs: list[RunRecord], key: str) -> list[Row]:
    """Each run's own loss by step (and the other clocks it has)."""
    rows: list[Row] = []
    for run in runs:
        points = _points(run, key)
        rows += [
            {"arm": run.cell, "seed": run.seed, "status": run.status, "step": row["step"], "loss": _short(row[key])}
            | {clock: _short(row[clock]) for clock in CLOCKS[1:] if row.get(clock) is not None}
            for row in _thinned(points, RUN_POINTS)
        ]
    return rows


def was_thinned(runs: list[RunRecord], key: str, points: int) -> bool:
    return any(len(_points(run, key)) > points for run in runs)


def _points(run: RunRecord, key: str) -> list[Row]:
    """The rows with a finite loss, in order of steps."""
    rows = (row for row in run.rows if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int | float))
    return sorted((row for row in rows if math.isfinite(row[key])), key=lambda row: row["step"])


def _at(points: list[Row], key: str, steps: list[float]) -> np.ndarray:
    """A run's values at these steps, nan outside of those that it has been through."""
    own = [row for row in points if row.get(key) is not None]
    if len(own) < len(points):
        return np.full(len(steps), math.nan)
    x, y = [row["step"] for row in own], [row[key] for row in own]
    return np.interp(steps, x, y, left=math.nan, right=math.nan)


def _thinned(items: list[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def _short(value: float) -> float:
    """Six digits: more cannot be seen, and take room in the page."""
    return float(f"{value:.6g}")
