"""The folder of a sweep: what was planned (experiment.json) and one folder for each run. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.train.run_folder import RunFolder, read_json, write_json
from muonlab.train.settings import flat

_PLAN = "experiment.json"


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it. status: finished, diverged, unfinished, missing or damaged."""

    cell: str
    seed: int
    folder: str
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("val_loss") is not None]

    def first_at(self, target: float) -> dict[str, Any] | None:
        """The first evaluation at or below `target`, None if there was none."""
        return next((row for row in self.evaluations if row["val_loss"] <= target), None)


@dataclass(frozen=True)
class Sweep:
    """plan: the content of experiment.json; runs: one record for each planned run, in the plan's order."""

    plan: dict[str, Any]
    runs: list[RunRecord]

    def of(self, cell: str) -> list[RunRecord]:
        return [run for run in self.runs if run.cell == cell]


def read_plan(directory: Path) -> dict[str, Any] | None:
    """The plan in a sweep's folder, None if there is none. Raises InputError if it is damaged."""
    return read_json(directory / _PLAN, "delete this file and sweep again")


def write_plan(directory: Path, plan: dict[str, Any]) -> None:
    """Writes experiment.json. What decides and was changed since an earlier sweep is kept in it, for the report to tell.

    Raises InputError if the folder cannot be written or belongs to another experiment.
    """
    known = read_plan(directory)
    if known is not None and known["name"] != plan["name"]:
        raise InputError(f"{directory}: holds the experiment {known['name']!r}: choose another folder with --out")
    if known is not None:
        plan = {**plan, "machine": known["machine"], "changes": known["changes"] + _changes(known, plan)}
        if plan == known:
            return
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        write_json(directory / _PLAN, plan)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}; choose another folder with --out") from None


def _changes(known: dict[str, Any], plan: dict[str, Any]) -> list[dict[str, Any]]:
    today = datetime.now(UTC).date().isoformat()
    before, after = ({**p, "arms": [cell["name"] for cell in p["cells"]]} for p in (known, plan))
    keys = ("metric", "target", "margin", "alpha", "baseline", "seeds", "arms", "budget")
    found = [
        {"date": today, "key": k, "before": before.get(k), "after": after.get(k)}  # old plans lack the newer keys
        for k in keys
        if before.get(k) != after.get(k)
    ]
    further = [p.get("targets", [])[1:] for p in (before, after)]
    if further[0] != further[1]:
        found.append({"date": today, "key": "further targets", "before": further[0], "after": further[1]})
    old, new = ({cell["name"]: flat(cell["recipe"]) for cell in p["cells"]} for p in (known, plan))
    for name in old.keys() & new.keys():
        keys = sorted(k for k in {*old[name], *new[name]} if old[name].get(k) != new[name].get(k))
        found += [{"date": today, "key": f"{name}: {k}", "before": old[name].get(k), "after": new[name].get(k)} for k in keys]
    return sorted(found, key=lambda change: change["key"])


def load_sweep(directory: str | Path) -> Sweep:
    """Reads a sweep's folder, finished or not. Raises InputError if it is none."""
    directory = Path(directory)
    plan = read_plan(directory)
    if plan is None:
        raise InputError(f"{directory}: expected the folder of a sweep (with {_PLAN}); run `muonlab sweep EXPERIMENT` first")
    return Sweep(plan, [read_record(directory / "runs", planned) for planned in plan["runs"]])


def read_record(runs: Path, planned: dict[str, Any]) -> RunRecord:
    """What the folder of a planned run (cell, seed, id, folder), which lies in `runs`, says of it."""
    folder = RunFolder(runs / planned["folder"])
    about = (planned["cell"], planned["seed"], planned["folder"])
    try:
        run, result = folder.run(), folder.result()
    except InputError:
        return RunRecord(*about, status="damaged")
    if run is None:
        return RunRecord(*about, status="missing")
    rows = folder.rows()
    if run["id"] != planned["id"] or (result is not None and len(rows) != result.get("rows")):
        return RunRecord(*about, status="damaged")  # another run's folder, or metrics that are not whole
    return RunRecord(*about, status=result["status"] if result else "unfinished", result=result or {}, rows=rows, run=run)
