"""Runs as rows of figures, from whatever people have: CSV, JSONL, a JSON list, or a folder of runs. Needs no torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.runs.store import read_plan
from muonlab.names import did_you_mean
from muonlab.train.run_folder import RunFolder

_SHOWN = 5  # problems of one kind that are told one by one
_LARGEST = 1e100  # whatever is beyond has diverged, and its square would overflow


@dataclass(frozen=True)
class Row:
    """where: file and line, for messages. source: the file or folder it came from."""

    where: str
    source: Path
    cells: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """columns: in the order in which they first occur. notes: what a reader of the figures must know."""

    path: Path
    rows: list[Row]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row.cells))

    def is_numeric(self, column: str) -> bool:
        """True if no cell of the column is anything but a number or empty."""
        return all(_is_number(cell) for row in self.rows if (cell := row.cells.get(column)) not in (None, ""))

    def require(self, *columns: str) -> None:
        """Raises InputError for a column that no row has."""
        known = self.columns
        problems = [
            f"{self.path}: no column {name!r}; {did_you_mean(name, known)} (columns: {', '.join(known)})"
            for name in columns
            if name not in known
        ]
        if problems:
            raise InputError(*problems)


def read_table(path: Path, *, curves: bool = False) -> Table:
    """A row for each run; with `curves`, of a folder, a row for each line of the runs' metrics. Raises InputError."""
    if path.is_dir():
        return _read_runs(path, curves)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected text (CSV, JSONL or a JSON list), got something else") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    start = text.lstrip()[:1]
    reader = {"{": _json_lines, "[": _json_list}.get(start, _csv)
    rows = reader(path, text) if start else []
    if not rows:
        raise InputError(f"{path}: expected rows, got an empty file")
    return Table(path, rows)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{where}: expected one JSON object on the line, got {_short(line)}") from None
            rows.append(_object(path, where, value))
    return rows


def _json_list(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: broken JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: broken JSON") from None
    return [_object(path, f"{path}, item {i}", value) for i, value in enumerate(values, start=1)]


def _object(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(f'{where}: expected an object such as {{"val_loss": 3.28}}, got {_short(json.dumps(value))}')
    return Row(where, path, value)


def _csv(path: Path, text: str) -> list[Row]:
    header = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    names: list[str] = []
    rows = []
    try:
        for line in reader:
            if not any(cell.strip() for cell in line):
                continue
            where = f"{path}, line {reader.line_num}"
            if not names:
                names = [cell.strip() for cell in line]
                _check_header(where, names)
            elif len(line) != len(names):
                raise InputError(f"{where}: expected {len(names)} cells as in the first line, got {len(line)}")
            else:
                rows.append(Row(where, path, dict(zip(names, (cell.strip() for cell in line), strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: expected CSV: {error}") from None
    return rows


def _check_header(where: str, names: list[str]) -> None:
    if all(_is_number(name) for name in names):
        raise InputError(f"{where}: expected the names of the columns, got {_short(', '.join(names))}; add a line such as val_loss")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{where}: two columns have the name {min(twice)!r}; rename one")


def _read_runs(directory: Path, curves: bool) -> Table:
    """The runs below a folder; a diverged run keeps its row, with nan for every loss."""
    plan = read_plan(directory)
    folders = sorted(file.parent for file in directory.rglob("run.json"))
    if not folders:
        raise InputError(f"{directory}: expected a folder of runs, found no run.json below it")
    arms = {planned["folder"]: planned["cell"] for planned in plan["runs"]} if plan else {}
    rows, unfinished, foreign = [], [], []
    for path in folders:
        folder = RunFolder(path)
        run, result = folder.run() or {}, folder.result()
        name = str(path.relative_to(directory))
        if plan and path.name not in arms:
            foreign.append(name)
            continue
        if result is None:
            unfinished.append(name)
            continue
        arm = arms.get(path.name, run.get("arm"))
        about = {"run": name, **({} if arm is None else {"arm": arm}), "seed": run.get("seed")}
        lost = dict.fromkeys((key for key in result if key.endswith("loss")), math.nan) if result["status"] == "diverged" else {}
        end = {**result, **about, **lost}
        if curves:
            metrics = folder.rows()
            rows += [Row(str(folder.metrics_file), directory, {**row, **about}) for row in metrics]
            end = {**(metrics[-1] if metrics else {}), **about, **lost} if lost else {}
        if end:
            rows.append(Row(str(folder.result_file), directory, end))
    if not rows:
        raise InputError(f"{directory}: none of its {len(folders)} runs has ended; finish them first")
    raced = f"{directory}: a race, which ended where its own test was sure: for its verdicts see `muonlab report {directory}`; "
    return Table(
        directory,
        rows,
        ((raced + "intervals and p-values here are of runs whose number was fixed before",) if plan and plan.get("race") else ())
        + _left_out(len(folders), unfinished, "have not ended")
        + _left_out(len(folders), foreign, "are not in the plan"),
    )


def _left_out(of: int, names: list[str], why: str) -> tuple[str, ...]:
    more = " …" if len(names) > _SHOWN else ""
    return (f"{len(names)} of {of} runs {why} and are left out: {', '.join(names[:_SHOWN])}{more}",) if names else ()


def numbers(rows: Iterable[Row], column: str) -> list[float | None]:
    """The column's figures; None for a row without one (no cell, an empty one, nan, an infinity, beyond 1e100): a diverged run.

    Raises InputError that names the lines whose cell is not a number.
    """
    found: list[float | None] = []
    problems = []
    for row in rows:
        cell = row.cells.get(column)
        if cell is None or cell == "":
            found.append(None)
        elif _is_number(cell):
            value = _float(cell)
            found.append(value if abs(value) <= _LARGEST else None)
        else:
            hint = "; decimals need a point" if isinstance(cell, str) and _is_number(cell.replace(",", ".", 1)) else ""
            problems.append(f"{row.where}: expected a number in {column!r}, got {_short(str(cell))}{hint}")
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise InputError(*problems[:_SHOWN], *more)
    return found


def _is_number(cell: Any) -> bool:
    try:
        _float(cell)
    except (ValueError, TypeError):
        return False
    return not isinstance(cell, bool)


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
