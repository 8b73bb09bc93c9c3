"""Arithmetic with a live scalar: a number, or a tensor without dimensions, which a graph reads again at every replay.

A number takes torch's own fused form, so that what torch's optimizers compute comes out to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

Number = float | Tensor  # a tensor: 0-dim, float64, on the device of what it is used with


def lerp(x: Tensor, end: Tensor, weight: Number, *, out: Tensor | None = None) -> Tensor:
    """x + weight·(end − x)."""
    return torch.lerp(x, end, weight.to(x.dtype) if isinstance(weight, Tensor) else weight, out=out)


def lerp_(x: Tensor, end: Tensor, weight: Number) -> Tensor:
    """x ← x + weight·(end − x)."""
    return x.lerp_(end, weight.to(x.dtype) if isinstance(weight, Tensor) else weight)


def add(x: Tensor, y: Tensor, factor: Number, *, out: Tensor | None = None) -> Tensor:
    """x + factor·y."""
    if isinstance(factor, Tensor):
        return torch.addcmul(x, y, factor.to(x.dtype), out=out)
    return torch.add(x, y, alpha=factor, out=out)


def add_square_(x: Tensor, y: Tensor, factor: Number) -> Tensor:
    """x ← x + factor·y²."""
    return x.addcmul_(y, y * factor) if isinstance(factor, Tensor) else x.addcmul_(y, y, value=factor)


def bias_correction(beta: Number, t: Tensor) -> Tensor:
    """1 − βᵗ, with t and the result in float64: the powers decide the first steps, and torch computes them in Python's floats.

    1 where that is zero, as in a step that is not taken: what is divided by it is to stay finite.
    """
    found = 1 - beta**t
    return torch.where(found == 0, 1.0, found) if isinstance(beta, Tensor) else found
