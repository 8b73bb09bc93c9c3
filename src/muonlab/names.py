"""One message for every name that is not known: what came, the nearest right one or all there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean ...?" with the nearest known name, or the list of them all."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is among `known`. Raises ValueError otherwise."""
    known = list(known)
    if name in known:
        return name
    raise ValueError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")
