"""The points of an arm's grid: keys of `grid` are crossed with each other, those of `zip` advance together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from muonlab.train.settings import flat, key_parts

Values = dict[str, list[Any]]  # dotted key -> values


@dataclass(frozen=True)
class Grid:
    crossed: Values
    zipped: Values

    def keys(self) -> list[str]:
        return [*self.crossed, *self.zipped]

    def points(self) -> list[dict[str, Any]]:
        """Every point, as dotted key -> value. An arm without a grid has one: {}."""
        together = [dict(zip(self.zipped, row, strict=True)) for row in zip(*self.zipped.values(), strict=True)] or [{}]
        crossed = [dict(zip(self.crossed, row, strict=True)) for row in itertools.product(*self.crossed.values())]
        return [{**point, **row} for point in crossed for row in together]


def without_twins(points: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Every point, with a later one that is written otherwise but is the same: 1 and 1.0, 0.0 and -0.0."""
    for i, point in enumerate(points):
        yield point, next((p for p in points[i + 1 :] if repr(p) != repr(point) and _comparable(p) == _comparable(point)), None)


def _comparable(point: dict[str, Any]) -> dict[str, Any]:
    return {key: (isinstance(value, bool), value) for key, value in point.items()}


def read_grid(shared: Mapping[str, Any], changes: dict[str, Any], where: str, problems: list[str]) -> Grid:
    """Takes `grid` and `zip` out of an arm's changes. shared: the two tables that all arms have, by their names.

    A key may be written nested (grid.optimizer.lr = [..]) or dotted in quotes. What is wrong is added to `problems`.
    """
    tables: dict[str, Values] = {}
    for name in ("grid", "zip"):
        own = changes.pop(name, {})
        if not isinstance(own, Mapping):
            problems.append(f"{where}.{name}: expected a table of key = [values], got {own!r}")
            own = {}
        tables[name] = {**flat(shared[name]), **flat(own)}
        for key, values in tables[name].items():
            if not isinstance(values, list) or not values:
                problems.append(f"{where}.{name}: {key}: expected a list of values, got {values!r}")
        tables[name] = {key: values for key, values in tables[name].items() if isinstance(values, list) and values}
    grid = Grid(tables["grid"], tables["zip"])
    if clash := overlap(list(grid.crossed), list(grid.zipped)):
        problems.append(f"{where}: {clash} stands in both grid and zip: take it out of one")
        return Grid(grid.crossed, {})
    return Grid(grid.crossed, _agreeing(grid.zipped, f"{where}.zip", problems))


def _agreeing(zipped: Values, where: str, problems: list[str]) -> Values:
    """The zipped keys, or none where their lists differ in length."""
    keys = list(zipped)
    differ = [key for key in keys[1:] if len(zipped[key]) != len(zipped[keys[0]])]
    for key in differ:
        first, n, m = keys[0], len(zipped[keys[0]]), len(zipped[key])
        problems.append(f"{where}: {first} has {n} values and {key} has {m}: they advance together, so give them equally many")
    return {} if differ else zipped


def overlap(keys: list[str], others: list[str]) -> str | None:
    """The first of `keys` that is one of `others`, or a table above or below one."""
    return next((k for k in keys for o in others if f"{k}.".startswith(f"{o}.") or f"{o}.".startswith(f"{k}.")), None)


def point_name(arm: str, swept: Mapping[str, Any]) -> str:
    """ "muon lr=0.02": each key by its last part, or whole where two keys end alike."""
    last = {key: key_parts(key)[-1] for key in swept}
    short = {key: part if list(last.values()).count(part) == 1 else key for key, part in last.items()}
    return " ".join([arm, *(f"{short[key]}={value}" for key, value in swept.items())])
