"""What is probably not meant: said once, as a UserWarning, when a model's parameters are routed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from muonlab.optim.plan import kind_of

if TYPE_CHECKING:
    from muonlab.optim.routing import Assignment

_SHOWN = 3  # parameters in a message
_FUSED = re.compile(r"qkv|query_key_value|gate_up|c_attn|in_proj|kv_proj|fused", re.IGNORECASE)


def doubts(name: str, found: Sequence[Assignment]) -> list[str]:
    """The sentences, for the optimizer of this name. What the caller or the model says of a parameter is not doubted."""
    said = []
    if all(not one.parameter.requires_grad for one in found):
        said.append("no parameter requires a gradient: nothing will train; call requires_grad_(True) on what should")
    inner = [one for one in found if one.parameter.ndim > 1 and one.role not in ("embedding", "head") and not _told(one)]
    left = sorted((one for one in inner if one.role != "matrix"), key=lambda one: -one.parameter.numel())
    total, out = sum(one.parameter.numel() for one in inner), sum(one.parameter.numel() for one in left)
    if 2 * out > total:
        largest = ", ".join(f"{one.name} {tuple(one.parameter.shape)}" for one in left[:_SHOWN])
        said.append(
            f"{name} trains {100 * (total - out) / total:.1f} % of the weights between embeddings and head; the largest others: "
            f"{largest}. If they are matrices: roles={{{left[0].name!r}: 'matrix'}}, with specs={{...}} for how they are stored "
            "(a bank of matrices (E, out, in): {'batch_dims': 1})"
        )
    said += [
        f"{one.name} {tuple(one.parameter.shape)} looks like several matrices in one, and is trained as one: say how they are "
        f"stored with specs={{{kind_of(one.name)!r}: {{'split': ...}}}}, or {{'split': 1}} if it is one"
        for one in _fused(inner)
    ]
    return said


def _told(one: Assignment) -> bool:
    return one.why.startswith(("given by", "declared by")) or one.spec_told


def _fused(inner: Sequence[Assignment]) -> list[Assignment]:
    """One of each kind: a matrix with two or three times as many outputs as inputs, and a name of such."""
    kinds: dict[str, Assignment] = {}
    for one in inner:
        if one.role != "matrix" or one.spec.split != 1 or not _FUSED.search(one.name) or one.parameter.ndim != 2:
            continue
        rows, columns = one.spec.shapes(one.parameter)[0]
        if rows in (2 * columns, 3 * columns):
            kinds.setdefault(kind_of(one.name), one)
    return list(kinds.values())
