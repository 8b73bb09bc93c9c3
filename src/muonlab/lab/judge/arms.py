"""Rows of a table gathered into arms: of each run its final value, what it shares with others, and its way to the target."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from muonlab.errors import InputError
from muonlab.lab.runs.tables import Row, Table, numbers
from muonlab.lab.stats import Times

_MINUTES = {"ms": 1 / 60_000, "min": 1.0, "minutes": 1.0}  # any other unit that the pattern allows is seconds
_UNIT = "(?:ms|s|sec|secs|seconds|min|minutes)"
_TIME = re.compile(f"(?:train|training|run)_?time(?:_{_UNIT})?|time_{_UNIT}|(?:train|training)_{_UNIT}|seconds|minutes")


@dataclass(frozen=True)
class Run:
    """value: None if the run diverged. pair: what it shares with a run of another arm. minutes: its training time.

    hit: where on the axis of steps it reached the target, None if never; end: its last step (both only of curves).
    """

    value: float | None
    pair: str | None = None
    minutes: float | None = None
    hit: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Arm:
    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """Of the runs that finished."""
        return [run.value for run in self.runs if run.value is not None]

    @property
    def diverged(self) -> int:
        return len(self.runs) - len(self.values)

    @property
    def minutes(self) -> list[float]:
        return [run.minutes for run in self.runs if run.minutes is not None]

    def times(self, last: float) -> Times:
        """Steps to the target. A miss is censored where the run ended; a diverged one at `last`: it would never have got there."""
        ends = [last if run.value is None or run.end is None else run.end for run in self.runs if run.hit is None]
        return Times(tuple(run.hit for run in self.runs), tuple(ends))

    @property
    def repeated(self) -> str | None:
        """A pair that two runs of this arm claim to belong to: there are no pairs then."""
        return next((pair for pair, n in Counter(run.pair for run in self.runs).items() if n > 1 and pair is not None), None)

    def by_pair(self) -> dict[str, float]:
        """The finished runs by what they share with runs of other arms."""
        return {run.pair: run.value for run in self.runs if run.pair is not None and run.value is not None}


@dataclass(frozen=True)
class Columns:
    """Which column is what. arm: None for one arm a file. steps: the axis of curves, None where each row is a whole run."""

    value: str = "val_loss"
    arm: str | None = None
    pair: str | None = None
    steps: str | None = None
    run: str = "run"


def time_column(tables: Sequence[Table], value: str) -> str | None:
    """The column of numbers that holds training time by its name (train_ms, train_time, seconds …), None if there is none."""
    names = dict.fromkeys(name for table in tables for name in table.columns if name != value and _TIME.fullmatch(name.lower()))
    return next((name for name in names if all(table.is_numeric(name) for table in tables)), None)


def gather(tables: Sequence[Table], columns: Columns, target: float | None = None) -> list[Arm]:
    """The arms in the order of the rows. Raises InputError for missing columns and cells that are not numbers."""
    grouped: dict[str, list[Row]] = {}
    paths = [table.path for table in tables]
    for table in tables:
        table.require(*(name for name in (columns.value, columns.arm, columns.pair, columns.steps) if name is not None))
        stem = table.path.stem if [p.stem for p in paths].count(table.path.stem) == 1 else str(table.path)
        for row in table.rows:
            if columns.arm is not None and row.cells.get(columns.arm) in (None, ""):
                raise InputError(f"{row.where}: expected the name of an arm in {columns.arm!r}, got nothing")
            name = stem if columns.arm is None else str(row.cells[columns.arm])
            grouped.setdefault(name, []).append(row)
        if columns.arm is None:
            _refuse_several_arms(table)
        if columns.steps is None:
            _refuse_curves(table, columns)
        else:
            table.require(columns.run)
    time = time_column(tables, columns.value)
    runs = _whole_runs if columns.steps is None else _curves
    return [Arm(name, runs(rows, columns, time, target)) for name, rows in grouped.items()]


def _refuse_several_arms(table: Table) -> None:
    names = list(dict.fromkeys(str(row.cells["arm"]) for row in table.rows if "arm" in row.cells))
    if len(names) > 1:
        raise InputError(f"{table.path}: holds several arms ({', '.join(names[:3])} …) that must not be mixed; add --by arm")


def _refuse_curves(table: Table, columns: Columns) -> None:
    """A log of losses over steps is not a sample of runs: its rows hang together."""
    if "step" not in table.columns or columns.value == "step":
        return
    names = [name for name in (columns.run, "seed") if name in table.columns]
    seen: set[tuple[str, str]] = set()
    for row in table.rows if names else []:
        key = (str(row.cells.get(columns.arm or "")), str(row.cells.get(names[0])))
        if key in seen:
            remedy = f"--steps step --run {names[0]}"
            raise InputError(f"{row.where}: a second row of {names[0]} {key[1]}: if rows are steps, not runs, add {remedy}")
        seen.add(key)
    steps = [step for step in numbers(table.rows, "step") if step is not None]
    rises = sum(a < b for a, b in pairwise(steps))
    if not names and len(steps) > 3 and rises > 0.8 * (len(steps) - 1):
        raise InputError(f"{table.path}: its rows look like steps, not like runs; expected final values, one row a run")


def _whole_runs(rows: list[Row], columns: Columns, time: str | None, _target: float | None) -> list[Run]:
    values = numbers(rows, columns.value)
    minutes = _minutes(rows, time)
    return [Run(value, _pair(row, columns), spent) for row, value, spent in zip(rows, values, minutes, strict=True)]


def _curves(rows: list[Row], columns: Columns, time: str | None, target: float | None) -> list[Run]:
    """Rows without the value (training steps, say) are no evaluations; a run whose last evaluation is not finite has diverged."""
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        if row.cells.get(columns.run) in (None, ""):
            raise InputError(f"{row.where}: expected the name of a run in {columns.run!r}, got nothing")
        by_run.setdefault(str(row.cells[columns.run]), []).append(row)
    return [_curve(name, run, columns, time, target) for name, run in by_run.items()]


def _curve(name: str, rows: list[Row], columns: Columns, time: str | None, target: float | None) -> Run:
    axis = str(columns.steps)
    evaluations = [row for row in rows if row.cells.get(columns.value) not in (None, "")]
    curve: list[tuple[float, float | None]] = []
    for row, step, value in zip(evaluations, numbers(evaluations, axis), numbers(evaluations, columns.value), strict=True):
        if step is None:
            raise InputError(f"{row.where}: run {name!r} has a value without a number in {axis!r}")
        curve.append((step, value))
    curve.sort(key=lambda point: point[0])
    twice = next((a for (a, before), (b, after) in pairwise(curve) if a == b and None not in (before, after)), None)
    if twice is not None:
        raise InputError(f"{rows[0].where}: run {name!r} has two values at {axis} {twice:g}; name single runs with --run COLUMN")
    hit = next((step for step, value in curve if target is not None and value is not None and value <= target), None)
    spent = [m for m in _minutes(rows, time) if m is not None]
    end, value = curve[-1] if curve else (None, None)
    return Run(value, _pair(rows[0], columns), max(spent, default=None), hit, end)


def _pair(row: Row, columns: Columns) -> str | None:
    cell = None if columns.pair is None else row.cells.get(columns.pair)
    return None if cell in (None, "") else str(cell)


def _minutes(rows: list[Row], time: str | None) -> list[float | None]:
    if time is None:
        return [None] * len(rows)
    unit = re.split("_", time.lower())[-1]
    scale = _MINUTES.get(unit, 1 / 60)
    return [None if value is None else value * scale for value in numbers(rows, time)]
