"""AdamW as a rule, for everything that is not a hidden matrix: embeddings, heads, gains, biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.optim.rules import Step


@dataclass(frozen=True)
class AdamW:
    """W ← W(1 − η·wd) − η·m̂/(√v̂ + eps) (arXiv 1711.05101), elementwise, in torch.optim.AdamW's order of operations.

    State per parameter: exp_avg, exp_avg_sq and step, named as torch names them. The step count is per parameter, so
    one that had no gradient for a while gets its own bias correction.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    matrices: ClassVar[bool] = False

    def scalars(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {
            "exp_avg": torch.zeros_like(like),
            "exp_avg_sq": torch.zeros_like(like),
            "step": torch.zeros(len(like), dtype=torch.float32, device=like.device),
        }

    def __call__(self, step: Step) -> None:
        g, (beta1, beta2), eps = step.grads, step.scalars["betas"], step.scalars["eps"]
        step.shrink(step.lr * step.weight_decay)
        m = step.state["exp_avg"].lerp_(g, 1 - beta1)
        v = step.state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # float64: the powers decide the first steps, and torch computes them in Python's floats
        t = step.state["step"].add_(1).double().reshape(-1, *[1] * (g.ndim - 1))
        step_size = (1 / (1 - beta1**t)).to(g.dtype)
        bias2_sqrt = (1 - beta2**t).sqrt().to(g.dtype)
        denominator = (v.sqrt() / bias2_sqrt).add_(eps)
        step.subtract((m * step_size).div_(denominator), step.lr)

    def lr_factor(self, shape: torch.Size) -> float:
        return 1.0

    def describe(self) -> str:
        return "adamw"
