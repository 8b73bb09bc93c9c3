"""An index of all runs below a directory (SQLite), for looking things up. Never the truth: it is made from the run folders, brought
up to date whenever it is asked, and made anew where it is missing or damaged."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.runs.store import read_plan
from muonlab.train.run_folder import RunFolder

INDEX = "index.sqlite"
_COLUMNS = {
    "folder": "TEXT PRIMARY KEY",  # relative to the directory
    "stamp": "TEXT",  # changes when the run's files do
    "id": "TEXT",
    "experiment": "TEXT",
    "cell": "TEXT",
    "seed": "INTEGER",
    "status": "TEXT",  # finished, diverged, unfinished or damaged
    "optimizer": "TEXT",
    "lr": "REAL",
    "steps": "INTEGER",
    "tokens": "INTEGER",
    "seconds": "REAL",
    "val_loss": "REAL",
    "best_val_loss": "REAL",
    "started": "TEXT",
}


def runs(directory: str | Path) -> list[dict[str, Any]]:
    """One row for each run folder below `directory`, in order of their names. Reads only folders that have changed."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: expected a folder with runs")
    try:
        return _update(directory, directory / INDEX)
    except sqlite3.DatabaseError:  # damaged, of an older version, or where nothing can be written
        return rebuild(directory)


def rebuild(directory: str | Path) -> list[dict[str, Any]]:
    """Makes the index anew from the folders alone. Where it cannot be written, it is made in memory."""
    directory = Path(directory)
    fresh = directory / f"{INDEX}.{os.getpid()}.tmp"
    try:
        fresh.unlink(missing_ok=True)
        found = _update(directory, fresh)
        os.replace(fresh, directory / INDEX)
    except (OSError, sqlite3.DatabaseError):
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        return _update(directory, ":memory:")
    return found


def _update(directory: Path, database: Path | str) -> list[dict[str, Any]]:
    names = ", ".join(_COLUMNS)
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS runs ({', '.join(f'{k} {v}' for k, v in _COLUMNS.items())}) STRICT")
        known = dict(connection.execute("SELECT folder, stamp FROM runs"))
        connection.execute(f"SELECT {names} FROM runs LIMIT 0")  # raises where the columns are others
        there = {path.relative_to(directory).as_posix(): path for path in _folders(directory)}
        connection.executemany("DELETE FROM runs WHERE folder = ?", [(name,) for name in known if name not in there])
        plans: dict[Path, dict[str, Any]] = {}
        for name, path in there.items():
            if (stamp := _stamp(path)) != known.get(name):
                row = {"folder": name, "stamp": stamp, **_read(path, plans)}
                marks = ", ".join(f":{column}" for column in _COLUMNS)
                connection.execute(f"INSERT OR REPLACE INTO runs ({names}) VALUES ({marks})", {**dict.fromkeys(_COLUMNS), **row})
        rows = connection.execute(f"SELECT {names} FROM runs ORDER BY folder").fetchall()
    return [{key: value for key, value in zip(_COLUMNS, row, strict=True) if key != "stamp"} for row in rows]


def _folders(directory: Path) -> Iterator[Path]:
    """Every folder with a run.json; what lies below a run is its own."""
    for path, below, files in os.walk(directory):
        below.sort()
        if "run.json" in files:
            below.clear()
            yield Path(path)


def _stamp(path: Path) -> str:
    found = []
    for name in ("run.json", "result.json"):
        try:
            about = (path / name).stat()
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        except OSError:
            found.append(None)
    return json.dumps(found)


def _read(path: Path, plans: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    folder = RunFolder(path)
    try:
        run, result = folder.run(), folder.result()
    except InputError:
        return {"status": "damaged"}
    if run is None:  # deleted meanwhile
        return {"status": "damaged"}
    home = path.parent.parent
    if home not in plans:
        try:
            plans[home] = (read_plan(home) if path.parent.name == "runs" else None) or {}
        except InputError:
            plans[home] = {}
    planned = next((p for p in plans[home].get("runs", []) if p["folder"] == path.name), {})
    optimizer = run.get("recipe", {}).get("optimizer", {})
    row = {"id": run["id"], "seed": run.get("seed"), "experiment": plans[home].get("name")}
    row |= {
        "cell": planned.get("cell", run.get("arm")),
        "status": "unfinished",
        "started": run.get("provenance", {}).get("started"),
    }
    row |= {"optimizer": optimizer.get("name"), "lr": optimizer.get("lr")}
    keys = ("status", "steps", "tokens", "seconds", "val_loss", "best_val_loss")
    return row | {key: result.get(key) for key in keys if result is not None}
