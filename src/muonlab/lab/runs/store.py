"""The folder of a sweep: what was planned (experiment.json) and one folder for each run. Needs no torch."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.streams import stream_seed
from muonlab.train.run_folder import REDO, RunFolder, format_row, parse_row, read_json, write_json
from muonlab.train.settings import flat

_PLAN, _FAILURES = "experiment.json", "failures.jsonl"


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
    problem: str = ""  # of a damaged one

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("val_loss") is not None]

    def value(self, metric: str) -> float | None:
        """A metric of a finished run. Results from before train_loss stood in them are read from their last row."""
        if metric not in self.result and metric == "train_loss":
            return next((row["train_loss"] for row in reversed(self.rows) if row.get("train_loss") is not None), None)
        return self.result.get(metric)

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


def run_folder_name(cell: str, seed: int, run_id: str) -> str:
    """The folder of a run: readable, safe on every file system, and different for arms that look alike."""
    slug = re.sub(r"[^A-Za-z0-9.=+-]+", "-", cell)[:120]  # file systems end at 255 bytes
    if slug != cell.replace(" ", "-"):  # keep apart what looks alike once its odd characters are gone
        slug += f"-{stream_seed(0, cell) % 16**6:06x}"
    return f"{slug.lstrip('.-')}-seed{seed}-{run_id}"


def read_plan(directory: Path) -> dict[str, Any] | None:
    """The plan in a sweep's folder, None if there is none. Raises InputError if it is damaged."""
    return read_json(directory / _PLAN, "delete this file and sweep again")


def write_plan(directory: Path, plan: dict[str, Any]) -> None:
    """Writes experiment.json, as `merged` makes it. Raises InputError if the folder cannot be written."""
    known = read_plan(directory)
    plan = merged(directory, known, plan)
    if plan == known:
        return
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        write_json(directory / _PLAN, plan)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}; choose another folder with --out") from None


def merged(directory: Path, known: dict[str, Any] | None, plan: dict[str, Any]) -> dict[str, Any]:
    """`plan` on the machine of the earlier one; what decides and was changed since is kept in it, for the report to tell.

    Raises InputError if the folder belongs to another experiment.
    """
    if known is None:
        return plan
    if known["name"] != plan["name"]:
        raise InputError(f"{directory}: holds the experiment {known['name']!r}: choose another folder with --out")
    return {**plan, "machine": known["machine"], "changes": known["changes"] + _changes(known, plan)}


def _changes(known: dict[str, Any], plan: dict[str, Any]) -> list[dict[str, Any]]:
    today = datetime.now(UTC).date().isoformat()
    before, after = ({**p, "arms": [cell["name"] for cell in p["cells"]]} for p in (known, plan))
    keys = ("metric", "target", "margin", "alpha", "baseline", "seeds", "arms", "budget", "race")
    if "search" in plan:
        keys = tuple(key for key in keys if key != "arms")  # a search tries one after the other
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
    """Reads a sweep's folder, finished or not. A race holds the runs that it needed: none is missing. Raises InputError for a
    folder without a sweep."""
    directory = Path(directory)
    plan = read_plan(directory)
    if plan is None:
        raise InputError(f"{directory}: expected the folder of a sweep (with {_PLAN}); run `muonlab sweep EXPERIMENT` first")
    sweep = read_runs(directory, plan)
    if plan.get("race"):
        return Sweep(plan, [run for run in sweep.runs if run.status != "missing"])
    return sweep


def read_runs(directory: Path, plan: dict[str, Any]) -> Sweep:
    """What a sweep's folder holds of a plan's runs, each folder read once."""
    return Sweep(plan, [read_record(directory / "runs", planned) for planned in plan["runs"]])


def read_record(runs: Path, planned: dict[str, Any]) -> RunRecord:
    """What the folder of a planned run (cell, seed, id, folder), which lies in `runs`, says of it."""
    folder = RunFolder(runs / planned["folder"])
    about = (planned["cell"], planned["seed"], planned["folder"])
    try:
        run = folder.run()
        result = folder.result() if folder.result_file.exists() or run is None else None
        rows = [] if run is None else folder.rows()
    except InputError as error:
        return RunRecord(*about, status="damaged", problem=str(error))
    except OSError as error:
        return RunRecord(*about, status="damaged", problem=f"{folder.path}: cannot be read: {error.strerror}")
    if run is None:
        return RunRecord(*about, status="missing")
    if run.get("id") != planned["id"]:
        return RunRecord(*about, status="damaged", problem=f"{folder.path}: holds another run ({run.get('id')}); {REDO}")
    if result is not None and len(rows) != result.get("rows"):
        counted = f"{len(rows)} whole rows of {result.get('rows')} in metrics.jsonl"
        return RunRecord(*about, status="damaged", problem=f"{folder.path}: damaged ({counted}); {REDO}")
    return RunRecord(*about, status=result["status"] if result else "unfinished", result=result or {}, rows=rows, run=run)


def note_failure(directory: Path, folder: str, message: str) -> None:
    """Remembers why a run failed, for the audit; the run itself is left as it is."""
    row = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "folder": folder, "message": message}
    # a full disk is why it failed, maybe: the message was printed too
    with contextlib.suppress(OSError), open(directory / _FAILURES, "a", encoding="utf-8") as file:
        file.write(format_row(row))


def failures(directory: Path) -> dict[str, str]:
    """Run folder -> why its run last failed."""
    try:
        lines = (directory / _FAILURES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    rows = [row for row in map(parse_row, lines) if row is not None]
    return {row["folder"]: row["message"] for row in rows if "folder" in row and "message" in row}
