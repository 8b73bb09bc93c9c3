"""Sweeps with runs made up by a formula, in the very folders that training writes: for reports, charts and the browser."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muonlab.files import write_atomically
from muonlab.train.run_folder import RunFolder, write_json
from muonlab.train.run_folder import format_row as line
from muonlab.train.settings import nested

Ending = Callable[[str, int], float | str | None]  # cell, seed -> final loss, or "diverged", "unfinished", "damaged"; None: missing

PROVENANCE = {
    "started": "2026-01-02T03:04:05+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"muonlab": "0", "torch": "2"},
    "cpu": "a processor",
    "gpu": None,
    "cores": 2,
}


def cell(name: str, /, *, arm: str | None = None, swept: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    """Of a plan. recipe: dotted keys, with _ for each dot's place: lr=…, decay=… under `optimizer`."""
    settings: dict[str, Any] = {
        "optimizer.name": "muon",
        **{f"optimizer.{key}": value for key, value in recipe.items()},
        **(swept or {}),
    }
    return {"name": name, "arm": arm or name, "swept": swept or {}, "recipe": nested({**settings, "train.steps": 300})}


def grid(arm: str, **values: list[Any]) -> list[dict[str, Any]]:
    """The cells of an arm whose keys (under `optimizer`) are crossed."""
    found = []
    for point in itertools.product(*values.values()):
        swept = {f"optimizer.{key}": value for key, value in zip(values, point, strict=True)}
        name = " ".join([arm, *(f"{key}={value}" for key, value in zip(values, point, strict=True))])
        found.append(cell(name, arm=arm, swept=swept))
    return found


def sweep(
    folder: Path,
    cells: list[dict[str, Any]],
    ending: Ending,
    *,
    seeds: int = 3,
    points: int = 30,
    speed: Callable[[str], float] = lambda _: 0.1,
    **plan: Any,
) -> Path:
    """A sweep's folder. points: evaluations of each run, each ten steps. speed: seconds a step, by cell."""
    names = [one["name"] for one in cells]
    runs = [
        {"cell": name, "seed": seed, "id": f"id{names.index(name)}x{seed}", "folder": f"run{names.index(name)}-seed{seed}"}
        for seed in range(1, seeds + 1)
        for name in names
    ]
    settings = {
        **{"format": 1, "name": folder.name, "question": "Which of these is best?", "seeds": list(range(1, seeds + 1))},
        **{"metric": "val_loss", "metrics": [], "target": None, "margin": None, "alpha": 0.05, "tuned_by": None},
        **{"baseline": names[0], "machine": {"device": "cpu", "threads": 1, "bf16_fast": False}, "changes": []},
        **{"cells": cells, "runs": runs},
    }
    settings |= plan
    if settings["target"] is not None:
        settings.setdefault("targets", [settings["target"]])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "experiment.json", settings)
    for run in runs:
        end = ending(run["cell"], run["seed"])
        if end is not None:
            recipe = cells[names.index(run["cell"])]["recipe"]
            _write(RunFolder(folder / "runs" / run["folder"]), run, recipe, end, points, speed(run["cell"]))
    return folder


def _write(folder: RunFolder, run: dict[str, Any], recipe: dict[str, Any], end: float | str, points: int, speed: float) -> None:
    folder.path.mkdir(parents=True)
    about = {
        "provenance": PROVENANCE,
        "machine": {"device": "cpu", "precision": "float32", "threads": 1, "bf16_fast": False},
        "data": {"source": "text", "sha256": "ab" * 32, "split": "tail"},
        "model": {"parameters": 1000, "flops_per_token": 6e6},
    }
    write_json(folder.run_file, {"format": 1, "id": run["id"], "recipe": recipe, "seed": run["seed"], **about})
    noise = random.Random(f"{run['cell']} {run['seed']}")
    pace = speed * noise.uniform(0.95, 1.05)
    rows = [_row(i, points, end, noise, pace) for i in range(1, points + 1)]
    if end in ("diverged", "unfinished", "damaged"):
        rows = rows[: points // 2 + 1]
    write_atomically(folder.metrics_file, "".join(map(line, rows)))
    if end == "unfinished":
        return
    losses = [row["val_loss"] for row in rows]
    last = rows[-1]
    write_json(
        folder.result_file,
        {
            "id": run["id"],
            "status": "diverged" if end == "diverged" else "finished",
            "rows": len(rows) + (end == "damaged"),
            "val_loss": None if end == "diverged" else losses[-1],
            "best_val_loss": min(losses),
            **{key: last[name] for key, name in (("steps", "step"), ("tokens", "tokens"), ("seconds", "seconds"))},
        },
    )


def _row(i: int, points: int, end: float | str, noise: random.Random, pace: float) -> dict[str, Any]:
    """Falls from 6 to its end, and for a diverged run rises after a third."""
    share = i / points
    final = end if isinstance(end, float) else 2.5
    loss = final + (6 - final) * (math.exp(-6 * share) - math.exp(-6)) + 0.01 * (1 - share) * noise.gauss(0, 1)
    if end == "diverged" and share > 1 / 3:
        loss += 400 * (share - 1 / 3) ** 2
    step = 10 * i
    return {"step": step, "tokens": 1024 * step, "seconds": pace * step, "train_loss": loss + 0.05, "lr": 0.02, "val_loss": loss}


def around(center: float, spread: float, *key: object) -> float:
    """A final loss, the same one for the same key."""
    return random.Random(repr(key)).gauss(center, spread)
