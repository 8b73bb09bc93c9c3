"""Tables: one row an evaluation (CSV, JSONL, a JSON list, Parquet), or a chart of W&B's or TensorBoard's."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from muonlab.data.formats import json_rows, rows_at_a_time
from muonlab.data.unpacking import Lines
from muonlab.errors import InputError
from muonlab.lab.importers.columns import ALIASES, NUMBERS, choose_columns, plain
from muonlab.lab.importers.log import Log
from muonlab.lab.importers.parsed import Curve, ParsedRun

_SHOWN = 5  # problems of one table
Record = tuple[int, dict[str, Any]]  # line number, column -> value


def read_csv(log: Log, begin: float, name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a CSV file (separated by comma, semicolon or tab). Raises InputError, with a few problems of the file at once."""
    csv.field_size_limit((1 << 31) - 1)  # Lines bounds them: the module's own limit is 128 KiB, and it knows no other way
    with log.text(begin) as file:
        lines = Lines(file, log.path)
        first = next(lines, "")
        reader = csv.reader(itertools.chain([first], lines), delimiter=max(",;\t", key=first.count))
        try:
            header = [column.strip() for column in next(reader, [])]
            if len({*header}) < len(header):
                raise InputError(f"{name}: expected a header with different names, got {', '.join(header)}")
            records = _csv_records(reader, lines, header, name)
            if header == ["Wall time", "Step", "Value"]:
                return _tensorboard(records, name, arm, given)
            if exported := _wandb_columns(header, given):
                return _wandb(records, header, exported, name)
            return read_records(records, header, name, arm, given)
        except csv.Error as error:
            raise InputError(f"{name}: line {reader.line_num}: not CSV ({error})") from None


def _csv_records(reader: Any, lines: Lines, header: list[str], name: str) -> Iterator[Record]:
    problems: list[str] = []
    for cells in reader:
        lines.row()
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            problems.append(f"{name}: line {reader.line_num}: expected {len(header)} values, got {len(cells)}: is the file cut?")
            if len(problems) == _SHOWN:
                break
        yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))
    if problems:
        raise InputError(*problems)


def read_json(log: Log, begin: float, listed: bool, name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a JSONL file, or of one JSON list of objects (as W&B's history gives). Raises InputError."""
    header: dict[str, None] = {}  # of all rows: a column may be missing in the first ones
    middle = (1 + begin) / 2
    for _, record in _objects(log, begin, middle, listed, name):
        header |= dict.fromkeys(record)
    return read_records(_objects(log, middle, 1.0, listed, name), [*header], name, arm, given)


def _objects(log: Log, begin: float, end: float, listed: bool, name: str) -> Iterator[Record]:
    with log.text(begin, end) as file:
        for number, value in json_rows(file, log.path) if listed else _json_lines(Lines(file, log.path), name):
            if not isinstance(value, dict):
                raise InputError(f'{name}: row {number}: expected an object such as {{"step": 100, "val_loss": 3.2}}')
            yield number, value


def _json_lines(lines: Lines, name: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines.each(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}: line {number}: not JSON ({str(error)[:80]}): is the file cut?") from None
            yield number, value


def read_parquet(log: Log, name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a Parquet file: a row for each evaluation. Only the columns of use are read, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(log.path, pre_buffer=False, buffer_size=1 << 20) as file:
            header = file.schema_arrow.names
            if len({*header}) < len(header):
                raise InputError(f"{name}: expected columns with different names, got {', '.join(header)}")
            return read_records(_parquet_records(log, file, choose_columns(header, given, name)), header, name, arm, given)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{log.path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _parquet_records(log: Log, file: Any, columns: Mapping[str, str]) -> Iterator[Record]:
    wanted = [*dict.fromkeys(columns.values())]
    number = size = 0
    for batch in file.iter_batches(batch_size=rows_at_a_time(file.metadata, wanted), columns=wanted):
        size += batch.nbytes
        if log.limit is not None and size > log.limit:
            raise log.too_large()
        for row in batch.to_pylist():
            number += 1
            yield number, row
        log.done(number / max(1, file.metadata.num_rows))


class _Problems:
    """Those of a table's cells: the first few, and how many there are."""

    def __init__(self, name: str) -> None:
        self._name, self._first, self._count = name, [], 0

    def add(self, number: int, key: str, problem: str) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            self._first.append(f"{self._name}: line {number}: {key}: {problem}")

    def complain(self) -> None:
        if self._count:
            more = self._count - _SHOWN
            raise InputError(*self._first, *([f"{self._name}: and {more} more such lines"] if more > 0 else []))


def read_records(records: Iterable[Record], header: list[str], name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """The runs of a table with a row for each evaluation; `arm`: for tables that do not name one."""
    columns = choose_columns(header, given, name)
    if "val_loss" not in columns:
        raise InputError(f"{name}: holds no evaluation: expected a column val_loss, got {_listed(header)}; --map val_loss=COLUMN")
    grouped: dict[tuple[str, str], _Group] = {}
    problems = _Problems(name)
    keys = [key for key in ("run", "seed") if key in columns]
    numbers = [(key, columns[key]) for key in NUMBERS if key in columns]
    for number, record in records:
        values = {key: _cell(record.get(column), number, key, problems) for key, column in numbers}
        run = "/".join(_text(record.get(columns[key])) for key in keys)
        group_arm = _text(record.get(columns["arm"])) if "arm" in columns else arm
        group = grouped.get((group_arm, run))
        if group is None:
            where = f"{name}: run {run!r}" if keys else name
            group = grouped[group_arm, run] = _Group(group_arm or arm, run, where, bool(keys))
        group.add(values)
    problems.complain()
    if "step" not in columns and any(group.count > 1 for group in grouped.values()):
        raise InputError(f"{name}: expected a column step, got {_listed(header)}; name it with --map step=COLUMN")
    return [group.run(name) for group in grouped.values()]


class _Group:
    """The rows of one run, as they come."""

    def __init__(self, arm: str, run: str, where: str, named: bool) -> None:
        self._arm, self._name, self._where, self._named = arm, run, where, named
        self.count = 0
        self._totals: set[int] = set()
        self._seed: int | None = None
        self._stepless = False
        self._curve = Curve(where)
        self._values: list[tuple[int, dict[str, Any]]] = []  # of a named run: to be sorted

    def add(self, row: dict[str, Any]) -> None:
        self.count += 1
        total, seed, step = row.get("total_steps"), row.get("seed"), row.get("step", 1)
        if total is not None and len(self._totals) < _SHOWN:
            self._totals.add(total)
        if seed is not None:
            self._seed = seed if self._seed is None else min(seed, self._seed)
        if step is None:  # a row of an export that knows of other things
            self._stepless = self._stepless or row.get("val_loss") is not None
            return
        found = {key: row[key] for key in ("tokens", "train_loss", "val_loss", "lr", "seconds") if row.get(key) is not None}
        if row.get("ms") is not None:
            found["seconds"] = round(row["ms"] * 1e-3, 6)
        if "val_loss" not in found and "train_loss" not in found:
            return
        if not self._named:
            self._curve.add(step, found)
        elif not self._values or self._values[-1] != (step, found):
            self._values.append((step, found))

    def run(self, name: str) -> ParsedRun:
        if len(self._totals) > 1:
            raise InputError(
                f"{self._where}: total_steps: expected one value a run, got {', '.join(map(str, sorted(self._totals)))}"
            )
        if self._stepless:
            raise InputError(f"{self._where}: a row has a val_loss and no step")
        for step, found in sorted(self._values, key=lambda pair: pair[0]):
            self._curve.add(step, found)
        total = max(self._totals, default=None)
        return ParsedRun(self._arm, self._name or name, self._curve.rows(), total, self._seed, named=self._named)


def _cell(value: Any, number: int, key: str, problems: _Problems) -> float | int | None:
    """A number, None for an empty cell. JSON's numbers and text that is a number are both fine."""
    if value is None or value == "" or value == "null":
        return None
    whole = key in ("step", "seed", "total_steps", "tokens")
    try:
        found = float("true" if isinstance(value, bool) else value)
        if whole and found != int(found):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        got = repr(value)
        got = got if len(got) <= 80 else f"{got[:80]}…"
        problems.add(number, key, f"expected a {'whole ' if whole else ''}number, got {got}")
        return None
    return int(found) if whole else found


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _listed(header: list[str]) -> str:
    shown = ", ".join(header[:8]) or "none"
    return shown + (f" and {len(header) - 8} more" if len(header) > 8 else "")


def _tensorboard(records: Iterable[Record], name: str, arm: str, given: Mapping[str, str]) -> list[ParsedRun]:
    """A CSV download of one curve, run-NAME-tag-TAG.csv; what the tag says of the curve decides what it is."""
    match = re.match(r"run-(.+)-tag-(.+)\.csv$", name)
    tag = match[2] if match else ""
    if given.get("val_loss") not in ("Value", tag) and plain(tag) not in ALIASES["val_loss"]:
        raise InputError(
            f"{name}: a TensorBoard download of {tag or 'an unnamed curve'}: if it is the val_loss, --map val_loss=Value"
        )
    columns = {"step": "Step", "val_loss": "Value"}
    runs = read_records(records, ["Step", "Value"], name, match[1].rstrip(".") if match else arm, columns)
    return [ParsedRun(run.arm, match[1] if match else name, run.rows) for run in runs]


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


def _wandb(records: Iterable[Record], header: list[str], exported: dict[str, dict[str, str]], name: str) -> list[ParsedRun]:
    """A chart's export: one column a run, and two more with the smallest and largest of what was merged into a point."""
    axis = next((column for column in header if plain(column) in ALIASES["step"]), None)
    if axis is None:
        raise InputError(f"{name}: expected the column Step, got {_listed(header)}: export the chart with steps on its x axis")
    used = {column for columns in exported.values() for column in columns.values()}
    used |= {column for column in header if any(plain(column) in names for names in ALIASES.values())}
    used |= {f"{columns['val_loss']}__{end}" for columns in exported.values() for end in ("MIN", "MAX")}
    rows = [(number, {column: value for column, value in record.items() if value and column in used}) for number, record in records]
    runs = []
    for run, columns in exported.items():
        low, high = f"{columns['val_loss']}__MIN", f"{columns['val_loss']}__MAX"
        if any(record.get(low) != record.get(high) for _, record in rows):
            raise InputError(
                f"{name}: run {run!r}: its points are averages (the columns __MIN and __MAX differ): export it without grouping, "
                "smoothing and sampling"
            )
        parsed = read_records(rows, header, name, run, {"step": axis, **columns})
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
