"""A folder that one process at a time writes in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from muonlab.errors import InputError, RunError

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def locked(folder: Path, wait: bool, say: Callable[[str], None]) -> Iterator[list[Path]]:
    """Refuses a second process on the folder, or waits. Gives the folders that were made for it. The lock ends with its process,
    however that ends."""
    made: list[Path] = []
    waited = False
    while True:
        with _lock_file(folder, made) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise InputError(f"--out {folder}: another process is preparing here; wait for it, or stop it") from None
                if not waited:
                    say(f"{folder}: waiting for another process that is preparing it")
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
                made = made or [folder]  # that process made it, and where it fails leaves it to this one
            if _is_there(file, folder / LOCK):
                yield made
                return
        # who had the lock has removed its file: another may have made a new one


def _lock_file(folder: Path, made: list[Path], attempts: int = 9) -> TextIO:
    """Opens the folder's lock, and adds to `made` the folders that are made for that."""
    missing = [path for path in (folder, *folder.parents) if not path.exists() and path not in made]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a")  # noqa: SIM115 (held by whom it is given to)
    except OSError as error:
        # A process that failed removed the folder in between: before the file was opened, or after mkdir had found it there.
        if isinstance(error, FileNotFoundError | FileExistsError) and attempts:
            return _lock_file(folder, made, attempts - 1)
        kind = RunError if error.errno in _FULL else InputError
        raise kind(f"--out {folder}: cannot be written: {error.strerror}") from None
    made += missing
    return file


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails to be written in there, in words. Sources have their own."""
    try:
        yield
    except BrokenPipeError:  # of the terminal
        raise
    except FileNotFoundError as error:
        raise InputError(f"{folder}: damaged: {error.filename} is missing; delete the folder, and prepare it again") from None
    except OSError as error:  # a full disk, most of all
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}; the same command goes on from there") from None


def _is_there(file: TextIO, path: Path) -> bool:
    """Whether the path still stands for this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
