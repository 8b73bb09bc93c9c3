"""One message for every name that is not known: what came, the nearest right one, and all there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is among `known`; otherwise ValueError with the nearest name and the whole list."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}")
