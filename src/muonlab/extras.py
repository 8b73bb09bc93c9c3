"""Packages of extras: torch and numpy are all that an install has for certain. Whatever else is missed is named with its extra."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from muonlab.errors import InputError

# What the extra 'lab' brings, by the names they are imported by.
LAB = (
    "altair",
    "cyclopts",
    "jinja2",
    "pyarrow",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "statsmodels",
    "tomli_w",
    "vl_convert",
)


class MissingPackage(InputError, ModuleNotFoundError):
    """An extra is not installed. For a script an ImportError, for the command line a problem of the input."""


def needed(package: str, for_what: str, *, extra: str = "hf") -> Any:
    """The package. Raises MissingPackage, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(package)
    except ImportError:
        what = f"{for_what}: needs the package {package.partition('.')[0]}, which is not installed"
        raise MissingPackage(f'{what}: pip install "muonlab[{extra}]"') from None


def need_lab(who: str, *packages: str) -> None:
    """Raises MissingPackage unless these packages of the extra 'lab' are there. It imports none of them: who asks decides when."""
    if missing := [package for package in packages if not _there(package)]:
        raise MissingPackage(no_lab(who, missing))


def no_lab(who: str, missing: Iterable[str]) -> str:
    return f"{who} needs the extra 'lab': pip install \"muonlab[lab]\" (not installed: {', '.join(missing)})"


def has_lab() -> bool:
    return all(map(_there, LAB))


def _there(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None
