"""Tables: one row an evaluation (CSV, JSONL, a JSON list), or W&B's export with a column for each run, or TensorBoard's of one."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.importers.columns import ALIASES, NUMBERS, choose_columns, plain
from muonlab.lab.importers.parsed import ParsedRun, rows_of

Record = tuple[int, dict[str, Any]]  # line number, column -> value


def read_csv(text: str, name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a CSV file (separated by comma, semicolon or tab). Raises InputError, all problems of the file at once."""
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    header = [column.strip() for column in next(reader, [])]
    if len({*header}) < len(header):
        raise InputError(f"{name}: expected a header with different names, got {', '.join(header)}")
    records: list[Record] = []
    problems = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            problems.append(f"{name}: line {reader.line_num}: expected {len(header)} values, got {len(cells)}: is the file cut?")
        records.append((reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))))
    if problems:
        raise InputError(*problems[:5])
    if header == ["Wall time", "Step", "Value"]:
        return [_tensorboard(records, name, arm, given)]
    if exported := _wandb_columns(header, given):
        return _wandb(records, header, exported, name, arm)
    return read_records(records, header, name, arm, given)


def read_json_lines(text: str, name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a JSONL file, or of one JSON list of objects (as W&B's history gives). Raises InputError."""
    records: list[Record] = []
    try:
        if text.lstrip().startswith("["):
            records = list(enumerate(json.loads(text), 1))
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    records.append((number, json.loads(line)))
    except (ValueError, RecursionError) as error:
        where = f"line {len(records) + 1}" if not text.lstrip().startswith("[") else "the file"
        raise InputError(f"{name}: {where}: not JSON ({str(error)[:80]}): is the file cut?") from None
    odd = next((number for number, record in records if not isinstance(record, dict)), None)
    if odd is not None:
        raise InputError(f'{name}: row {odd}: expected an object such as {{"step": 100, "val_loss": 3.2}}')
    header = list(dict.fromkeys(key for _, record in records for key in record))
    return read_records(records, header, name, arm, given)


def read_records(records: list[Record], header: list[str], name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a table with a row for each evaluation; `arm`: for tables that do not name one."""
    columns = choose_columns(header, given, name)
    if "val_loss" not in columns:
        raise InputError(f"{name}: holds no evaluation: expected a column val_loss, got {_listed(header)}; --map val_loss=COLUMN")
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    problems: list[str] = []
    keys = [key for key in ("run", "seed") if key in columns]
    for number, record in records:
        values = {
            key: _cell(record.get(columns[key]), f"{name}: line {number}: {key}", problems) for key in NUMBERS if key in columns
        }
        run = "/".join(_text(record.get(columns[key])) for key in keys)
        grouped.setdefault((_text(record.get(columns["arm"])) if "arm" in columns else arm, run), []).append(values)
    if problems:
        raise InputError(*problems[:5], *([f"{name}: and {len(problems) - 5} more such lines"] if len(problems) > 5 else []))
    if "step" not in columns and any(len(rows) > 1 for rows in grouped.values()):
        raise InputError(f"{name}: expected a column step, got {_listed(header)}; name it with --map step=COLUMN")
    named = bool(keys)
    return [_run(group_arm or arm, run, rows, name, named) for (group_arm, run), rows in grouped.items()]


def _run(arm: str, run: str, rows: list[dict[str, Any]], name: str, named: bool) -> ParsedRun:
    totals = {int(row["total_steps"]) for row in rows if row.get("total_steps") is not None}
    seeds = {int(row["seed"]) for row in rows if row.get("seed") is not None}
    where = f"{name}: run {run!r}" if named else name
    if len(totals) > 1:
        raise InputError(f"{where}: total_steps: expected one value a run, got {', '.join(map(str, sorted(totals)))}")
    if any(row.get("step", 0) is None and row.get("val_loss") is not None for row in rows):
        raise InputError(f"{where}: a row has a val_loss and no step")
    values = []
    for row in rows:
        if row.get("step", 1) is None:
            continue  # a row of an export that knows of other things
        found = {key: row.get(key) for key in ("tokens", "train_loss", "val_loss", "lr", "seconds")}
        if row.get("ms") is not None:
            found["seconds"] = round(row["ms"] * 1e-3, 6)
        if found["val_loss"] is not None or found["train_loss"] is not None:
            values.append((int(row.get("step", 1)), found))
    values.sort(key=lambda pair: pair[0]) if named else None
    return ParsedRun(arm, run or name, rows_of(values, where), max(totals, default=None), min(seeds, default=None), named=named)


def _cell(value: Any, where: str, problems: list[str]) -> float | int | None:
    """A number, None for an empty cell. JSON's numbers and text that is a number are both fine."""
    if value is None or value == "" or value == "null":
        return None
    whole = where.endswith((": step", ": seed", ": total_steps", ": tokens"))
    try:
        number = float("true" if isinstance(value, bool) else value)
        if whole and number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        problems.append(f"{where}: expected a {'whole ' if whole else ''}number, got {value!r}")
        return None
    return int(number) if whole else number


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _listed(header: list[str]) -> str:
    shown = ", ".join(header[:8]) or "none"
    return shown + (f" and {len(header) - 8} more" if len(header) > 8 else "")


def _tensorboard(records: list[Record], name: str, arm: str, given: Mapping[str, str]) -> ParsedRun:
    """A CSV download of one curve, run-NAME-tag-TAG.csv; what the tag says of the curve decides what it is."""
    match = re.match(r"run-(.+)-tag-(.+)\.csv$", name)
    tag = match[2] if match else ""
    if given.get("val_loss") not in ("Value", tag) and plain(tag) not in ALIASES["val_loss"]:
        raise InputError(
            f"{name}: a TensorBoard download of {tag or 'an unnamed curve'}: if it is the val_loss, --map val_loss=Value"
        )
    columns = {"step": "Step", "val_loss": "Value"}
    run = read_records(records, ["Step", "Value"], name, match[1].rstrip(".") if match else arm, columns)[0]
    return ParsedRun(run.arm, match[1] if match else name, run.rows)


def _wandb_columns(header: list[str], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """run -> key -> column, for W&B's "RUN - METRIC" columns."""
    found: dict[str, dict[str, str]] = {}
    wanted = {key: {plain(given[key])} if key in given else {*ALIASES[key]} for key in ("val_loss", "train_loss", "tokens", "lr")}
    for column in header:
        run, dash, metric = column.rpartition(" - ")
        for key, names in wanted.items():
            if dash and plain(metric) in names:
                found.setdefault(run, {})[key] = column
    return {run: columns for run, columns in found.items() if "val_loss" in columns}


def _wandb(records: list[Record], header: list[str], exported: dict[str, dict[str, str]], name: str, arm: str) -> list[ParsedRun]:
    """A chart's export: one column a run, and two more with the smallest and largest of what was merged into a point."""
    axis = next((column for column in header if plain(column) in ALIASES["step"]), None)
    if axis is None:
        raise InputError(f"{name}: expected the column Step, got {_listed(header)}: export the chart with steps on its x axis")
    runs = []
    for run, columns in exported.items():
        low, high = f"{columns['val_loss']}__MIN", f"{columns['val_loss']}__MAX"
        if any(record.get(low) != record.get(high) for _, record in records):
            raise InputError(
                f"{name}: run {run!r}: its points are averages (the columns __MIN and __MAX differ): export it without grouping, "
                "smoothing and sampling"
            )
        parsed = read_records(records, header, name, run, {"step": axis, **columns})
        if len(parsed) != 1:
            raise InputError(f"{name}: run {run!r}: expected one curve, got {len(parsed)}")
        base, seed = _without_seed(run)
        runs.append(ParsedRun(base, run, parsed[0].rows, seed=seed, named=True))
    return runs


def _without_seed(run: str) -> tuple[str, int | None]:
    """ "muon_seed3" is the run of arm "muon" with seed 3; nothing is guessed from a bare number."""
    match = re.fullmatch(r"(.+?)[-_ /.,]*\bseed[-_ =]?(\d+)|(.+?)[-_ /.,]+seed[-_ =]?(\d+)", run)
    if match is None:
        return run, None
    return (match[1] or match[3]), int(match[2] or match[4])
