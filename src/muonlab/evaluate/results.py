"""The file of an evaluation, a line for each problem, and the comparison of two of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.data.writing import new_file
from muonlab.errors import InputError, RunError
from muonlab.evaluate.accuracy import Accuracy, PairedAccuracy, accuracy, compare
from muonlab.evaluate.gsm8k import Result

_SHOWN = 3  # problems that are named one by one


def write_results(path: Path, results: Sequence[Result]) -> None:
    """JSONL, whole or not there. Raises RunError where it cannot be written."""
    try:
        with new_file(path) as file:
            for result in results:
                file.write(json.dumps(result.row()) + "\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """{problem: its row}. Raises InputError for what is not the file of an evaluation."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["problem"] in rows:
                raise InputError(f"{path}, line {number}: the problem {row['problem']} for a second time")
            if not isinstance(row["correct"], bool) or not isinstance(row.get("samples", []), list):
                raise TypeError
            rows[row["problem"]] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}, line {number}: expected a line of muonlab eval gsm8k's --out, got {line[:60]!r}") from None
    if not rows:
        raise InputError(f"{path}: expected the answers to some problems, got an empty file")
    return rows


@dataclass(frozen=True)
class Comparison:
    """b against a. notes: what the reader must know of how they differ besides."""

    a: Accuracy
    b: Accuracy
    paired: PairedAccuracy
    notes: tuple[str, ...]


def compare_files(a: Path, b: Path, *, alpha: float = 0.05, margin: float | None = None) -> Comparison:
    """Raises InputError where they do not hold the same problems, or other right answers to them."""
    rows_a, rows_b = read_results(a), read_results(b)
    only_a, only_b = ([key for key in x if key not in y] for x, y in ((rows_a, rows_b), (rows_b, rows_a)))
    if only_a or only_b:
        shared = len(rows_a) - len(only_a)
        raise InputError(
            f"expected the same problems in both files, got {shared} in both, {len(only_a)} only in {a} and {len(only_b)} only in "
            f"{b}; evaluate both on one file"
        )
    other = [key for key, row in rows_a.items() if row.get("gold") != rows_b[key].get("gold")]
    if other:
        raise InputError(f"{a}, {b}: different right answers to the same problem, such as {', '.join(other[:_SHOWN])}")
    right_a, right_b = ([rows[key]["correct"] for key in rows_a] for rows in (rows_a, rows_b))
    notes = []
    rules = [sorted({str(row.get("rule")) for row in rows.values()}) for rows in (rows_a, rows_b)]
    if rules[0] != rules[1]:
        notes.append(f"answers were read by different rules: {', '.join(rules[0])} and {', '.join(rules[1])}")
    counts = [sorted({len(row.get("samples", [])) for row in rows.values()}) for rows in (rows_a, rows_b)]
    if counts[0] != counts[1]:
        notes.append(f"votes of different size: {', '.join(map(str, counts[0]))} and {', '.join(map(str, counts[1]))} samples")
    n = len(rows_a)
    return Comparison(
        accuracy(sum(right_a), n, alpha=alpha),
        accuracy(sum(right_b), n, alpha=alpha),
        compare(right_a, right_b, alpha=alpha, margin=margin),
        tuple(notes),
    )
