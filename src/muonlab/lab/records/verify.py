"""Computes a record again from its files, and names every difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.files import sha256_of
from muonlab.lab.importers.files import read_file
from muonlab.lab.importers.log import UNPACK_LIMIT
from muonlab.lab.importers.parsed import content_id
from muonlab.lab.records.content import AGAINST, FORMAT, RUNS, SUMS, Declared, derived, sums
from muonlab.lab.records.rules import RULES
from muonlab.lab.runs.collection import ended
from muonlab.lab.runs.store import RunRecord, read_record
from muonlab.train.run_folder import RunFolder, parse_row

_COMPUTED = ("record.json", "recipe.json", "provenance.json", "README.md", AGAINST)


@dataclass(frozen=True)
class Verified:
    """content: record.json as it stands there; differences: none where the record holds; notes: what could not be checked."""

    path: Path
    content: dict[str, Any]
    differences: list[str]
    notes: list[str]


def verify(directory: str | Path, *, against: str | Path | None = None, unpack_limit: int | None = UNPACK_LIMIT) -> Verified:
    """Checks hashes, reads imported logs again, checks that runs say what their rows say, and computes every figure again.

    against: the earlier record that this one was compared with, if it is at hand: it must be the same and hold itself.
    unpack_limit: bytes that a packed log may unpack to; None: any. Raises InputError for a folder that is no record.
    """
    directory = Path(directory)
    content, declared = _read(directory)
    differences = [*_hash_differences(directory)]
    notes: list[str] = []
    runs, problems = _runs(directory, declared.arm)
    differences += problems
    ids = {run.run["id"] for run in runs}
    for run in runs:
        try:
            differences += _run_differences(directory, run, ids, notes, unpack_limit)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            differences.append(f"{RUNS}/{run.folder}: cannot be checked: {type(error).__name__} {str(error)[:80]}")
    if not problems:
        differences += _computed_differences(directory, declared, runs)
    if against is not None:
        differences += _against_differences(declared, Path(against), unpack_limit)
    return Verified(directory, content, list(dict.fromkeys(differences)), list(dict.fromkeys(notes)))


def _read(directory: Path) -> tuple[dict[str, Any], Declared]:
    try:
        content = json.loads((directory / "record.json").read_text(encoding="utf-8"))
        fields = {key: content[key] for key in Declared.__dataclass_fields__}
        known = content["format"]
    except FileNotFoundError:
        raise InputError(
            f"{directory}: expected the folder of a record (with record.json), as `muonlab certify` writes it"
        ) from None
    except OSError as error:
        raise InputError(f"{directory}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{directory / 'record.json'}: damaged, no record can be read from it ({str(error)[:80]})") from None
    if known != FORMAT:
        raise InputError(
            f"{directory}: a record of format {known!r}, this muonlab reads {FORMAT}: verify it with the one that made it"
        )
    declared = Declared(**fields)
    numbers = isinstance(declared.target, int | float) and isinstance(declared.steps, int | None)
    if declared.rule not in RULES or not numbers or not isinstance(declared.arm, str):
        raise InputError(
            f"{directory / 'record.json'}: damaged: expected rule, target, steps and arm as `muonlab certify` writes them"
        )
    return content, declared


def _hash_differences(directory: Path) -> Iterator[str]:
    try:
        text = (directory / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield f"{SUMS}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})"
        return
    now = sums(directory)
    links = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_symlink())
    yield from (f"{name}: is a link, not a file of the record" for name in links)
    listed, there = _hashes(text), _hashes(now)
    for name in sorted({*listed, *there}):
        if name not in there:
            yield f"{name}: missing"
        elif name not in listed:
            yield f"{name}: not one of the record's files ({SUMS})"
        elif listed[name] != there[name]:
            yield f"{name}: changed (its SHA-256 is not that of {SUMS})"
    if text != now and listed == there:
        yield f"{SUMS}: changed (its lines are not those that certify writes)"


def _hashes(text: str) -> dict[str, str]:
    """file -> hash, of the content of SHA256SUMS."""
    pairs = (line.partition("  ") for line in text.splitlines())
    return {name: digest for digest, gap, name in pairs if gap}


def _runs(directory: Path, arm: str) -> tuple[list[RunRecord], list[str]]:
    """The runs in the record, in its order, and what is wrong with those that cannot be read."""
    runs: list[RunRecord] = []
    problems: list[str] = []
    below = sorted((directory / RUNS).iterdir()) if (directory / RUNS).is_dir() else []
    for path in below:
        try:
            run = RunFolder(path).run()
        except InputError:
            run = None
        if run is None or not {"id", "seed", "provenance"} <= run.keys() or not isinstance(run["seed"], int):
            problems.append(f"{RUNS}/{path.name}/run.json: missing or damaged")
            continue
        record = read_record(directory / RUNS, {"cell": arm, "seed": run["seed"], "id": run["id"], "folder": path.name})
        if record.status == "damaged":
            problems.append(f"{RUNS}/{path.name}: damaged: run.json, metrics.jsonl and result.json do not fit together")
        else:
            runs.append(record)
    return sorted(runs, key=lambda run: (run.seed, run.folder)), problems


def _run_differences(directory: Path, run: RunRecord, ids: set[str], notes: list[str], unpack_limit: int | None) -> Iterator[str]:
    folder = RunFolder(directory / RUNS / run.folder)
    where = f"{RUNS}/{run.folder}"
    if folder.metrics_file.is_file():
        lines = folder.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        broken = [str(number) for number, line in enumerate(lines, 1) if parse_row(line) is None]
        if broken and run.result:
            yield f"{where}/metrics.jsonl: altered (checksum) at line {', '.join(broken[:5])}"
    yield from (f"{where}/result.json: {line}" for line in _result_differences(run))
    if run.run.get("source") == "import":
        yield from _import_differences(directory, run, ids, notes, unpack_limit)


def _result_differences(run: RunRecord) -> Iterator[str]:
    """What the result says against what the rows say."""
    if not run.result:
        return
    said = ended(run.run["id"], run.rows)
    keys = [*said] if "source" in run.run else ["rows", "best_val_loss"] + (["val_loss"] if run.status == "finished" else [])
    for key in keys:
        if run.result.get(key) != said[key]:
            yield f"{key} is {run.result.get(key)!r}, the rows say {said[key]!r}"


def _import_differences(
    directory: Path, run: RunRecord, ids: set[str], notes: list[str], unpack_limit: int | None
) -> Iterator[str]:
    """An imported run's id is the hash of its content, and its log, read again, gives the same. ids: of all runs in the record."""
    where, origin = f"{RUNS}/{run.folder}", run.run["provenance"].get("import", {})
    source_file = directory / where / "source.py"
    raw = source_file.read_bytes() if source_file.is_file() else None
    if (None if raw is None else hashlib.sha256(raw).hexdigest()) != run.run["provenance"].get("source_sha256"):
        yield f"{where}/source.py: is not the program of this run (SHA-256 in run.json)"
    source = None if raw is None else raw.decode(errors="replace")
    if content_id(run.rows, source, origin.get("run") if origin.get("named") else None) != run.run["id"]:
        yield f"{where}: its rows are not those of its id: altered after the import"
    original = directory / str(origin.get("kept_as"))
    if not original.is_file() or sha256_of(original) != origin.get("sha256"):
        yield f"{origin.get('kept_as')}: missing, or not the log that {run.folder} comes from"
        return
    try:
        found = {parsed.id: parsed for parsed in _reread(original, origin, unpack_limit)}
    except InputError as error:
        if "pip install" in str(error):
            notes.append(f"{origin['kept_as']}: not read again: {str(error).rpartition(': ')[0].rpartition(': ')[2]}")
        else:
            yield f"{origin['kept_as']}: cannot be read again: {error}"
        return
    if run.run["id"] not in found:
        yield f"{where}: is not what its log says ({origin['kept_as']})"
        return
    arm = found[run.run["id"]].arm  # where another was given at the import, all runs of the log belong to that
    left = [parsed.name for key, parsed in found.items() if key not in ids and (arm != run.run["arm"] or parsed.arm == arm)]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        yield f"{origin['kept_as']}: this log holds runs of {run.run['arm']} that were left out: {', '.join(left[:5])}{more}"


def _reread(original: Path, origin: dict[str, Any], unpack_limit: int | None) -> list[Any]:
    return read_file(original, origin.get("columns", {}), name=origin.get("file"), unpack_limit=unpack_limit)


def _computed_differences(directory: Path, declared: Declared, runs: list[RunRecord]) -> Iterator[str]:
    try:
        stored = {name: (directory / name).read_text(encoding="utf-8") for name in _COMPUTED if (directory / name).is_file()}
        against = json.loads(stored[AGAINST]) if declared.against_sha256 is not None else None
        now = derived(declared, runs, against)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"the figures cannot be computed again: {type(error).__name__} {str(error)[:80]}"
        return
    for name, text in now.items():
        if stored.get(name) != text:
            yield f"{name}: {_first_difference(stored.get(name, ''), text)}"


def _first_difference(stored: str, computed: str) -> str:
    before, now = stored.splitlines(), computed.splitlines()
    for number, (old, new) in enumerate(zip(before, now, strict=False), 1):
        if old != new:
            return f"line {number} is {old.strip()[:160]!r}, the runs give {new.strip()[:160]!r}"
    return f"has {len(before)} lines, the runs give {len(now)}"


def _against_differences(declared: Declared, against: Path, unpack_limit: int | None) -> Iterator[str]:
    earlier = verify(against, unpack_limit=unpack_limit)
    yield from (f"{against}: {difference}" for difference in earlier.differences)
    if not (against / SUMS).is_file() or hashlib.sha256((against / SUMS).read_bytes()).hexdigest() != declared.against_sha256:
        yield f"{against}: is not the record that this one was compared with"
