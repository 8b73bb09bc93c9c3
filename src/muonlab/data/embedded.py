"""Data sets that need no download: arithmetic-words, by its name, as if it were on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from muonlab.data.arithmetic import LEVELS, Split, arithmetic_words
from muonlab.errors import InputError

EMBEDDED = "arithmetic-words"
ROWS: dict[Split, int] = {"train": 50_000, "test": 1_000}

_SPAN = re.compile("<<[^>]*>>")


class Embedded:
    """Rows with the columns question, answer (as in GSM8K, with calculator spans), solution (the same without them) and level.

    subset: the levels, 1, 2, 3 or a range such as 1-3; default: 1. split: train (the default) or test; they share no question. The
    same rows on every machine. Raises InputError for another subset or split.
    """

    kind, size, name = "dataset", None, EMBEDDED

    def __init__(self, subset: str | None, split: str | None) -> None:
        if split not in (None, *ROWS):
            raise InputError(f"{EMBEDDED}: expected the split {' or '.join(ROWS)}, got {split!r}")
        self.levels: tuple[int, ...] = levels(subset or "1", "subset")
        self.split: Split = "test" if split == "test" else "train"
        self.identity = {"name": EMBEDDED, "subset": subset or "1", "split": self.split}
        self._done = 0

    def rows(self, skip: int, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) of the rows after number `skip`."""
        made = arithmetic_words(ROWS[self.split], levels=self.levels, split=self.split)
        for number, problem in enumerate(islice(made, skip, None), skip + 1):
            self._done = number
            solution = _SPAN.sub("", problem.answer)
            yield number, {"question": problem.question, "answer": problem.answer, "solution": solution, "level": problem.level}

    def where(self, number: int) -> str:
        return f"{EMBEDDED}, row {number}"

    def share(self) -> float:
        return self._done / ROWS[self.split]


def levels(text: str, what: str) -> tuple[int, ...]:
    """The levels that "2" or "1-3" names. Raises InputError."""
    found = re.fullmatch(r"([1-3])(?:-([1-3]))?", text)
    named = tuple(level for level in LEVELS if found and int(found[1]) <= level <= int(found[2] or found[1]))
    if not named:
        raise InputError(f"--{what}: expected 1, 2, 3 or a range such as 1-3, got {text!r}")
    return named
