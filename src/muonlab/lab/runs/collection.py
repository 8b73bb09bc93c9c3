"""Runs that no sweep planned (logged by other people's scripts, or imported), read as if one had. Needs no torch.

A collection is a folder without experiment.json whose subfolders are runs: run.json says arm and seed.
"""

from __future__ import annotations

import errno
import math
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muonlab.errors import InputError, RunError
from muonlab.lab.runs.store import RunRecord, Sweep, load_sweep, read_plan, read_record
from muonlab.names import did_you_mean
from muonlab.train.run_folder import RunFolder
from muonlab.train.settings import flat, nested

METRICS = ("val_loss", "best_val_loss", "train_loss", "seconds")
_SETTINGS = re.compile(r"( \S+=\S+)+$")  # in an arm's name: "baseline lr=0.1"
_REDO = "delete this folder, then log or import the run again"


def unwritable(out: Path, error: OSError, left: str) -> InputError | RunError:
    """The error for a folder that could not be written: the user's if another folder would help, else the machine's."""
    said = f"{out}: cannot be written: {error.strerror or error}; {left}"
    another = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EEXIST)
    return InputError(f"{said}; choose another folder with --out") if error.errno in another else RunError(said)


def has_diverged(rows: list[dict[str, Any]]) -> bool:
    """True if an evaluation was not finite, or the last training loss: a run may diverge after its last evaluation."""
    train = [row["train_loss"] for row in rows if "train_loss" in row]
    return any(row.get("diverged") for row in rows) or (bool(train) and train[-1] is None)


def ended(run_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """result.json of a logged or imported run, from its rows: what it says can be computed again."""
    diverged = has_diverged(rows)
    losses = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    train = [row["train_loss"] for row in rows if row.get("train_loss") is not None]
    known = {key: [row[key] for row in rows if row.get(key) is not None] for key in ("tokens", "seconds")}
    return {
        "id": run_id,
        "status": "diverged" if diverged else "finished",
        "rows": len(rows),
        "steps": rows[-1]["step"],
        "tokens": known["tokens"][-1] if known["tokens"] else None,
        "seconds": known["seconds"][-1] if known["seconds"] else None,
        "val_loss": losses[-1] if losses and not diverged else None,
        "best_val_loss": min(losses, default=None),
        "train_loss": train[-1] if train and not diverged else None,
    }


def run_folders(directory: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and run.json of each run in a collection, in order of name. Raises InputError, a line for each damaged one."""
    found: list[tuple[str, dict[str, Any]]] = []
    problems: list[str] = []
    try:
        below = sorted(path for path in Path(directory).iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{directory}: expected a folder of runs: {error.strerror}") from None
    for path in below:
        try:
            run = RunFolder(path).run()
        except InputError:
            problems.append(f"{path / 'run.json'}: damaged (its checksum does not fit); {_REDO}")
            continue
        if run is not None and not (isinstance(run.get("arm"), str) and isinstance(run.get("seed"), int) and "id" in run):
            problems.append(f"{path / 'run.json'}: expected arm, seed and id, as of a logged or imported run; {_REDO}")
        elif run is not None:
            found.append((path.name, run))
    if problems:
        raise InputError(*problems)
    return found


def collect(
    directory: str | Path,
    *,
    baseline: str | None = None,
    target: float | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
    metric: str = "val_loss",
    question: str | None = None,
) -> Sweep:
    """The runs of a collection as a sweep: its cells are the arms, the baseline first and the others in order of name.

    baseline: an arm; default: the one called "baseline" if there is one, else the one that came first (see _order). A plan is
    made from the runs that are there, so that none can be missing; one that is not finished, or has diverged, is a row like the
    others. Raises InputError if there are no runs, if one is damaged or there twice, if an arm or metric is unknown, or a
    finished run lacks the metric.
    """
    directory = Path(directory)
    _check(directory, target, margin, alpha, metric)
    found = run_folders(directory)
    if not found:
        raise InputError(f"{directory}: holds no runs: log some with muonlab.run, or bring some in with `muonlab import`")
    arms = sorted({run["arm"] for _, run in found})
    if baseline is not None and baseline not in arms:
        raise InputError(f"{directory}: there is no arm {baseline!r}; {did_you_mean(baseline, arms)}")
    if baseline is None and len(arms) > 1:
        baseline = _default_baseline([run for _, run in found])
    arms.sort(key=lambda arm: (arm != baseline, arm))
    _refuse_twins(directory, found)
    runs = [{"cell": run["arm"], "seed": run["seed"], "id": run["id"], "folder": name} for name, run in found]
    runs.sort(key=lambda planned: (planned["seed"], planned["cell"]))
    plan = {
        "format": 1,
        "name": directory.resolve().name,
        "question": question
        or (f"Which arm of {directory.resolve().name} is best?" if len(arms) > 1 else f"How good is {arms[0]}?"),
        "seeds": sorted({planned["seed"] for planned in runs}),
        "metric": metric,
        "metrics": [],
        "target": target,
        "targets": [] if target is None else [target],
        "margin": margin,
        "alpha": alpha,
        "tuned_by": None,
        "baseline": baseline,
        "budget": None,
        "machine": {},
        "changes": [],
        "cells": [
            {
                "name": arm,
                "arm": arm,
                "swept": {},
                "recipe": common_recipe([run.get("recipe") or {} for _, run in found if run["arm"] == arm]),
            }
            for arm in arms
        ],
        "runs": runs,
    }
    return Sweep(plan, [_whole(read_record(directory, planned), metric, directory) for planned in runs])


def open_directory(directory: str | Path, **options: Any) -> Sweep:
    """The runs of a folder, be it a sweep's or a collection."""
    return load_sweep(directory) if read_plan(Path(directory)) is not None else collect(directory, **options)


def is_collection(directory: Path) -> bool:
    """Whether a folder holds runs that no sweep planned. Raises InputError for a damaged plan."""
    return read_plan(directory) is None and any(directory.glob("*/run.json"))


def _check(directory: Path, target: float | None, margin: float | None, alpha: float, metric: str) -> None:
    problems = []
    if metric not in METRICS:
        problems.append(f"metric: {did_you_mean(metric, METRICS)}; got {metric!r}")
    if target is not None and not math.isfinite(target):
        problems.append(f"target: expected a finite loss, got {target}")
    if margin is not None and not (math.isfinite(margin) and margin > 0):
        problems.append(f"margin: expected a number above 0, got {margin}")
    if not 0 < alpha < 0.5:
        problems.append(f"alpha: expected a level between 0 and 0.5, got {alpha}")
    if problems:
        raise InputError(*(f"{directory}: {problem}" for problem in problems))


def _default_baseline(runs: list[dict[str, Any]]) -> str:
    """The arm called "baseline", whatever its case and whatever settings its name tells beside; else the one that came first."""
    first: dict[str, tuple[int, str, int]] = {}
    for run in runs:
        first[run["arm"]] = min(_order(run), first.get(run["arm"], _order(run)))
    arms = sorted(first, key=lambda arm: (first[arm], arm))
    for called in (str, str.casefold, lambda arm: _SETTINGS.sub("", arm).casefold()):
        for arm in arms:
            if called(arm) == "baseline":
                return arm
    return arms[0]


def _order(run: dict[str, Any]) -> tuple[int, str, int]:
    """When a run came: logged ones before imported ones, these as their logs were named; then by start, then as in the file."""
    provenance = run.get("provenance") or {}
    origin = provenance.get("import") or {}
    try:
        began = datetime.fromisoformat(provenance.get("started") or "")
        started = began.replace(tzinfo=began.tzinfo or UTC).astimezone(UTC).isoformat(timespec="microseconds")
    except (TypeError, ValueError, OverflowError):
        started = "unknown"  # after all dates
    return origin.get("argument", 0), started, origin.get("in_file", 0)


def _refuse_twins(directory: Path, found: list[tuple[str, dict[str, Any]]]) -> None:
    """One run that counts twice makes any statistic wrong."""
    ids = Counter(run["id"] for _, run in found)
    pairs = Counter((run["arm"], run["seed"]) for _, run in found)
    twins = [name for name, run in found if ids[run["id"]] > 1 or pairs[run["arm"], run["seed"]] > 1]
    if twins:
        raise InputError(f"{directory}: holds a run (arm and seed, or content) more than once: keep one of {', '.join(twins)}")


def common_recipe(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """What runs have in common of their settings."""
    first, *others = [flat(recipe) for recipe in recipes] or [{}]
    return nested({key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)})


def _whole(record: RunRecord, metric: str, directory: Path) -> RunRecord:
    """A finished run has the metric; keys that only muonlab's own training can know are None."""
    if record.status == "finished" and record.result.get(metric) is None:
        remedy = "choose another with --metric" if metric != "val_loss" else "log it, or choose --metric train_loss"
        raise InputError(f"{directory / record.folder}: is finished without a {metric}: {remedy}")
    return replace(record, result={"tokens": None, "seconds": None, **record.result}) if record.result else record
