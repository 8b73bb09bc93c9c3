"""`muonlab.run`: ten lines in anybody's training script, and the lab can judge it. Needs no torch.

with muonlab.run("muon", seed=0) as run:
    for step in range(1, 1001):
        loss = train_step()
        if step % 100 == 0:
            run.log(step=step, train_loss=loss, val_loss=evaluate())
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import math
import numbers
import os
import platform
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import muonlab
from muonlab.errors import InputError, RunError
from muonlab.files import write_atomically
from muonlab.lab.runs.collection import ended, run_folders
from muonlab.lab.runs.store import run_folder_name
from muonlab.train.provenance import cpu_name, git_state
from muonlab.train.run_folder import RunFolder, format_row, write_json

_RESERVED = ("crc", "diverged")  # keys of a row that this file writes itself


class Run:
    """One run: use it in a `with` block and call `log`. What went into `log` is on disk when it returns."""

    def __init__(self, folder: RunFolder, described: dict[str, Any], *, resume: bool) -> None:
        self._folder, self._described, self._resume = folder, described, resume
        self._rows: list[dict[str, Any]] = []
        self._open = False
        self._rewrite = resume  # metrics.jsonl must be written again before the next row
        self._seconds = 0.0  # of earlier sessions and of this one up to `_started`
        self._started: float | None = None  # None while the clock stands still

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    def __enter__(self) -> Run:
        if self._open:
            raise InputError(f"{self.path}: this run is open already: one `with` block for each run")
        self._lock = self._folder.lock()
        self._lock.__enter__()
        self._open = True
        if self._resume:
            self._rows = self._folder.rows()
            self._seconds = max((row.get("seconds") or 0.0 for row in self._rows), default=0.0)
        self._error_file.unlink(missing_ok=True)
        self._started = time.perf_counter()
        return self

    def log(self, *, step: int, **values: Any) -> None:
        """Writes a row: any numbers by name, None for what is not known at this step. Lower is better: val_loss decides.

        Numbers may be Python's, numpy's or tensors of one element. seconds: of training so far; measured if it is not given. A
        val_loss that is not finite makes the run a diverged one. Raises InputError for anything else than numbers and for steps
        that go down, RunError if the row cannot be written.
        """
        if not self._open:
            raise InputError(f'{self.path}: is not open: log inside of `with muonlab.run("{self._described["arm"]}", …) as run:`')
        row = self._row(step, values)
        try:
            if self._rewrite:
                self._rewind(row["step"])
            self._refuse_disorder(row)
            self._folder.append_row(row)
        except OSError as error:
            self._rewrite = True  # the line may be cut in the middle
            raise RunError(f"{self.path}: step {row['step']} cannot be written: {error.strerror}; go on with resume=True") from None
        self._rows.append(row)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, the clock stands still: for evaluation, which is not training."""
        if self._started is None:
            raise InputError(f"{self.path}: the clock stands still already: paused() inside of paused(), or outside of the run")
        self._seconds = self._elapsed()
        self._started = None
        try:
            yield
        finally:
            self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._note(error)
        finally:
            self._open = False
            self._lock.__exit__(None, None, None)

    @property
    def _error_file(self) -> Path:
        return self.path / "error.json"

    def _elapsed(self) -> float:
        return self._seconds if self._started is None else self._seconds + time.perf_counter() - self._started

    def _row(self, step: Any, values: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.path}: log"
        number = _number(step)
        if not _is_count(number):
            raise InputError(f"{where}: step: expected a whole number of 0 or more, got {step!r}")
        problems = [f"{where}: {key}: this name is muonlab's own: choose another" for key in values if key in _RESERVED]
        row: dict[str, Any] = {"step": int(number or 0)}
        broken = False
        for key, value in values.items():
            if value is None:
                continue
            read = _number(value)
            if read is None:
                problems.append(f"{where}: {key}: expected one number, got {_shown(value)}")
                continue
            if key in ("seconds", "tokens") and read < 0:
                problems.append(f"{where}: {key}: expected a number of 0 or more, got {_shown(value)}")
            finite = math.isfinite(read)
            broken = broken or (key == "val_loss" and not finite)
            row[key] = read if finite else None  # JSON has no NaN
        if problems:
            raise InputError(*problems)
        if row.get("seconds") is None:
            row["seconds"] = self._elapsed()
        return row | ({"diverged": True} if broken else {})

    def _refuse_disorder(self, row: dict[str, Any]) -> None:
        before = [old for old in reversed(self._rows[-16:]) if old["step"] >= row["step"]]
        if any(old["step"] > row["step"] for old in before):
            raise InputError(
                f"{self.path}: log: step {row['step']} comes after step {self._rows[-1]['step']}: steps may not go down"
            )
        again = sorted({key for old in before for key in old.keys() & row.keys()} - {"step", "seconds", "diverged"})
        if again:
            raise InputError(f"{self.path}: log: step {row['step']} has its {', '.join(again)} already: log each value once a step")

    def _rewind(self, step: int) -> None:
        """Writes the rows before `step` again, without what was cut. A resumed script begins again at its own checkpoint: rows
        from there on will come again."""
        if self._resume:
            self._rows = [row for row in self._rows if row["step"] < step]
        write_atomically(self._folder.metrics_file, "".join(map(format_row, self._rows)))
        self._resume = self._rewrite = False

    def _finish(self) -> None:
        if not any(key in row for row in self._rows for key in ("val_loss", "train_loss")):
            raise InputError(f"{self.path}: nothing to judge was logged (val_loss or train_loss): the run stays unfinished")
        result = ended(self._described["id"], self._rows)
        try:
            self._folder.sync_rows()
            write_json(self._folder.result_file, result)
        except OSError as error:
            raise RunError(f"{self.path}: the result cannot be written: {error.strerror}; go on with resume=True") from None

    def _note(self, error: BaseException) -> None:
        """Why the run is not finished; never in the way of the error itself."""
        step = self._rows[-1]["step"] if self._rows else None
        with suppress(OSError):
            write_json(self._error_file, {"error": f"{type(error).__name__}: {error}"[:2000], "after_step": step, "at": _now()})


def run(
    arm: str,
    *,
    seed: int = 0,
    dir: str | Path = "runs",
    project: str = "log",
    config: Mapping[str, Any] | Namespace | None = None,
    resume: bool = False,
    replace: bool = False,
) -> Run:
    """A run to log into, in the folder dir/project/ARM-seedN-ID; `muonlab report dir/project` compares the arms.

    config: settings of this run, for the report to tell what the arms change. resume: go on with this arm and seed if it is not
    finished (rows from the first step logged on are replaced), or begin it. replace: delete it and begin again. Raises InputError
    if arm and seed are there already and neither is given, and for anything that is not what was expected.
    """
    described = _described(arm, seed, project, config)
    if resume and replace:
        raise InputError("muonlab.run: resume and replace: expected one of them, got both")
    collection = Path(dir) / project
    try:
        collection.mkdir(parents=True, exist_ok=True)
        with open(collection / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for a moment: two scripts may begin runs at once
            return _claim(collection, described, resume=resume, replace=replace)
    except OSError as error:
        raise InputError(f"{collection}: cannot be written: {error.strerror}; choose another folder with dir=") from None


def _claim(collection: Path, described: dict[str, Any], *, resume: bool, replace: bool) -> Run:
    arm, seed = described["arm"], described["seed"]
    known = [(name, run) for name, run in run_folders(collection) if (run["arm"], run["seed"]) == (arm, seed)]
    for name, before in known:
        folder = RunFolder(collection / name)
        result = folder.result()
        if replace:
            with folder.lock():  # not while another process writes it
                gone = folder.path.rename(folder.path.with_name(f".{name}.replaced"))
            shutil.rmtree(gone)
            continue
        if not resume or result is not None:
            state = f"{result['status']} already" if result else "there already, unfinished"
            remedy = "replace=True deletes it and begins again" + ("" if result else ", resume=True goes on")
            raise InputError(f"{folder.path}: {arm!r} with seed {seed} is {state}: {remedy}; or choose another seed or project")
        if before["recipe"] != described["recipe"]:
            raise InputError(
                f"{folder.path}: was begun with another config: replace=True begins again, another seed or arm does too"
            )
        return Run(folder, before, resume=True)
    folder = RunFolder(collection / run_folder_name(arm, seed, described["id"]))
    folder.path.mkdir(exist_ok=True)
    write_json(folder.run_file, described)
    return Run(folder, described, resume=False)


def _described(arm: Any, seed: Any, project: Any, config: Any) -> dict[str, Any]:
    problems = []
    if not isinstance(arm, str) or not 0 < len(arm) <= 60 or not arm.isprintable() or not arm.strip():
        problems.append(f"muonlab.run: arm: expected a name of 1 to 60 printable characters, got {arm!r}")
    number = _number(seed)
    if not _is_count(number):
        problems.append(f"muonlab.run: seed: expected a whole number of 0 or more, got {seed!r}")
    if not isinstance(project, str) or not project or "/" in project or project.startswith("."):
        problems.append(f"muonlab.run: project: expected the name of a folder, got {project!r}; its parent is dir=")
    settings = vars(config) if isinstance(config, Namespace) else {} if config is None else config
    if not isinstance(settings, Mapping):
        problems.append(f"muonlab.run: config: expected a mapping of settings, got {_shown(config)}")
        settings = {}
    recipe = _plain(settings, "muonlab.run: config", problems)
    if problems:
        raise InputError(*problems)
    text = json.dumps({"arm": arm, "seed": int(number or 0), "config": recipe}, sort_keys=True)
    described = {"format": 1, "id": hashlib.sha256(text.encode()).hexdigest()[:12], "seed": int(number or 0), "arm": arm}
    return described | {"source": "log", "recipe": recipe, "provenance": _provenance()}


def _plain(value: Any, where: str, problems: list[str]) -> Any:
    """Settings as JSON can hold them. What it cannot hold is a problem, not a guess."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", problems) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = _number(value)
    if number is None or not math.isfinite(number):
        problems.append(
            f"{where}: expected text, a finite number, true/false, None, or lists and mappings of them, got {_shown(value)}"
        )
    return number


def _number(value: Any) -> int | float | None:
    """A number of Python, numpy, or a tensor of one element; None for anything else."""
    if not isinstance(value, numbers.Number) and not isinstance(value, str | bytes) and hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, ValueError, TypeError):  # more than one element
            return None
    elif isinstance(value, numbers.Number) and hasattr(value, "item"):  # numpy's scalars are numbers of their own kind
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        return None
    return int(value) if isinstance(value, numbers.Integral) else number


def _is_count(number: int | float | None) -> bool:
    return number is not None and math.isfinite(number) and number == int(number) and 0 <= number < 2**63


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else f"{type(value).__name__} {text}"


def _provenance() -> dict[str, Any]:
    """Code, versions and hardware as far as they can be known without importing anything: the script may not use torch at all."""
    torch = sys.modules.get("torch")
    versions = {"muonlab": muonlab.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "jax", "tensorflow"):
        if name in sys.modules:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
    cuda = getattr(torch, "cuda", None)
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),  # arms of one second are told apart
        "git": git_state(Path.cwd()),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": cuda.get_device_name() if cuda is not None and cuda.is_initialized() else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
