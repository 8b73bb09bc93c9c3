"""Paths and globs that a configuration names."""

from __future__ import annotations

import glob
from pathlib import Path

from muonlab.errors import InputError


def expand(patterns: tuple[str, ...]) -> list[Path]:
    """The files that paths and globs name, sorted, each once. Raises InputError for a pattern without a file."""
    found: dict[Path, Path] = {}  # by what a link points to
    for pattern in patterns:
        named = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        matched = [Path(name) for name in named if Path(name).is_file()]
        if not matched:
            raise InputError(f"data: no file matches {pattern!r} (paths are relative to the working directory)")
        for path in matched:
            found.setdefault(path.resolve(), path)
    return sorted(found.values())
