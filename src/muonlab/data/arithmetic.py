"""arithmetic-words: word problems that a grammar makes, with worked solutions and answers that are right by construction.

The form is GSM8K's (arXiv 2110.14168): a question, and an answer of steps with calculator spans that ends in `#### N`.

level 1   one addition or subtraction, all numbers below 100
level 2   two or three of them, all numbers below 200
level 3   up to four, with multiplication, division, numbers up to 9999, and sentences that have nothing to do with the answer

Numbers of several digits are added place by place, as one does in one's head: 27 + 45 is 27 + 40 = 67, 67 + 5 = 72. Each step is
then small enough for a small model.

Train and test can share no question. A tenth of all operations (27 + 45, say) is held out by a hash: no problem for training
asks for one of them, whatever its level and seed, and every problem for testing asks for at least one. (27 + 40 may
still be a place-wise step on the way to another sum.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from muonlab.data import arithmetic_grammar as grammar
from muonlab.data.arithmetic_grammar import Operation, Story
from muonlab.data.writing import new_file, refuse_existing
from muonlab.errors import InputError
from muonlab.streams import stream_seed

LEVELS = (1, 2, 3)
Split = Literal["train", "test"]

_HELD_OUT = 0.1  # of all operations
_TRIES = 10_000  # draws in a row that are old or of the other split: then there are hardly any new ones


@dataclass(frozen=True)
class Problem:
    """question and answer as in GSM8K; operations: what the question asks for, before it is worked place by place."""

    question: str
    answer: str
    level: int
    operations: tuple[Operation, ...]


def arithmetic_words(rows: int, *, levels: Sequence[int] = (1,), seed: int = 0, split: Split = "train") -> Iterator[Problem]:
    """`rows` problems with different questions; the first of them are the same for any `rows`. Levels occur equally often.

    Raises InputError for an unknown level, and where the levels have no more questions to give.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise InputError(f"level: expected some of {', '.join(map(str, LEVELS))}, got {', '.join(map(str, levels)) or 'none'}")
    random = Random(stream_seed(seed, "arithmetic-words", *levels))
    seen: set[bytes] = set()
    for row in range(rows):
        level = random.choice(levels)
        for _ in range(_TRIES):
            problem = _draw(random, level)
            question = hashlib.sha256(problem.question.encode()).digest()[:10]
            if split_of(problem.operations) == split and question not in seen:
                break
        else:
            raise InputError(f"arithmetic-words: no more different questions after {row}; ask for fewer rows or more levels")
        seen.add(question)
        yield problem


def write_arithmetic_words(
    path: Path, rows: int, *, levels: Sequence[int] = (1,), seed: int = 0, split: Split = "train"
) -> dict[str, Any]:
    """`arithmetic_words` as JSONL with the columns question, answer, level; whole or not there. Returns rows and sha256.

    Raises InputError as arithmetic_words does, and where the file exists already.
    """
    refuse_existing(path)
    total = hashlib.sha256()
    with new_file(path) as file:
        for problem in arithmetic_words(rows, levels=levels, seed=seed, split=split):
            line = json.dumps({"question": problem.question, "answer": problem.answer, "level": problem.level}) + "\n"
            total.update(line.encode())
            file.write(line)
    return {"rows": rows, "levels": list(levels), "seed": seed, "split": split, "sha256": total.hexdigest()}


def split_of(operations: Sequence[Operation]) -> Split:
    """On which side a problem with these operations stands, for all seeds and levels."""
    return "test" if any(map(_held_out, operations)) else "train"


def _held_out(operation: Operation) -> bool:
    x, sign, y = operation
    if sign in "+*":  # 27 + 45 and 45 + 27 are one
        x, y = sorted((x, y))
    return stream_seed(0, "arithmetic-words", f"{x}{sign}{y}") < _HELD_OUT * 2**63


def _draw(random: Random, level: int) -> Problem:
    story: Story = {1: grammar.one_step, 2: grammar.two_or_three_steps, 3: grammar.many_steps}[level](random)
    steps = [step for operation in story.operations for step in work(*operation)]
    lines = [f"{x} {sign} {y} = <<{x}{sign}{y}={z}>>{z}" for x, sign, y, z in steps]
    return Problem(" ".join(story.sentences), "\n".join([*lines, f"#### {steps[-1][3]}"]), level, tuple(story.operations))


def work(x: int, sign: str, y: int) -> list[tuple[int, str, int, int]]:
    """The steps (x, sign, y, value) of one operation, place by place; the last value is the operation's."""
    if sign in "+-":
        found = []
        for part in _places(y):
            value = x + part if sign == "+" else x - part
            found.append((x, sign, part, value))
            x = value
        return found
    if sign == "*":
        products = [(part, "*", y, part * y) for part in _places(x)]
        total, found = products[0][3], products[:1]
        for product in products[1:]:
            added = work(total, "+", product[3])
            found += [product, *added]
            total = added[-1][3]
        return found
    found, total = [], 0
    for part in _places(x // y):  # 252 / 7: 210 / 7 = 30, 252 - 210 = 42, 42 / 7 = 6, 30 + 6 = 36
        if part * y < x:
            rest = work(x, "-", part * y)
            found += [(part * y, "/", y, part), *rest]
            x = rest[-1][3]
        else:
            found.append((x, "/", y, part))
        if total:
            found.append((total, "+", part, total + part))
        total += part
    return found


def _places(n: int) -> list[int]:
    """305 -> 300, 5."""
    digits = str(n)
    return [int(digit) * 10 ** (len(digits) - i - 1) for i, digit in enumerate(digits) if digit != "0"] or [0]
