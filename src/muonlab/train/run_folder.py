"""The folder of a run, the only truth about it:

    tokenizer.json  what the tokens mean; not of token shards, which do not tell
    recipe.toml     the recipe as a file, for people; what counts is run.json's
    run.json        recipe, seed, id, provenance: written once, before the first step
    metrics.jsonl   one row a line, each with a checksum of its own; a resume drops rows after its checkpoint
    checkpoints/    see checkpoint.py
    result.json     how it ended; its presence means that there is nothing left to do
    session.json    of an unfinished run: the process at work, or how the last one left it; see session.py
    log.txt         what a run in the background says; see background.py

This module needs no torch: reports read folders with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from muonlab.errors import InputError
from muonlab.files import write_atomically

ENDED = ("finished", "diverged")  # how a run can end; anything else goes on
REDO = "delete the run's folder to redo it"


class Locked(InputError):
    """Another process holds the folder."""


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_file, self.result_file = self.path / "run.json", self.path / "result.json"
        self.metrics_file, self.checkpoints = self.path / "metrics.jsonl", self.path / "checkpoints"
        self.session_file, self.stop_file, self.log_file = self.path / "session.json", self.path / ".stop", self.path / "log.txt"

    def run(self) -> dict[str, Any] | None:
        """run.json, None if there is none. Raises InputError if it is damaged."""
        return read_json(self.run_file, REDO)

    def result(self) -> dict[str, Any] | None:
        """result.json, None if there is none. Raises InputError if it is damaged or another run's."""
        result = read_json(self.result_file, REDO)
        run = self.run()
        fits = run is not None and result is not None and run.get("id", "") == result.get("id") and result.get("status") in ENDED
        if result is not None and not fits:
            raise InputError(f"{self.result_file}: damaged (it is not this run's result); {REDO}")
        return result

    def session(self) -> dict[str, Any] | None:
        """session.json, None if there is none. Raises InputError if it is damaged."""
        return read_json(self.session_file, "delete this file")

    def rows(self) -> list[dict[str, Any]]:
        """All rows whose checksum holds (a crash can cut the last line short)."""
        try:
            lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [row for row in map(parse_row, lines) if row is not None]

    def recent_rows(self, within: int = 1 << 16) -> list[dict[str, Any]]:
        """The rows in the last bytes of the file, however long a run has been."""
        try:
            with open(self.metrics_file, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - within))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [row for row in map(parse_row, lines) if row is not None]

    def saved_steps(self) -> list[int]:
        """The steps after which there is a checkpoint, in order."""
        return sorted(int(path.name[5:]) for path in self.checkpoints.glob("step-*") if path.name[5:].isdigit())

    def append_row(self, row: dict[str, Any]) -> None:
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(format_row(row))

    def sync_rows(self) -> None:
        """Makes sure that all rows so far outlive a power cut: a checkpoint must not know more than the metrics."""
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def keep_rows(self, last_step: int) -> int:
        """Forgets rows after `last_step`, which a resume will compute again. Returns how many are left."""
        kept = [row for row in self.rows() if row["step"] <= last_step]
        write_atomically(self.metrics_file, "".join(map(format_row, kept)))
        return len(kept)

    def held(self) -> bool:
        """Whether a process works on this run at this moment."""
        try:
            with open(self.path / ".lock", "rb") as file:
                return _held_by_another(file)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Refuses a second process on this run. The lock ends with its process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (held until the with below ends)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; choose another folder with --out") from None
        with file:
            while not _taken(file):
                if _held_by_another(file):
                    file.seek(0)
                    holder = file.read(20).strip()
                    known = f" (number {holder})" if holder.isdigit() else ""
                    raise Locked(f"{self.path}: another process{known} is working here; wait for it, or stop it")
                time.sleep(0.001)  # somebody is only looking, for a moment: see `held`
            with contextlib.suppress(OSError):  # the number is only for the message above: a full disk leaves it out
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())
            yield


def _taken(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held_by_another(file: IO[Any]) -> bool:
    """Whether the lock is taken for good: those who look share it among themselves, for a moment."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def best_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first row with the lowest validation loss, None if there was no evaluation."""
    return min((row for row in rows if row.get("val_loss") is not None), key=lambda row: row["val_loss"], default=None)


def latest(rows: list[dict[str, Any]], key: str) -> float | None:
    """The last value that these rows have of it."""
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def format_row(row: dict[str, Any]) -> str:
    text = json.dumps(row)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def parse_row(line: str) -> dict[str, Any] | None:
    """The row without its checksum, or None where the line is cut or altered."""
    try:
        row = json.loads(line)
        crc = row.pop("crc")
        return row if crc == f"{zlib.crc32(json.dumps(row).encode()):08x}" else None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """What `write_json` wrote, None if there is no such file. Raises InputError, ending with `remedy`, if it was altered."""
    try:
        value = parse_row(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"{path.parent}: expected a folder, got a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if value is None:
        raise InputError(f"{path}: damaged (its checksum does not fit); {remedy}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """An object with a checksum of its own, as for rows, laid out for people to read."""
    write_atomically(path, json.dumps(json.loads(format_row(value)), indent=1) + "\n")
