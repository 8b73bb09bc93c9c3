"""Weight decay: decoupled from the gradient, at the unscaled learning rate and before the update, or coupled (L2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.step import Scalar, Step


class Decay(Protocol):
    def gradient(self, step: Step) -> Tensor:
        """The gradient that the momentum is to see."""
        ...

    def __call__(self, u: Tensor, step: Step) -> Scalar:
        """Decays step.weights in place; u (B, m, n) is the update that will be subtracted. Returns what to multiply it by."""
        ...


@dataclass(frozen=True)
class ParamDecay:
    """W ← W(1 − η·wd) − ηU, as in AdamW (arXiv 1711.05101). Negative wd is legal everywhere: it grows the weights.

    squared: the decay goes with η², W ← W(1 − lr_mul·lr · wd_mul·wd · lr) − ηU (modded-nanogpt), so that it fades faster than
    the learning rate does.
    """

    squared: bool = False

    def gradient(self, step: Step) -> Tensor:
        return step.grads

    def __call__(self, u: Tensor, step: Step) -> Scalar:
        step.shrink(self.amount(step))
        return 1.0

    def amount(self, step: Step) -> Scalar:
        amount = step.lr * step.weight_decay
        return amount * step.scalars["lr"] if self.squared else amount

    def __str__(self) -> str:
        return "squared_decay" if self.squared else "param_decay"


@dataclass(frozen=True)
class CautiousDecay(ParamDecay):
    """W ← W − η·wd·[O ⊙ W ≥ 0] ⊙ W − ηU: decays only the entries that the update shrinks too (arXiv 2510.12402)."""

    def __call__(self, u: Tensor, step: Step) -> Scalar:
        factor = self.amount(step)
        if isinstance(factor, Tensor) or factor != 0:
            w = step.matrices().to(u.dtype)
            step.subtract(torch.where(u * w >= 0, w, 0.0), factor)
        return 1.0

    def __str__(self) -> str:
        return "cautious_squared_decay" if self.squared else "cautious_decay"


@dataclass(frozen=True)
class UpdateDecay:
    """W ← W − η(U + wd·U), or with `both` W ← W − η(U + wd(W + U)).

    `update` is no decay at all: it multiplies the learning rate by 1 + wd, and nothing else. A public experiment reported
    wd = −0.4 in this mode as a gain; it had trained at 0.6 times its learning rate. Compare it with an arm of that rate.
    """

    both: bool = False

    def gradient(self, step: Step) -> Tensor:
        return step.grads

    def __call__(self, u: Tensor, step: Step) -> Scalar:
        if self.both:
            step.shrink(step.lr * step.weight_decay)
        return 1 + step.weight_decay

    def __str__(self) -> str:
        return "both_decay" if self.both else "update_decay"


@dataclass(frozen=True)
class CoupledDecay:
    """G ← G + wd·W before the momentum: the L2 penalty of torch.optim.SGD and Adam. Its size is lost in an orthogonalization."""

    def gradient(self, step: Step) -> Tensor:
        return step.penalized()

    def __call__(self, u: Tensor, step: Step) -> Scalar:
        return 1.0

    def __str__(self) -> str:
        return "coupled_decay"


_DECAYS: dict[str, Decay] = {
    "param": ParamDecay(),
    "cautious": CautiousDecay(),
    "update": UpdateDecay(),
    "both": UpdateDecay(both=True),
    "squared": ParamDecay(squared=True),
    "cautious_squared": CautiousDecay(squared=True),
    "coupled": CoupledDecay(),
}


def decay(name: str) -> Decay:
    """The decay of that name. Raises ValueError for an unknown one."""
    return _DECAYS[choose("decay", name, _DECAYS)]
