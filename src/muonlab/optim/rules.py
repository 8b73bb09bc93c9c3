"""READ FIRST. What one optimizer step is: a rule, applied to a stack of equal-shaped matrices.

`MatrixRule` is the whole Muon family on one screen: a fixed skeleton whose slots are filled with pieces.
A piece (`Transform`) maps a stack (B, m, n) to a stack of the same shape; it may keep state, never mutates
its input, and names the scalars that it wants to find in the parameter group, where schedulers can reach them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from muonlab.optim.decay import Decay
from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.scaling import shape_scale

Scalar = float | Tensor  # a Python float, or one value per matrix: (B, 1, 1)


@dataclass
class Step:
    """One stack in one step, as a rule sees it."""

    weights: list[Tensor]  # B tensors (m, n): the parameters, views or (half precision) float32 copies, updated in place
    grads: Tensor  # (B, m, n), in the state's dtype (float32, or float64 for float64 parameters); read only
    state: dict[str, Tensor]  # each (B, ...), updated in place
    lr: Scalar
    weight_decay: Scalar
    scalars: Mapping[str, Any]  # the group's other live scalars: momentum, beta2, betas, eps ...

    def subtract(self, update: Tensor, factor: Scalar) -> None:
        """W ← W − factor · update, for every matrix of the stack."""
        if isinstance(factor, Tensor):
            torch._foreach_sub_(self.weights, list((update * factor).unbind(0)))  # pyright: ignore[reportPrivateImportUsage]
        else:  # the fused form: one rounding, as torch's own optimizers do it
            torch._foreach_add_(self.weights, list(update.unbind(0)), alpha=-factor)  # pyright: ignore[reportPrivateImportUsage]

    def shrink(self, factor: Scalar) -> None:
        """W ← W · (1 − factor)."""
        if isinstance(factor, Tensor):
            torch._foreach_mul_(self.weights, list((1 - factor).flatten().unbind(0)))  # pyright: ignore[reportPrivateImportUsage]
        elif factor:
            torch._foreach_mul_(self.weights, 1 - factor)  # pyright: ignore[reportPrivateImportUsage]


class Transform(Protocol):
    """A piece: a stack in, a stack of the same shape out."""

    def scalars(self) -> dict[str, Any]:
        """The live scalars that it reads from the group, with their initial values."""
        ...

    def init(self, like: Tensor) -> dict[str, Tensor]:
        """Fresh state for a stack shaped and typed like `like` (B, m, n)."""
        ...

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x (B, m, n) -> (B, m, n). Updates its own state in place, never x."""
        ...


class UpdateRule(Protocol):
    """A whole optimizer for one stack. What does not fit `MatrixRule` implements this directly."""

    matrices: ClassVar[bool]  # True: works on logical matrices (2-D); False: elementwise, any shape

    def scalars(self) -> dict[str, Any]: ...
    def init(self, like: Tensor) -> dict[str, Tensor]: ...
    def __call__(self, step: Step) -> None: ...
    def describe(self) -> str: ...
    def lr_factor(self, shape: torch.Size) -> float: ...


@dataclass(frozen=True)
class MatrixRule:
    """momentum -> orthogonalize -> refine -> scale -> decay -> apply, on a stack of matrices (B, m, n)."""

    momentum: Transform
    orthogonalize: Orthogonalizer
    scale: str  # a canonical name, see scaling.py
    decay: Decay
    refine: tuple[Transform, ...] = ()

    matrices: ClassVar[bool] = True

    def __call__(self, step: Step) -> None:
        u = self.momentum(step.grads, step)
        u = self.orthogonalize(u)
        for piece in self.refine:
            u = piece(u, step)
        scale = shape_scale(self.scale, *u.shape[-2:])
        self.decay(u, step)
        step.subtract(u, step.lr * scale)

    def lr_factor(self, shape: torch.Size) -> float:
        """What the shape rule multiplies the learning rate by, for one logical matrix (m, n)."""
        return shape_scale(self.scale, *shape[-2:])

    def scalars(self) -> dict[str, Any]:
        found = self.momentum.scalars()
        for piece in self.refine:
            found |= piece.scalars()
        return found

    def init(self, like: Tensor) -> dict[str, Tensor]:
        state = self.momentum.init(like)
        for piece in self.refine:
            state |= piece.init(like)
        return state

    def describe(self) -> str:
        names = [self.momentum, self.orthogonalize, *self.refine, self.scale, self.decay]
        return " -> ".join(str(name) for name in names)
