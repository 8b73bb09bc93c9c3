"""What a log says of one run, before it has a folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.runs.collection import has_diverged

_SEVERAL = "more than one run in one file? Name the column that tells them apart (--map run=COLUMN), or keep one run a file"
_COUNTED = ("step", "seconds", "tokens")
Row = dict[str, Any]  # step, and what else is known of tokens, seconds, train_loss, val_loss, lr


@dataclass(frozen=True)
class ParsedRun:
    """arm: as far as the log tells; name: the run's own in the log (a file's name, a column's); seed: where the log states it."""

    arm: str
    name: str
    rows: list[Row]
    planned_steps: int | None = None  # where the log says how long the run was to be
    seed: int | None = None
    source: str | None = None  # the program that wrote the log, if it stands in it; never executed
    facts: dict[str, Any] = field(default_factory=dict)  # provenance that stands in the log: versions, gpu, started
    named: bool = False  # the name belongs to the run, as in a table of many runs: equal rows may be two runs

    @property
    def id(self) -> str:
        """A hash of the content: the same log gives the same id, whatever its file is called."""
        return content_id(self.rows, self.source, self.name if self.named else None)

    @property
    def diverged(self) -> bool:
        return has_diverged(self.rows)

    @property
    def evaluations(self) -> list[Row]:
        return [row for row in self.rows if row.get("val_loss") is not None]

    @property
    def cut_at(self) -> int | None:
        """The last evaluated step if the log ends before the run was to end, else None."""
        last = self.evaluations[-1]["step"] if self.evaluations else 0
        return None if self.diverged or self.planned_steps is None or last >= self.planned_steps else last


def content_id(rows: list[Row], source: str | None, name: str | None) -> str:
    text = json.dumps({"rows": rows, "source": source, "name": name}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Curve:
    """A run's rows in order of step, from what is read line by line; nan becomes None, in val_loss it is a divergence.

    Lines of one step are one row.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._rows: list[Row] = []
        self._problem: str | None = None

    def add(self, step: int, found: Mapping[str, float | int | None]) -> None:
        """One line. What it does not know is None or missing."""
        if self._problem is None:
            self._problem = self._add(step, {key: value for key, value in found.items() if value is not None})

    def _add(self, step: int, known: dict[str, float | int]) -> str | None:
        """What is wrong with it."""
        below = [f"{key} {value}" for key, value in {"step": step, **known}.items() if key in _COUNTED and value < 0]
        if below:
            return f"{', '.join(below)}: expected a number of 0 or more"
        if self._rows and step < self._rows[-1]["step"]:
            return f"step {step} comes after step {self._rows[-1]['step']}: {_SEVERAL}"
        if not self._rows or self._rows[-1]["step"] != step:
            self._rows.append({"step": step})
        row = self._rows[-1]
        for key, value in known.items():
            if key in row and row[key] != value and key not in ("seconds", "lr"):
                return f"step {step} has two values of {key}: {_SEVERAL}"
            row[key] = value
        return None

    def rows(self) -> list[Row]:
        """Raises InputError where steps go down or a value comes twice: that is more than one run."""
        if self._problem is not None:
            raise InputError(f"{self._where}: {self._problem}")
        return [_finite(row) for row in self._rows if len(row) > 1]


def rows_of(values: Iterable[tuple[int, Mapping[str, float | int | None]]], where: str) -> list[Row]:
    """The rows of a Curve. Raises InputError."""
    curve = Curve(where)
    for step, found in values:
        curve.add(step, found)
    return curve.rows()


def _finite(row: Row) -> Row:
    broken = not math.isfinite(row.get("val_loss") or 0.0)
    plain = {key: value if math.isfinite(value) else None for key, value in row.items()}
    return plain | ({"diverged": True} if broken else {})
