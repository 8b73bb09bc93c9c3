"""From paths to parsed runs: which files, which kind, which encoding."""

from __future__ import annotations

import codecs
import glob
import gzip
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from muonlab.errors import InputError
from muonlab.lab.importers.parsed import ParsedRun
from muonlab.lab.importers.speedrun import is_speedrun, read_speedrun
from muonlab.lab.importers.tables import read_csv, read_json_lines
from muonlab.lab.importers.tensorboard import is_event_file, read_events

_SUFFIXES = (".txt", ".log", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


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
    return Path(path.name.lower().removesuffix(".gz")).suffix in _SUFFIXES or is_event_file(path)


def read_file(path: Path, given: Mapping[str, str], arm: str | None = None, name: str | None = None) -> list[ParsedRun]:
    """The runs in a file. Raises InputError, with the file's name, for what is no log or holds no evaluation.

    arm: for all runs of the file; default: what the file says, else the folder that a text log lies in, or a table's name.
    name: what the file was called, if it has another name now.
    """
    name = (name or path.name).removesuffix(".gz")
    folder = path.resolve().parent.name or "runs"
    if is_event_file(path):
        runs = [read_events(path, arm or folder, given)]
    else:
        text = _text(path)
        start = text.lstrip()[:1]
        if not start:
            raise InputError(f"{path}: the file is empty")
        if is_speedrun(text):  # before JSON: torchrun's own lines, such as "[rank0]: ...", may come first
            runs = [read_speedrun(text, arm or folder, name)]
        elif start in "{[":
            runs = read_json_lines(text, name, arm or Path(name).stem, given)
        elif any(mark in text.split("\n", 1)[0] for mark in ",;\t"):
            runs = read_csv(text, name, arm or Path(name).stem, given)
        else:
            expected = "lines such as step:100/1000 val_loss:3.5, a table with a header (CSV), or JSON lines"
            raise InputError(f"{path}: not a log that is known here: expected {expected}")
    if arm is not None:  # what was asked for, also where a table names arms of its own
        runs = [replace(run, arm=arm) for run in runs]
    if not runs:
        raise InputError(f"{path}: holds no evaluation: a header and no rows")
    for run in runs:
        if not run.evaluations and not run.diverged:
            which = f"{path}: run {run.name!r}" if run.named else str(path)
            raise InputError(f"{which}: holds no evaluation (no val_loss): it was cut before the first one, or is not a whole log")
    return runs


def _text(path: Path) -> str:
    """The file as text. UTF-16 is what PowerShell's `>` writes."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: cannot be unpacked: {error}: is the file cut?") from None
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text in UTF-8, got other bytes (at {error.start}): convert it, or choose another"
        ) from None
    if "\0" in text:
        raise InputError(f"{path}: expected text, got a binary file")
    return text
