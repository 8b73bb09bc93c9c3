"""Momentum: what is orthogonalized instead of the raw gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from muonlab.optim.rules import Step


@dataclass(frozen=True)
class EMA:
    """M ← μM + (1−μ)G; the output is M, or with Nesterov μM + (1−μ)G.

    The form of torch.optim.Muon and modded-nanogpt (torch's docstring shows heavy-ball; its code is this).
    Without Nesterov the output is the buffer itself: no piece mutates its input (torch.optim.Muon 2.13 does, and so
    normalizes the buffer of bfloat16 parameters).
    """

    momentum: float = 0.95
    nesterov: bool = True

    def scalars(self) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(like)}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        mu = step.scalars["momentum"]
        buffer = step.state["momentum_buffer"].lerp_(x, 1 - mu)
        return x.lerp(buffer, mu) if self.nesterov else buffer

    def __str__(self) -> str:
        return "nesterov" if self.nesterov else "momentum"
