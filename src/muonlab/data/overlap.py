"""Rows that are evaluated on and were trained on: counted by the keys of their prompts (examples.prompt_key)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muonlab.data.prepared import SPLITS, Prepared
from muonlab.errors import InputError

Keys = NDArray[np.uint64]

_AT_A_TIME = 1 << 22  # training keys


def among(held: Keys, trained: Sequence[Keys]) -> NDArray[np.bool_]:
    """Which of the keys `held` (N,) are in one of `trained`, which may be memory-mapped: one pass over them."""
    wanted, where = np.unique(held, return_inverse=True)
    found = np.zeros(len(wanted), dtype=bool)
    for keys in trained if len(wanted) else ():
        for start in range(0, len(keys), _AT_A_TIME):
            some = keys[start : start + _AT_A_TIME]
            at = np.minimum(np.searchsorted(wanted, some), len(wanted) - 1)
            found[at[wanted[at] == some]] = True
    return found[where]


def counted(held: Sequence[Keys], trained: Sequence[Keys]) -> dict[str, int]:
    """{"rows": those of `held` whose prompts are trained on, "of": all}."""
    keys = np.concatenate([np.empty(0, np.uint64), *held])
    return {"rows": int(among(keys, trained).sum()), "of": len(keys)}


def shared(rows: Prepared, others: Prepared) -> dict[str, int]:
    """How many rows of one folder have prompts that another has, too. Raises InputError for a folder of the old form."""
    for folder in (rows, others):
        if not folder.begins:
            raise InputError(f"{folder.folder}: prepared by an older muonlab, without the keys of prompts: prepare it again")
    return counted(rows.prompts(*SPLITS), others.prompts(*SPLITS))


def in_words(seen: Mapping[str, Any] | None, what: str = "validation rows", whose: str = "training rows") -> str:
    """ "60 of 144 validation rows are training rows"; nothing where none are, or nobody counted."""
    if not seen or not seen["rows"]:
        return ""
    return f"{seen['rows']:,} of {seen['of']:,} {what} are {whose} (the same prompt, letter case and white space aside)"
