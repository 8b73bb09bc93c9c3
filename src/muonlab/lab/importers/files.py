"""From paths to parsed runs: which files, and which kind."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from muonlab.data.unpacking import COMPRESSIONS, Lines
from muonlab.errors import InputError
from muonlab.lab.importers.log import UNPACK_LIMIT, Log
from muonlab.lab.importers.parsed import ParsedRun
from muonlab.lab.importers.speedrun import read_speedrun
from muonlab.lab.importers.tables import read_csv, read_json, read_parquet
from muonlab.lab.importers.tensorboard import is_event_file, read_events

_SUFFIXES = (".txt", ".log", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_LOOK = 0.3  # of the work with a log: what kind it is, and whether it is whole


def find_files(paths: Iterable[str | Path]) -> dict[Path, int]:
    """Files, folders (everything in them that may be a log) and patterns as files, each with the number of the first path that
    names it, from 1. Raises InputError for what is not there."""
    found: dict[Path, tuple[Path, int]] = {}  # by the file itself, which may be named twice
    problems = []
    for number, given in enumerate(paths, 1):
        files: list[Path] = []
        path = Path(given)
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and _may_be_log(p)]
            files = below
            if not below:
                problems.append(f"{path}: this folder holds no logs ({', '.join(_SUFFIXES)} or TensorBoard's event files)")
        elif path.is_file():
            files = [path]
        elif glob.has_magic(str(given)) and not path.exists():
            files = [Path(match) for match in sorted(glob.glob(str(given), recursive=True)) if Path(match).is_file()]
            if not files:
                problems.append(f"{given}: no file matches this pattern")
        else:
            problems.append(f"{path}: {'not an ordinary file' if path.exists() else 'no such file or folder'}")
        for file in files:
            first = found.get(file.resolve(), (file, number))[1]
            found[file.resolve()] = (file, first)
    if problems:
        raise InputError(*problems)
    return dict(found.values())


def _may_be_log(path: Path) -> bool:
    return Path(_unpacked_name(path.name.lower())).suffix in _SUFFIXES or is_event_file(path)


def _unpacked_name(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in COMPRESSIONS if name.lower().endswith(suffix)), name)


def read_file(
    path: Path, given: Mapping[str, str], arm: str | None = None, name: str | None = None, *,
    unpack_limit: int | None = UNPACK_LIMIT, on_progress: Callable[[float], None] | None = None,
) -> list[ParsedRun]:  # fmt: skip
    """The runs in a file. Raises InputError, with the file's name, for what is no log or holds no evaluation.

    arm: for all runs of the file; default: what the file says, else the folder that a text log lies in, or a table's name.
    name: what the file was called, if it has another name now. unpack_limit, on_progress: see Log.
    """
    name = _unpacked_name(name or path.name)
    folder = path.resolve().parent.name or "runs"
    if is_event_file(path):
        runs = [read_events(path, arm or folder, given)]
    else:
        runs = _runs_in(Log(path, unpack_limit, on_progress), folder, name, given, arm)
    if arm is not None:  # what was asked for, also where a table names arms of its own
        runs = [replace(run, arm=arm) for run in runs]
    if not runs:
        raise InputError(f"{path}: holds no evaluation: a header and no rows")
    for run in runs:
        if not run.evaluations and not run.diverged:
            which = f"{path}: run {run.name!r}" if run.named else str(path)
            raise InputError(f"{which}: holds no evaluation (no val_loss): it was cut before the first one, or is not a whole log")
    return runs


def _runs_in(log: Log, folder: str, name: str, given: Mapping[str, str], arm: str | None) -> list[ParsedRun]:
    """folder: the arm of a text log that is not given one."""
    table_arm = arm or Path(name).stem
    if log.parquet:
        return read_parquet(log, name, table_arm, given)
    look = log.look(end=_LOOK)
    if not look.start:
        raise InputError(f"{log.path}: the file is empty")
    if look.speedrun:  # before JSON: torchrun's own lines, such as "[rank0]: ...", may come first
        with log.text(_LOOK) as file:
            return [read_speedrun(Lines(file, log.path).each(), arm or folder, name)]
    if look.start in "{[":
        return read_json(log, _LOOK, look.start == "[", name, table_arm, given)
    if look.separated:
        return read_csv(log, _LOOK, name, table_arm, given)
    expected = "lines such as step:100/1000 val_loss:3.5, a table with a header (CSV, Parquet), or JSON lines"
    raise InputError(f"{log.path}: not a log that is known here: expected {expected}")
