"""Presets: sizes of models (model/NAME.toml: the keys of a recipe's [model] table) and trainings (training/NAME.toml: a recipe's
tables optimizer, schedule and train). Any model goes with any training. A file put here is a preset."""

from __future__ import annotations

import fnmatch
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from muonlab.names import choose

Kind = Literal["model", "training"]


@cache
def presets(kind: Kind) -> tuple[str, ...]:
    """All names, sorted."""
    found = (path.name for path in files(__name__).joinpath(kind).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def matching(kind: Kind, pattern: str) -> list[str]:
    """The names that a shell pattern matches."""
    return [name for name in presets(kind) if fnmatch.fnmatchcase(name, pattern)]


def preset(kind: Kind, name: str) -> dict[str, Any]:
    """What a preset says. Raises ValueError for a name that is not known."""
    choose(f"{kind} preset", name, presets(kind))
    return tomllib.loads(files(__name__).joinpath(kind, f"{name}.toml").read_text(encoding="utf-8"))
