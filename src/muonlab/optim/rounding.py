"""Stochastic rounding to bfloat16: up or down at random, right on average."""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(x: Tensor, count: Tensor, *, out: Tensor) -> None:
    """out (bfloat16) ← x (float32, or float64 rounded to it first), each entry to one of its two neighbours, with the nearer one
    more likely, so that the expectation is x.

    The random bits are a hash of the entry's place in its matrix and of count (B,), which the caller advances: no generator is
    drawn from, and a resumed run rounds as the uninterrupted one does.
    """
    bits = x.float().contiguous().view(torch.int32)
    place = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).reshape(x.shape[1:])
    h = place * 0x01000193 + count.to(torch.int32).reshape(-1, *[1] * (x.ndim - 1)) * 0x5BD1E995
    for shift, factor in ((16, 0x7FEB352D), (15, 0x45D9F3B)):  # a finalizer: every bit comes to depend on every other
        h = (h ^ (h >> shift)) * factor
    noise = (h ^ (h >> 16)) & 0xFFFF
    rounded = (bits + noise) & -0x10000
    out.copy_(torch.where(torch.isfinite(x), rounded.view(torch.float32), x.float()))
