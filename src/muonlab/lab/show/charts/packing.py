"""Rows of charts as columns, once each: row by row, names of columns and arms would be most of a page."""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]  # {"rows": n, "columns": {name: values}}


def packed(specs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Table]]:
    """The definitions, with names in place of their data sets, and these data sets, each once although several charts draw it.

    A column with text or gaps is {"levels": its values, "codes": an index into them for each row, null for none}.
    """
    tables: dict[str, Table] = {}
    for spec in specs:
        for name, rows in spec["datasets"].items():
            tables.setdefault(name, _table(rows))
    return [spec | {"datasets": list(spec["datasets"])} for spec in specs], tables


def _table(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"rows": len(rows), "columns": {name: _column([row.get(name) for row in rows]) for name in names}}


def _column(values: list[Any]) -> Any:
    if all(isinstance(value, int | float) for value in values):
        return values
    levels = list(dict.fromkeys(value for value in values if value is not None))
    index = {value: i for i, value in enumerate(levels)}
    return {"levels": levels, "codes": [None if value is None else index[value] for value in values]}
