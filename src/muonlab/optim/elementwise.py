"""AdamW, Lion and SGD as rules, for everything that is not a hidden matrix: embeddings, heads, gains, biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.optim import arithmetic
from muonlab.optim.apply import SUBTRACT, Apply
from muonlab.optim.step import Step


@dataclass(frozen=True)
class AdamW:
    """W ← W(1 − η·wd) − η·m̂/(√v̂ + eps) (arXiv 1711.05101), elementwise, in torch.optim.AdamW's order of operations.

    State per parameter: exp_avg, exp_avg_sq and step, named as torch names them. The step count is per parameter, so
    one that had no gradient for a while gets its own bias correction. coupled: G + wd·W in place of the decay: torch.optim.Adam.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    apply: Apply = SUBTRACT
    coupled: bool = False

    matrices: ClassVar[bool] = False

    def scalars(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps, **self.apply.scalars()}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {
            "exp_avg": torch.zeros_like(like),
            "exp_avg_sq": torch.zeros_like(like),
            "step": torch.zeros(len(like), dtype=torch.float32, device=like.device),
            **self.apply.init(like),
        }

    def __call__(self, step: Step) -> None:
        (beta1, beta2), eps = step.scalars["betas"], step.scalars["eps"]
        self.apply.prepare(step)
        g = _decayed(step, self.coupled)
        m = arithmetic.lerp_(step.state["exp_avg"], g, 1 - beta1)
        v = arithmetic.add_square_(step.state["exp_avg_sq"].mul_(beta2), g, 1 - beta2)
        t = step.count("step").double().reshape(-1, *[1] * (g.ndim - 1))
        step_size = (1 / arithmetic.bias_correction(beta1, t)).to(g.dtype)
        bias2_sqrt = arithmetic.bias_correction(beta2, t).sqrt().to(g.dtype)
        denominator = (v.sqrt() / bias2_sqrt).add_(eps)
        self.apply((m * step_size).div_(denominator), step, step.lr)

    def lr_factor(self, shape: tuple[int, ...]) -> float:
        return 1.0

    def describe(self) -> str:
        return _described("adam, coupled decay" if self.coupled else "adamw", self.apply)


@dataclass(frozen=True)
class Lion:
    """W ← W(1 − η·wd) − η·sign(β₁M + (1−β₁)G), then M ← β₂M + (1−β₂)G (arXiv 2302.06675). State: exp_avg.

    coupled: G + wd·W in place of the decay.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    apply: Apply = SUBTRACT
    coupled: bool = False

    matrices: ClassVar[bool] = False

    def scalars(self) -> dict[str, Any]:
        return {"betas": self.betas, **self.apply.scalars()}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(like), **self.apply.init(like)}

    def __call__(self, step: Step) -> None:
        m, (beta1, beta2) = step.state["exp_avg"], step.scalars["betas"]
        self.apply.prepare(step)
        g = _decayed(step, self.coupled)
        update = arithmetic.lerp(m, g, 1 - beta1).sign_()
        arithmetic.lerp_(m, g, 1 - beta2)
        self.apply(update, step, step.lr)

    def lr_factor(self, shape: tuple[int, ...]) -> float:
        return 1.0

    def describe(self) -> str:
        return _described("lion, coupled decay" if self.coupled else "lion", self.apply)


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD: D = G + wd·W (coupled), M ← μM + D (the first: M = D), W ← W − ηM, or with Nesterov W ← W − η(D + μM).

    The group's momentum is live, from 0 and to 0 as well: a step without leaves the buffer alone, as torch's does.
    State: momentum_buffer, where there is momentum or was.
    """

    momentum: float = 0.0
    nesterov: bool = False
    apply: Apply = SUBTRACT

    matrices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("sgd: nesterov needs a momentum above 0")

    def scalars(self) -> dict[str, Any]:
        return {"momentum": self.momentum, **self.apply.scalars()}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        # Beginning at zero gives M = D in the first step, as torch has it: its dampening is 0.
        return ({"momentum_buffer": torch.zeros_like(like)} if self.momentum else {}) | self.apply.init(like)

    def __call__(self, step: Step) -> None:
        self.apply.prepare(step)
        d, mu = step.penalized(), step.scalars["momentum"]
        if "momentum_buffer" in step.state:
            d = self._with_momentum(d, step, mu)
        self.apply(d, step, step.lr)

    def _with_momentum(self, d: Tensor, step: Step, mu: arithmetic.Number) -> Tensor:
        held = step.state["momentum_buffer"]
        if isinstance(mu, Tensor):
            m = torch.where(mu == 0, held, held * mu + d)
            held.copy_(m)
            return torch.where(mu == 0, d, d + mu * m if self.nesterov else m)
        if mu == 0:
            return d
        held.mul_(mu).add_(d)
        return arithmetic.add(d, held, mu) if self.nesterov else held

    def fitted(self, group: Mapping[str, Any]) -> SGD:
        """Itself, or with the group's momentum where it was made without: it needs a buffer then."""
        live = group.get("momentum", 0.0)
        none = not isinstance(live, Tensor) and not live  # a tensor is not looked at: that would wait for its device
        return self if self.momentum or none else replace(self, momentum=1.0)

    def lr_factor(self, shape: tuple[int, ...]) -> float:
        return 1.0

    def describe(self) -> str:
        return _described("sgd", self.apply)


def _decayed(step: Step, coupled: bool) -> Tensor:
    """The gradient to go by, once the weights have decayed or it has taken the decay in."""
    if coupled:
        return step.penalized()
    step.shrink(step.lr * step.weight_decay)
    return step.grads


def _described(name: str, apply: Apply) -> str:
    return name if apply == SUBTRACT else f"{name} -> {apply}"
