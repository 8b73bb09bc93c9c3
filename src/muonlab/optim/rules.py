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

from muonlab.optim import scratch
from muonlab.optim.apply import SUBTRACT, Apply
from muonlab.optim.decay import Decay
from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.scaling import shape_scale

Scalar = float | Tensor  # a Python float, or one value per matrix: (B, 1, 1)


@dataclass
class Step:
    """One stack (or a run of its rows) in one step, as a rule sees it."""

    weights: list[Tensor]  # B tensors (m, n): the parameters, views or (half precision) float32 copies, updated in place
    grads: Tensor  # (B, m, n), in the state's dtype (float32, or float64 for float64 parameters); read only
    state: dict[str, Tensor]  # each (B, ...), updated in place
    lr: Scalar
    weight_decay: Scalar
    scalars: Mapping[str, Any]  # the group's live scalars: lr, momentum, beta2, betas, eps ...
    norm_dim: int | tuple[int, ...] | None = None  # where a norm constraint runs: -1 or -2 of a matrix, or as a tensor is stored

    def matrices(self) -> Tensor:
        """The weights as one stack (B, m, n): not to be changed, since one alone is not copied."""
        return self.weights[0].unsqueeze(0) if len(self.weights) == 1 else torch.stack(self.weights)

    def write(self, values: Tensor) -> None:
        """W ← values (B, m, n)."""
        torch._foreach_copy_(self.weights, list(values.unbind(0)))  # pyright: ignore[reportPrivateImportUsage]

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
            # a tensor, not a number: torch loops over many small tensors three times as fast with it
            torch._foreach_mul_(self.weights, torch.tensor(1 - factor, dtype=self.weights[0].dtype, device=self.grads.device))  # pyright: ignore[reportPrivateImportUsage]


class Transform(Protocol):
    """A piece: a stack in, a stack of the same shape out."""

    def scalars(self) -> dict[str, Any]:
        """The live scalars that it reads from the group, with their initial values."""
        ...

    def init(self, like: Tensor) -> dict[str, Tensor]:
        """Fresh state for a stack shaped and typed like `like` (B, m, n)."""
        ...

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x (B, m, n) -> (B, m, n). Updates its own state in place, never x. Keeps copies only: the memory of x and of the
        result is used again."""
        ...


class Stateless:
    """The parts of a Transform that a piece without scalars and state has no use for."""

    def scalars(self) -> dict[str, Any]:
        return {}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {}


class UpdateRule(Protocol):
    """A whole optimizer for one stack. What does not fit `MatrixRule` implements this directly."""

    matrices: ClassVar[bool]  # True: works on logical matrices (2-D); False: elementwise, any shape

    def scalars(self) -> dict[str, Any]: ...
    def init(self, like: Tensor) -> dict[str, Tensor]: ...
    def __call__(self, step: Step) -> None: ...
    def describe(self) -> str: ...
    def lr_factor(self, shape: tuple[int, ...]) -> float: ...


def _then(used: Tensor, result: Tensor) -> Tensor:
    """result, once the memory of what it was made from may be used again."""
    scratch.release(used, kept=result)
    return result


@dataclass(frozen=True)
class MatrixRule:
    """momentum -> precondition -> orthogonalize -> refine -> scale -> adjust -> decay -> apply, on a stack (B, m, n)."""

    momentum: Transform
    orthogonalize: Orthogonalizer
    scale: str  # a canonical name, see scaling.py
    decay: Decay
    precondition: tuple[Transform, ...] = ()  # of what is orthogonalized
    refine: tuple[Transform, ...] = ()  # of the orthogonalized update
    adjust: tuple[Transform, ...] = ()  # of the scaled update, against the weights
    apply: Apply = SUBTRACT  # how the update reaches the weights: straight, or along a constraint

    matrices: ClassVar[bool] = True

    def __call__(self, step: Step) -> None:
        self.apply.prepare(step)
        u = self.momentum(step.grads, step)
        for piece in self.precondition:
            u = _then(u, piece(u, step))
        u = _then(u, self.orthogonalize(u))
        for piece in self.refine:
            u = _then(u, piece(u, step))
        factor = shape_scale(self.scale, *u.shape[-2:])
        if self.adjust:
            u, factor = _then(u, u * factor), 1.0
            for piece in self.adjust:
                u = _then(u, piece(u, step))
        gain = self.decay(u, step)
        self.apply(u, step, step.lr * (factor * gain))
        scratch.release(u)

    def lr_factor(self, shape: tuple[int, ...]) -> float:
        """What the shape rule multiplies the learning rate by, for one logical matrix (m, n)."""
        return shape_scale(self.scale, *shape[-2:])

    def _stateful(self) -> list[Transform | Apply]:
        return [self.momentum, *self.precondition, *self.refine, *self.adjust, self.apply]

    def scalars(self) -> dict[str, Any]:
        return {name: value for piece in self._stateful() for name, value in piece.scalars().items()}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {name: value for piece in self._stateful() for name, value in piece.init(like).items()}

    def describe(self) -> str:
        pieces = [self.momentum, *self.precondition, self.orthogonalize, *self.refine, self.scale, *self.adjust, self.decay]
        return " -> ".join(str(piece) for piece in pieces) + ("" if self.apply == SUBTRACT else f" -> {self.apply}")
