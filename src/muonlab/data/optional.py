"""Packages of extras: not needed to import muonlab, named where they are missed."""

from __future__ import annotations

import importlib
from typing import Any

from muonlab.errors import InputError


def needed(package: str, for_what: str, *, extra: str = "hf") -> Any:
    """The package. Raises InputError, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(package)
    except ImportError:
        top = package.partition(".")[0]
        raise InputError(f'{for_what}: needs the package {top}, which is not installed: pip install "muonlab[{extra}]"') from None
