"""`muonlab data arithmetic-words` and `data cot`: problems with worked solutions. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from muonlab.cli.app import positive, say, show
from muonlab.cli.data import data
from muonlab.cli.flags import Json, listed
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
    from muonlab.data.embedded import levels

    positive("--rows", rows)
    done = write_arithmetic_words(out, rows, levels=levels(level, "level"), seed=seed, split=split)
    show({"out": str(out), **done}, json, lambda: f"{out}: {rows:,} problems for {split}, level {level}, sha256 {done['sha256']}")


@data.command
def cot(
    *source: str,
    out: Path,
    columns: Annotated[str, Parameter(help="names of the columns, the worked solution last")] = "question,answer",
    spans: Annotated[bool, Parameter(help="keep calculator spans such as <<48/2=24>>", negative=())] = False,
    strict: Annotated[bool, Parameter(help="set aside rows whose steps do not come to their answer", negative=())] = False,
    subset: Annotated[str | None, Parameter(help="of a data set on the hub, such as main")] = None,
    split: Annotated[str | None, Parameter(help="of a data set; default: train")] = None,
    json: Json = False,
) -> None:
    """Bring worked solutions into one style: steps, a line each, then `#### N`.

    Reads `#### N`, `\\boxed{N}` and "The answer is N"; computes calculator spans again. Rows without an answer that is a
    number, with answers that differ, or with a wrong span go to OUT.rejected.jsonl, with a reason each.

    Parameters
    ----------
    source:
        Files (JSONL, JSON, CSV, Parquet), folders, patterns, or the name of a data set on the Hugging Face hub.
    out:
        The JSONL file to write; a new one.
    """
    from muonlab.data.cot import prepare_cot
    from muonlab.data.sources import find_sources

    if not source:
        raise InputError("cot: expected a source of rows: files, folders, patterns, or the name of a data set")
    names = listed("--columns", columns)
    if len(set(names)) < len(names):
        raise InputError(f"--columns: expected names, each once, such as question,answer, got {columns!r}")
    done = prepare_cot(find_sources(source, subset=subset, split=split), out, names, spans=spans, strict=strict)
    for kind, count in done.reasons.most_common():
        say(f"set aside: {count} {'row' if count == 1 else 'rows'}: {kind}")
    if done.rejected:
        say(f"they are in {done.rejected}, with a reason each")
    if done.unshown:
        which = ", ".join(map(str, done.unshown[:5])) + (", …" if len(done.unshown) > 5 else "")
        say(f"kept, though no step comes to the answer (--strict sets them aside): {len(done.unshown)} (row {which})")
    show({"out": str(out), **vars(done)}, json, lambda: f"{out}: {done.kept:,} of {done.rows:,} rows, sha256 {done.sha256}")
