"""Writes a record: the runs of one arm, held against a rule."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.files import sync_directory
from muonlab.lab.importers.log import UNPACK_LIMIT
from muonlab.lab.records.content import RUNS, SUMS, Declared, derived, sums
from muonlab.lab.records.rules import RULES
from muonlab.lab.records.verify import verify
from muonlab.lab.runs.collection import open_directory, unwritable
from muonlab.lab.runs.store import RunRecord, Sweep, read_plan
from muonlab.names import did_you_mean

_KEPT = ("run.json", "metrics.jsonl", "result.json", "error.json", "source.py")  # of a run's folder; checkpoints are not

# A checkout must give the bytes back, and a repository's .gitignore (runs/, *.log) must not leave any of them out.
_FOR_GIT = {".gitattributes": "* -text\n", ".gitignore": "# every file belongs to the record\n!*\n"}


@dataclass(frozen=True)
class Certified:
    """path: the record's folder; content: its record.json."""

    path: Path
    content: dict[str, Any]

    @property
    def met(self) -> bool:
        return self.content["figures"]["met"]

    @property
    def missing(self) -> list[str]:
        return self.content["figures"]["missing"]


def certify(
    directory: str | Path,
    *,
    rule: str,
    target: float,
    out: str | Path,
    arm: str | None = None,
    steps: int | None = None,
    against: str | Path | None = None,
    unpack_limit: int = UNPACK_LIMIT,
) -> Certified:
    """Writes the record of an arm's runs, all of them, into the new folder `out`; whether the rule is met stands in it.

    directory: a sweep or a collection. steps: the declared number of steps, whose evaluation counts; default: each run's last.
    against: an earlier record, to be beaten by the pairwise rule as well; unpack_limit: bytes that a packed log of it may
    unpack to. Raises InputError for bad input, RunError if `out` cannot be written: then nothing is there.
    """
    directory, out = Path(directory), Path(out)
    _check(rule, target, steps, out)
    sweep = open_directory(directory)
    name = _arm(directory, sweep, arm)
    runs = _runs(directory, sweep, name)
    if rule == "optimization-benchmark" and steps is None:
        _refuse_mixed_steps(directory, runs)
    earlier, earlier_sha256 = _earlier(against, unpack_limit)
    declared = Declared(out.resolve().name, name, rule, target, steps, earlier_sha256)
    files = derived(declared, runs, earlier)
    parent = Path(directory) / RUNS if read_plan(directory) is not None else directory
    try:
        _build(directory, parent, runs, files, out)
    except OSError as error:
        raise unwritable(out, error, "nothing was left there") from None
    return Certified(out, json.loads(files["record.json"]))


def _check(rule: str, target: float, steps: int | None, out: Path) -> None:
    problems = []
    if rule not in RULES:
        problems.append(f"--rule: unknown rule {rule!r}; {did_you_mean(rule, RULES)}")
    if not math.isfinite(target):
        problems.append(f"--target: expected a finite loss, got {target}")
    if steps is not None and steps < 1:
        problems.append(f"--steps: expected a number of at least 1, got {steps}")
    if out.exists() or out.is_symlink():
        problems.append(f"{out}: is there already: records are not changed; choose another folder with --out")
    if problems:
        raise InputError(*problems)


def _arm(directory: Path, sweep: Sweep, arm: str | None) -> str:
    cells = [cell["name"] for cell in sweep.plan["cells"]]
    if arm is None and len(cells) > 1:
        raise InputError(f"{directory}: holds {len(cells)} arms: choose one with --arm ({', '.join(cells[:12])})")
    if arm is not None and arm not in cells:
        raise InputError(f"{directory}: there is no arm {arm!r}; {did_you_mean(arm, cells)}")
    return cells[0] if arm is None else arm


def _runs(directory: Path, sweep: Sweep, arm: str) -> list[RunRecord]:
    """All runs of the arm. Missing and damaged ones are refused, not left out."""
    runs = sweep.of(arm)
    problems = [
        f"{directory}: {run.folder} is {run.status}: {'run it' if run.status == 'missing' else 'delete and redo it'} first"
        for run in runs
        if run.status in ("missing", "damaged")
    ]
    if problems:
        raise InputError(*problems[:10])
    return sorted(runs, key=lambda run: (run.seed, run.folder))


def _refuse_mixed_steps(directory: Path, runs: list[RunRecord]) -> None:
    ends = sorted({run.evaluations[-1]["step"] for run in runs if run.evaluations})
    if len(ends) > 1:
        raise InputError(
            f"{directory}: the runs end at steps {', '.join(map(str, ends))}: declare the one that counts with --steps"
        )


def _earlier(against: str | Path | None, unpack_limit: int) -> tuple[dict[str, Any] | None, str | None]:
    """record.json of the earlier record, and the hash of its SHA256SUMS."""
    if against is None:
        return None, None
    verified = verify(against, unpack_limit=unpack_limit)
    if verified.differences:
        raise InputError(f"--against {against}: this record does not verify ({verified.differences[0]})")
    content = verified.content
    if content["figures"]["val_loss"] is None or content["figures"]["steps"] is None:
        raise InputError(f"--against {against}: its runs have no common number of steps: there is nothing to compare with")
    content.pop("runs")  # they stand in the earlier record itself
    return content, hashlib.sha256((Path(against) / SUMS).read_bytes()).hexdigest()


def _build(directory: Path, parent: Path, runs: list[RunRecord], files: dict[str, str], out: Path) -> None:
    """All of the record or nothing: it is built beside its place and then moved there."""
    above = next(path for path in out.absolute().parents if path.exists())
    stage = above / f".certify-{secrets.token_hex(6)}"
    stage.mkdir()
    try:
        for run in runs:
            (stage / RUNS / run.folder).mkdir(parents=True)
            for name in _KEPT:
                if (parent / run.folder / name).is_file():
                    shutil.copyfile(parent / run.folder / name, stage / RUNS / run.folder / name)
            origin = run.run["provenance"].get("import", {}).get("kept_as")
            if origin is not None and (directory / origin).is_file():
                (stage / origin).parent.mkdir(exist_ok=True)
                shutil.copyfile(directory / origin, stage / origin)
        for name, text in files.items():
            (stage / name).write_text(text, encoding="utf-8")
        for name, text in _FOR_GIT.items():
            (stage / name).write_text(text, encoding="utf-8")
        (stage / SUMS).write_text(sums(stage), encoding="utf-8")
        differences = verify(stage, unpack_limit=None).differences  # the import had its limit
        if differences:
            raise InputError(f"{directory}: its runs make no record that verifies:", *(f"  {line}" for line in differences[:10]))
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(stage, out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
