"""`muonlab data arithmetic-words`: a generated task. Heavy imports wait until a command needs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from muonlab.cli.app import Json, positive, show
from muonlab.cli.data import data
from muonlab.errors import InputError


@data.command(name="arithmetic-words")
def arithmetic_words(
    *,
    out: Path,
    rows: int = 20_000,
    level: Annotated[str, Parameter(help="1, 2, 3 or a range such as 1-3")] = "1",
    seed: int = 0,
    split: Literal["train", "test"] = "train",
    json: Json = False,
) -> None:
    """Write made-up word problems with worked solutions, as JSONL with the columns question, answer, level.

    Each ends in `#### N`, as GSM8K's do. The same arguments give the same file. Train and test share no question, whatever
    their seeds: every test problem needs a sum that no problem for training asks for.

    Parameters
    ----------
    out:
        The file to write; a new one.
    rows:
        Number of problems, all different.
    seed:
        Which ones.
    split:
        train or test.
    """
    from muonlab.data.arithmetic import write_arithmetic_words

    positive("--rows", rows)
    done = write_arithmetic_words(out, rows, levels=_levels(level), seed=seed, split=split)
    show({"out": str(out), **done}, json, lambda: f"{out}: {rows:,} problems for {split}, level {level}, sha256 {done['sha256']}")


def _levels(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"([1-3])(?:-([1-3]))?", text)
    levels = tuple(range(int(found[1]), int(found[2] or found[1]) + 1)) if found else ()
    if not levels:
        raise InputError(f"--level: expected 1, 2, 3 or a range such as 1-3, got {text!r}")
    return levels
