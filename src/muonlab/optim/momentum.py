"""Momentum: what is orthogonalized instead of the raw gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import arithmetic, scratch
from muonlab.optim.rounding import round_stochastically
from muonlab.optim.step import Step

FORMS = ("ema", "heavy_ball")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Momentum:
    """`ema`: M ← μM + (1−μ)G, the output M, or with Nesterov μM + (1−μ)G. `heavy_ball`: M ← μM + G; M, or μM + G.

    The first is the form of torch.optim.Muon (whose docstring shows the other) and modded-nanogpt, the second that of dion
    and Moonlight. At a constant μ they differ by the factor 1 − μ alone, which orthogonalization takes away; when μ is
    scheduled, they differ. Without Nesterov the output is the buffer itself: no piece mutates its input (torch.optim.Muon
    2.13 does, and so normalizes the buffer of bfloat16 parameters).
    dtype: "bfloat16" halves the state; the buffer is rounded stochastically, so that small gradients are not lost on average.
    """

    momentum: float = 0.95
    nesterov: bool = True
    form: str = "ema"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choose("momentum form", self.form, FORMS)
        choose("momentum dtype", self.dtype, DTYPES)

    def scalars(self) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        if self.dtype == "float32":
            return {"momentum_buffer": torch.zeros_like(like)}
        return {"momentum_buffer": torch.zeros_like(like, dtype=torch.bfloat16), "rounded": like.new_zeros(len(like))}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        mu = step.scalars["momentum"]
        held = step.state["momentum_buffer"]
        buffer = held if held.dtype == x.dtype else held.to(x.dtype)
        buffer = arithmetic.lerp_(buffer, x, 1 - mu) if self.form == "ema" else buffer.mul_(mu).add_(x)
        if buffer is not held:
            round_stochastically(buffer, step.count("rounded"), out=held)
        if not self.nesterov:
            return buffer
        out = scratch.empty(x.shape, x.dtype, x.device)
        return arithmetic.lerp(x, buffer, mu, out=out) if self.form == "ema" else arithmetic.add(x, buffer, mu, out=out)

    def __str__(self) -> str:
        name = "nesterov" if self.nesterov else "momentum"
        marks = [mark for mark, default in ((self.form, "ema"), (self.dtype, "float32")) if mark != default]
        return f"{name}({', '.join(marks)})" if marks else name
