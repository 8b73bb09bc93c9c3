"""Weight decay, decoupled from the gradient. It acts at the unscaled learning rate, before the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from muonlab.names import choose

if TYPE_CHECKING:
    from muonlab.optim.rules import Step


class Decay(Protocol):
    def __call__(self, u: Tensor, step: Step) -> None:
        """Decays step.weights in place; u (B, m, n) is the update that will be subtracted."""
        ...


@dataclass(frozen=True)
class ParamDecay:
    """W ← W(1 − η·wd), as in AdamW (arXiv 1711.05101). Negative wd is legal: it grows the weights."""

    def __call__(self, u: Tensor, step: Step) -> None:
        step.shrink(step.lr * step.weight_decay)

    def __str__(self) -> str:
        return "param_decay"


@dataclass(frozen=True)
class CautiousDecay:
    """W ← W − η·wd·[O ⊙ W ≥ 0] ⊙ W: decays only the entries that the update shrinks too (modded-nanogpt)."""

    def __call__(self, u: Tensor, step: Step) -> None:
        factor = step.lr * step.weight_decay
        if not isinstance(factor, Tensor) and factor == 0:
            return
        w = torch.stack(step.weights).to(u.dtype)  # (B, m, n)
        step.subtract(torch.where(u * w >= 0, w, 0.0), factor)

    def __str__(self) -> str:
        return "cautious_decay"


_DECAYS = {"param": ParamDecay(), "cautious": CautiousDecay()}


def decay(name: str) -> Decay:
    """The decay of that name. Raises ValueError for an unknown one."""
    return _DECAYS[choose("decay", name, _DECAYS)]
