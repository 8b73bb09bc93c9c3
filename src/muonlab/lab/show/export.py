"""Tidy tables: one row a run, one row a logged point. CSV and Parquet hold the same columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from muonlab.files import write_atomically
from muonlab.lab.judge.results import Results, value_of
from muonlab.lab.judge.targets import CLOCKS, targets_of
from muonlab.train.run_folder import ENDED

Columns = dict[str, list[Any]]  # name -> one value a row, None where there is none


def runs_table(results: Results) -> Columns:
    """Each planned run: cell, arm, swept keys, seed, status, metrics, and for each target whether and when it was reached."""
    arms = {arm.name: arm for arm in results.arms}
    swept = list(dict.fromkeys(key for arm in results.arms for key in results.point(arm)))
    rows = []
    for run in results.runs:
        arm = arms[run.cell]
        row: dict[str, Any] = {"cell": run.cell, "arm": arm.arm, "seed": run.seed, "status": run.status}
        row |= {key: results.point(arm).get(key) for key in swept}
        row |= {key: value_of(run, key) for key in ("val_loss", "best_val_loss", "train_loss", "seconds")}
        row |= {key: run.result.get(key) for key in ("steps", "tokens", "skipped")}
        for target in targets_of(results.plan):
            hit = run.first_at(target)
            row[f"reached_{target:g}"] = hit is not None if hit is not None or run.status in ENDED else None
            row |= {f"{clock}_to_{target:g}": (hit or {}).get(key) for clock, key in CLOCKS.items()}
        rows.append(row | {"id": run.run.get("id"), "folder": run.folder})
    return _columns(rows)


def curves_table(results: Results) -> Columns:
    """Every logged row of every run, with all numbers that were logged."""
    rows = [{"cell": run.cell, "seed": run.seed, **row} for run in results.runs for row in run.rows]
    return _columns(rows)


def _columns(rows: list[dict[str, Any]]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _one_type([row.get(name) for row in rows]) for name in names}


def _one_type(values: list[Any]) -> list[Any]:
    """A column of one type: what is neither all numbers, all booleans nor all text becomes JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {list, dict}:
        return values
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def write_csv(path: Path, columns: Columns) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(path, text.getvalue())


def write_parquet(path: Path, columns: Columns) -> None:
    import pyarrow
    from pyarrow import parquet

    temporary = path.with_name(path.name + ".tmp")
    parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)
