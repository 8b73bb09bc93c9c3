"""Refinements of the orthogonalized update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import arithmetic
from muonlab.optim.checks import check_range
from muonlab.optim.step import Step

AXES = ("long", "output", "input")


@dataclass(frozen=True)
class VarianceReduction:
    """NorMuon's second moment (arXiv 2510.05491): one adaptive scale per neuron, at an unchanged Frobenius norm.

    v = mean_r(O²), s ← β₂s + (1−β₂)v, O ← O·s^(−1/2), rescaled to the norm that O came with; the mean runs along r.
    `axis` says which index keeps a scale of its own: `output` (a row of W, as in the paper), `input` (a column), or
    `long` (whichever is longer, as in modded-nanogpt). No bias correction: the rescaling makes it irrelevant.
    """

    beta2: float = 0.95
    axis: str = "long"

    def __post_init__(self) -> None:
        choose("variance-reduction axis", self.axis, AXES)

    def scalars(self) -> dict[str, Any]:
        return {"beta2": self.beta2}

    def _reduced(self, m: int, n: int) -> int:
        """The dimension that is averaged away."""
        rows = m >= n if self.axis == "long" else self.axis == "output"
        return -1 if rows else -2

    def init(self, like: Tensor) -> dict[str, Tensor]:
        r = self._reduced(*like.shape[-2:])
        return {"second_moment": torch.zeros_like(like.sum(r, keepdim=True))}  # (B, m, 1) or (B, 1, n)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        r = self._reduced(*x.shape[-2:])
        length = x.shape[r]
        second = step.state["second_moment"]
        v = x.to(second.dtype).square().mean(r, keepdim=True)
        arithmetic.lerp_(second, v, 1 - step.scalars["beta2"])
        q = second.clamp(min=1e-10).rsqrt()
        before = (v * length).sum((-2, -1), keepdim=True).sqrt()  # ‖O‖_F
        after = (v * length * q.square()).sum((-2, -1), keepdim=True).sqrt()  # ‖O·q‖_F
        return x * (q * (before / after.clamp(min=1e-10))).to(x.dtype)

    def __str__(self) -> str:
        return f"variance_reduction({self.axis})"


@dataclass(frozen=True)
class Smoothing:
    """S ← βS + (1−β)O from zero, without bias correction; the update is S, or with `lookahead` βS + (1−β)O.

    The medium-track record of 2025-09-17 (modded-nanogpt): its text describes the first, its code does the second. β, the
    group's `smoothing`, runs there from 0.5 to 0.2.
    """

    smoothing: float = 0.5
    lookahead: bool = True

    def scalars(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {"smoothed": torch.zeros_like(like)}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        beta = step.scalars["smoothing"]
        smoothed = arithmetic.lerp_(step.state["smoothed"], x, 1 - beta)
        return arithmetic.lerp(x, smoothed, beta) if self.lookahead else smoothed

    def __str__(self) -> str:
        return "smoothing(lookahead)" if self.lookahead else "smoothing"


@dataclass(frozen=True)
class SecondMoment:
    """AdaMuon (arXiv 2507.11005): V ← β₂V + (1−β₂)O² elementwise; O ← O/(√V + eps), then to the RMS that AdamW has, 0.2.

    No bias correction: the rescaling to ‖O‖_F = 0.2·√(mn) makes it irrelevant. beta2 None: the momentum, as in the paper.
    """

    beta2: float | None = None
    eps: float = 1e-8
    rms: float = 0.2

    def __post_init__(self) -> None:
        check_range("eps", self.eps, 0.0, float("inf"))
        check_range("rms", self.rms, 0.0, float("inf"), open_low=True)

    def scalars(self) -> dict[str, Any]:
        return {} if self.beta2 is None else {"beta2": self.beta2}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {"second_moment": torch.zeros_like(like)}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        beta2 = step.scalars["momentum"] if self.beta2 is None else step.scalars["beta2"]
        v = arithmetic.add_square_(step.state["second_moment"].mul_(beta2), x, 1 - beta2)
        x = x / (v.sqrt() + self.eps)
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        return x * (self.rms * (x.shape[-2] * x.shape[-1]) ** 0.5 / (norm + self.eps))

    def __str__(self) -> str:
        return "second_moment"
