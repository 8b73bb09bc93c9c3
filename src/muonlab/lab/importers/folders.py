"""Parsed runs as run folders: all of an import or nothing, and no run twice."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.files import sha256_of
from muonlab.lab.importers.files import find_files, read_file
from muonlab.lab.importers.log import UNPACK_LIMIT
from muonlab.lab.importers.parsed import ParsedRun
from muonlab.lab.runs.collection import ended, run_folders, unwritable
from muonlab.lab.runs.store import run_folder_name
from muonlab.train.run_folder import RunFolder, format_row, write_json

ORIGINALS = "originals"  # the logs as they came, beside the runs
_SHOWN = 10  # problems of an import; more would bury the first


@dataclass(frozen=True)
class Imported:
    """One run that is in the folder now. status: finished, diverged or unfinished (the log ends before the run was to end)."""

    folder: str
    arm: str
    seed: int
    name: str
    status: str
    note: str = ""


@dataclass(frozen=True)
class _Origin:
    """The file that runs come from. argument: the number of the path that named it."""

    path: Path
    sha256: str
    argument: int

    @property
    def kept_as(self) -> str:
        return f"{ORIGINALS}/{self.sha256[:12]}-{re.sub(r'[^A-Za-z0-9._+=-]+', '-', self.path.name)[-100:]}"


def import_logs(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    arm: str | None = None,
    columns: Mapping[str, str] | None = None,
    unpack_limit: int = UNPACK_LIMIT,
    on_progress: Callable[[float, str], None] = lambda share, name: None,
) -> list[Imported]:
    """Brings the runs of logs into the folder `out`, new or a collection already. The logs are kept there too.

    arm: for all of them; default: see read_file. columns: key -> column of tables (parse_map). Seeds are those that the logs
    state, where each run of an arm states another; else the runs of an arm are numbered in order of file name. unpack_limit: bytes
    that a packed log may unpack to. on_progress: hears of the share that is read and the file that it is at. Raises InputError for
    anything that cannot be read or is there already, RunError if `out` cannot be written: then nothing is imported.
    """
    out = Path(out)
    if arm is not None and (not 0 < len(arm) <= 60 or not arm.isprintable()):
        raise InputError(f"--arm: expected a name of 1 to 60 printable characters, got {arm!r}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, got a file; choose another with --out")
    if (out / "experiment.json").exists() or (out / "run.json").exists():
        raise InputError(f"{out}: holds a sweep or a run of muonlab's own: choose another folder with --out")
    parsed = _parse(find_files(paths), columns or {}, arm, unpack_limit, on_progress)
    try:
        with _staging(out) as stage:
            known = [run for _, run in run_folders(out)] if out.exists() else []
            _refuse_duplicates(parsed, known, out)
            imported = [
                _write(stage, origin, run, seed, {"columns": dict(columns or {}), "seed_stated": stated, **place})
                for (origin, run), (seed, stated), place in zip(parsed, _seeds(parsed, known), _places(parsed, known), strict=True)
            ]
            for origin in {origin.sha256: origin for origin, _ in parsed}.values():
                (stage / ORIGINALS).mkdir(exist_ok=True)
                shutil.copyfile(origin.path, stage / origin.kept_as)
            _publish(stage, out)
    except OSError as error:
        raise unwritable(out, error, "nothing was imported") from None
    return imported


def _parse(
    files: Mapping[Path, int],
    columns: Mapping[str, str],
    arm: str | None,
    unpack_limit: int,
    on_progress: Callable[[float, str], None],
) -> list[tuple[_Origin, ParsedRun]]:
    found: list[tuple[_Origin, ParsedRun]] = []
    problems: list[str] = []
    sizes = {path: path.stat().st_size for path in files}
    size, before = max(1, sum(sizes.values())), 0
    for path in sorted(files, key=lambda path: (_natural(path.name), str(path))):

        def done(share: float, path: Path = path, before: int = before) -> None:
            on_progress((before + share * sizes[path]) / size, path.name)

        before += sizes[path]
        try:
            runs = read_file(path, columns, arm, unpack_limit=unpack_limit, on_progress=done)
        except InputError as error:
            problems.extend(error.problems)
            continue
        origin = _Origin(path, sha256_of(path), files[path])
        found += [(origin, run) for run in runs]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more such problems"] if len(problems) > _SHOWN else []
        raise InputError(*problems[:_SHOWN], *more)
    if not found:
        raise InputError("import: expected logs, got none: name files, folders or patterns")
    long = {run.arm for _, run in found if not 0 < len(run.arm) <= 60 or not run.arm.isprintable()}
    if long:
        raise InputError(*(f"arm {name!r}: expected a name of 1 to 60 printable characters: give one with --arm" for name in long))
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """run2 before run10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _refuse_duplicates(parsed: list[tuple[_Origin, ParsedRun]], known: list[dict[str, Any]], out: Path) -> None:
    seen = {run["id"]: f"is in {out} already (arm {run['arm']!r}, seed {run['seed']})" for run in known}
    problems = []
    for origin, run in parsed:
        what = f"{origin.path}: run {run.name!r}" if run.named else str(origin.path)
        if run.id in seen:
            problems.append(f"{what}: duplicate: the same run {seen[run.id]}; a run counts once")
        seen.setdefault(run.id, f"comes from {what}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more duplicates"] if len(problems) > _SHOWN else []
        raise InputError(*problems[:_SHOWN], *more)


def _seeds(parsed: list[tuple[_Origin, ParsedRun]], known: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """For each run its seed, and whether the log states it."""
    taken: dict[str, set[int]] = {}
    for run in known:
        taken.setdefault(run["arm"], set()).add(run["seed"])
    stated: dict[str, list[int | None]] = {}
    for _, run in parsed:
        stated.setdefault(run.arm, []).append(run.seed)
    trusted = {
        arm
        for arm, seeds in stated.items()
        if None not in seeds and len({*seeds}) == len(seeds) and not {*seeds} & taken.get(arm, set())
    }
    found: list[tuple[int, bool]] = []
    for _, run in parsed:
        if run.arm in trusted and run.seed is not None:
            found.append((run.seed, True))
        else:
            seeds = taken.setdefault(run.arm, set())
            seed = max(seeds, default=-1) + 1
            seeds.add(seed)
            found.append((seed, False))
    return found


def _places(parsed: list[tuple[_Origin, ParsedRun]], known: list[dict[str, Any]]) -> list[dict[str, int]]:
    """For each run the number of the path that named its file, counted on from earlier imports, and its place in the file."""
    before = max(((run["provenance"].get("import") or {}).get("argument", 0) for run in known if run.get("provenance")), default=0)
    seen: Counter[str] = Counter()
    found = []
    for origin, _ in parsed:
        found.append({"argument": before + origin.argument, "in_file": seen[origin.sha256]})
        seen[origin.sha256] += 1
    return found


def _write(stage: Path, origin: _Origin, run: ParsedRun, seed: int, about: dict[str, Any]) -> Imported:
    """about: what else of the import goes into the provenance."""
    folder = RunFolder(stage / run_folder_name(run.arm, seed, run.id))
    folder.path.mkdir(parents=True)
    provenance: dict[str, Any] = {"started": None, "git": None, "versions": {}, "gpu": None} | run.facts
    provenance["import"] = {
        "file": origin.path.name, "sha256": origin.sha256, "kept_as": origin.kept_as, "run": run.name, "named": run.named, **about,
    }  # fmt: skip
    if run.source is not None:
        source = run.source.encode()
        (folder.path / "source.py").write_bytes(source)
        provenance["source_sha256"] = hashlib.sha256(source).hexdigest()
    described = {"format": 1, "id": run.id, "seed": seed, "arm": run.arm, "source": "import", "recipe": {}}
    write_json(folder.run_file, described | {"planned_steps": run.planned_steps, "provenance": provenance})
    folder.metrics_file.write_text("".join(map(format_row, run.rows)), encoding="utf-8")
    folder.sync_rows()
    if run.cut_at is not None:
        note = f"the log ends at step {run.cut_at} of {run.planned_steps}"
        return Imported(folder.path.name, run.arm, seed, run.name, "unfinished", note)
    write_json(folder.result_file, ended(run.id, run.rows))
    return Imported(folder.path.name, run.arm, seed, run.name, "diverged" if run.diverged else "finished")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder to build in, on the file system of `out`, gone afterwards. A collection that is there is locked meanwhile."""
    above = out if out.exists() else next(path for path in out.absolute().parents if path.exists())
    stage = above / f".import-{secrets.token_hex(6)}"
    with open(above / ".lock", "w") if out.exists() else open(os.devnull) as lock:
        if out.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
        stage.mkdir()
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, out: Path) -> None:
    """Moves what was built to its place. Interrupted in the middle, it takes back what it had moved."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(out)
        return
    (out / ORIGINALS).mkdir(exist_ok=True)
    moved: list[Path] = []
    try:
        for path in [*sorted((stage / ORIGINALS).iterdir()), *sorted(p for p in stage.iterdir() if p.name != ORIGINALS)]:
            target = out / path.relative_to(stage)
            if path.parent.name == ORIGINALS and target.exists():
                continue  # another run of the same file
            moved.append(target)
            path.rename(target)
    except BaseException:
        for target in moved:
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            else:
                with suppress(OSError):
                    target.unlink()
        raise
