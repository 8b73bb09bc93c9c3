"""Files that are whole or not there, and that take nobody's place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from muonlab.errors import InputError


def refuse_existing(path: Path) -> None:
    """Raises InputError if there is something at `path`, or no folder to write it to."""
    if path.exists():
        raise InputError(f"{path}: exists already; delete it, or choose another file with --out")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no such folder: {path.parent}; make it first, or choose another file with --out")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that appears at `path` when the block ends without an error, flushed to the disk; else nothing does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
