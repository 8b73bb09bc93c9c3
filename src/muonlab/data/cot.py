r"""Worked solutions in one style: steps, a line each, then `#### N` with the answer, checked.

Three ways to write an answer are read: GSM8K's line `#### 18`, `\boxed{18}`, and a last sentence "The answer is 18". Where a
solution has several they must agree. GSM8K's calculator spans, <<48/2=24>>24, are computed again, exactly,
and must be what the text goes on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from muonlab.data.numbers import calculate, plain_signs, read_number, rounds_to, write_number
from muonlab.data.sources import Source
from muonlab.data.writing import new_file, refuse_existing
from muonlab.errors import InputError
from muonlab.names import did_you_mean

SPAN = re.compile(r"<<([^<>]*)>>")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)
_SENTENCE = re.compile(r"(?:\b(?:so|thus|hence|therefore),? )?\bthe (?:final )?answer is:?\s*(\S.*?)\s*$", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_UNIT = re.compile(r"\s+(?!(?:and|or|to|by|times|x)\b)[A-Za-z]+(?: [A-Za-z]+){0,2}$")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")


class Unfit(ValueError):
    """Why a solution is set aside: `kind`, the same for many, and `detail`."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


@dataclass(frozen=True)
class Solution:
    """steps: lines, with their calculator spans; answer: its exact value."""

    steps: tuple[str, ...]
    answer: Fraction

    def text(self, *, spans: bool) -> str:
        """The steps and `#### N`; with or without calculator spans."""
        lines = self.steps if spans else tuple(SPAN.sub("", line) for line in self.steps)
        return "\n".join([*lines, f"#### {write_number(self.answer)}"])

    @property
    def shown(self) -> bool:
        """Does the answer, or its negative, stand among the numbers of the steps?"""
        return any(read_number(number) in (self.answer, -self.answer) for number in _NUMBER.findall("\n".join(self.steps)))


def read_solution(text: str) -> Solution:
    """Raises Unfit: no answer, an answer that is no number, answers that differ, a wrong calculator span, no steps."""
    text = plain_signs(text)
    for found in SPAN.finditer(text):
        _check(found[1], text[found.end() :])
    stated, rest = _take_answers(text)
    if not stated:
        raise Unfit("no answer", "expected #### N, \\boxed{N} or at the end: The answer is N")
    values = []
    for answer in stated:
        value = _number(answer)
        if value is None:
            raise Unfit("the answer is no number", repr(answer[:40]))
        values.append(value)
    if len(set(values)) > 1:
        raise Unfit("its answers differ", ", ".join(map(write_number, dict.fromkeys(values))))
    steps = tuple(line for line in (re.sub(r"\s+", " ", line).strip() for line in rest.splitlines()) if line)
    if not steps:
        raise Unfit("no steps", "only an answer")
    return Solution(steps, values[0])


def _check(span: str, after: str) -> None:
    """A span's value is what it says, and what the text goes on with."""
    expression, *shown = (part.strip() for part in span.split("="))
    value = calculate(expression)
    if value is None or not shown:
        raise Unfit("a calculator span cannot be read", f"<<{span[:60]}>>")
    if not all(rounds_to(value, part) for part in shown):
        raise Unfit("a calculator span is wrong", f"<<{span[:60]}>>: it is {write_number(value)}")
    repeated = _NUMBER.match(after.lstrip("$ "))
    if repeated and read_number(repeated[0]) != read_number(shown[-1]):
        raise Unfit("a calculator span is wrong", f"<<{span[:60]}>>: the text goes on with {repeated[0]}")


def _take_answers(text: str) -> tuple[list[str], str]:
    """The answers that a solution states, and the rest of its text."""
    stated: list[str] = []
    text, boxed = _unboxed(text)
    hashes = _HASHES.findall(text)
    lines = _HASHES.sub("", text).rstrip().splitlines()
    if lines and (found := _SENTENCE.search(lines[-1])):
        stated.append(found[1])
        lines[-1] = lines[-1][: found.start()]
    return [*hashes, *boxed, *stated], "\n".join(lines)


def _unboxed(text: str) -> tuple[str, list[str]]:
    r"""The text without its \boxed{...}, but with what they hold, and what the last one holds."""
    last: list[str] = []
    while found := _BOXED.search(text):
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise Unfit("a \\boxed{ that does not end")
        last = [text[found.end() : end - 1]]
        text = text[: found.start()] + last[0] + text[end:]
    return text, last


def _number(answer: str) -> Fraction | None:
    """18, $18$, **18**, \\(18\\), 18 dollars -> 18."""
    answer = answer.strip().rstrip(".").strip("*` ")
    for left, right in (("\\(", "\\)"), ("$", "$")):
        if answer.startswith(left) and answer.endswith(right) and len(answer) > 2:
            answer = answer.removeprefix(left).removesuffix(right).strip()
    return read_number(_UNIT.sub("", answer))


# -- files ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """rows: read; kept: written; reasons: kind -> how many were set aside for it; unshown: numbers of kept rows whose steps do
    not come to the answer; sha256: of the file."""

    rows: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unshown: list[int] = field(default_factory=list)
    sha256: str = ""
    rejected: str | None = None  # the file of what was set aside, if there was anything


def prepare_cot(
    sources: Sequence[Source], out: Path, columns: Sequence[str], *, spans: bool = False, strict: bool = False
) -> Report:
    """Writes the rows whose last column, the worked solution, can be read, in the one style, as JSONL with these columns; the
    others to OUT.rejected.jsonl, as they are, with a reason each. Both files are whole or not there.

    strict: sets aside those whose steps do not come to their answer, too. Raises InputError for a column that the first row
    does not have, where no row is left, and where a file exists already.
    """
    aside = out.with_name(f"{out.name.removesuffix('.jsonl')}.rejected.jsonl")
    refuse_existing(out)
    refuse_existing(aside)
    report, total = Report(), hashlib.sha256()
    with new_file(out) as kept, contextlib.ExitStack() as later:
        rejected = None
        for row in _rows(sources, columns):
            report.rows += 1
            try:
                line = json.dumps(_prepared(row, columns, report, spans=spans, strict=strict)) + "\n"
            except Unfit as unfit:
                report.reasons[unfit.kind] += 1
                rejected = rejected or later.enter_context(new_file(aside))
                rejected.write(json.dumps({"row": report.rows, "reason": str(unfit), **row}, default=str) + "\n")
            else:
                report.kept += 1
                total.update(line.encode())
                kept.write(line)
        if not report.kept:
            why = "; ".join(f"{count}: {kind}" for kind, count in report.reasons.most_common())
            raise InputError(f"{sources[0].name}: none of its {report.rows} rows can be used ({why}); name others with --columns")
    report.sha256, report.rejected = total.hexdigest(), str(aside) if rejected else None
    return report


def _rows(sources: Sequence[Source], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each row's `columns`, as far as it has them."""
    for source in sources:
        if source.kind in ("text", "bin"):
            raise InputError(f"{source.name}: expected rows with columns (JSONL, JSON, CSV, Parquet), got {source.kind}")
        for i, (_, row) in enumerate(source.rows(0, tuple(columns))):
            missing = [name for name in columns if name not in row]
            if missing and i == 0:
                there = f"{did_you_mean(missing[0], row)} (columns: {', '.join(row)})"
                raise InputError(f"{source.name}: no column {missing[0]!r}; {there}; name them with --columns")
            yield {name: row[name] for name in columns if name in row}


def _prepared(row: Mapping[str, Any], columns: Sequence[str], report: Report, *, spans: bool, strict: bool) -> dict[str, Any]:
    for name in columns:
        if not isinstance(row.get(name), str):
            raise Unfit("a column holds no text", f"{name}: {type(row.get(name)).__name__}")
        if not row[name].strip():
            raise Unfit("a column is empty", name)
    solution = read_solution(row[columns[-1]])
    if not solution.shown:
        if strict:
            raise Unfit("no step comes to the answer", write_number(solution.answer))
        report.unshown.append(report.rows)
    return {**row, columns[-1]: solution.text(spans=spans)}
