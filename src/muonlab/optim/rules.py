"""READ FIRST. What one optimizer step is: a rule, applied to a stack of equal-shaped matrices.

`MatrixRule` is the whole Muon family on one screen: a fixed skeleton whose slots are filled with pieces.
A piece (`Transform`) maps a stack (B, m, n) to a stack of the same shape; it may keep state, never mutates
its input, and names the scalars that it wants to find in the parameter group, where schedulers can reach them.

A scalar is a number, or a tensor without dimensions where the step is one graph (captured, compiled) or may not wait for a GPU: no
Python branch on one, and `arithmetic.py` for what torch takes numbers for only. What needs the host names it in `waits`.
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

Scalar = float | Tensor  # a number, a tensor without dimensions, or one value per matrix: (B, 1, 1)


@dataclass
class Step:
    """One stack (or a run of its rows) in one step, as a rule sees it."""

    weights: list[Tensor]  # B tensors (m, n): the parameters, views or (half precision) float32 copies, updated in place
    grads: Tensor  # (B, m, n), in the state's dtype (float32, or float64 for float64 parameters); read only
    state: dict[str, Tensor]  # each (B, ...), updated in place
    lr: Scalar
    weight_decay: Scalar
    scalars: Mapping[str, Any]  # the group's live scalars: lr, momentum, beta2, betas, eps ...
    taken: Tensor | None = None  # a flag on the device: False where a gradient was not finite, and nothing may change. None: yes
    norm_dim: int | tuple[int, ...] | None = None  # where a norm constraint runs: -1 or -2 of a matrix, or as a tensor is stored

    # A step that is not taken is made of gradients and rates of zero and means that keep what they hold. What that does not
    # leave as it was (counts, projections, plain copies) goes through `count`, `write` and `keep`.

    def matrices(self) -> Tensor:
        """The weights as one stack (B, m, n): not to be changed, since one alone is not copied."""
        return self.weights[0].unsqueeze(0) if len(self.weights) == 1 else torch.stack(self.weights)

    def write(self, values: Tensor) -> None:
        """W ← values (B, m, n)."""
        if self.taken is not None:
            values = torch.where(self.taken, values, self.matrices())
        torch._foreach_copy_(self.weights, list(values.unbind(0)))  # pyright: ignore[reportPrivateImportUsage]

    def keep(self, name: str, value: Tensor) -> None:
        """The state of that name ← value."""
        held = self.state[name]
        held.copy_(value if self.taken is None else torch.where(self.taken, value, held))

    def count(self, name: str) -> Tensor:
        """The count of that name (B,), one further."""
        return self.state[name].add_(1 if self.taken is None else self.taken)

    def penalized(self) -> Tensor:
        """G + wd·W: coupled weight decay."""
        wd = self.weight_decay
        if isinstance(wd, Tensor):
            return self.grads + self.matrices() * wd
        return self.grads.add(self.matrices(), alpha=wd) if wd else self.grads

    def subtract(self, update: Tensor, factor: Scalar) -> None:
        """W ← W − factor · update, for every matrix of the stack."""
        if isinstance(factor, Tensor):
            if self.taken is not None:  # what is no number now, as 0/0 without eps, is not to reach W by a factor of zero
                update = torch.where(self.taken, update, 0.0)
            torch._foreach_sub_(self.weights, list((update * factor).unbind(0)))  # pyright: ignore[reportPrivateImportUsage]
        else:  # the fused form: one rounding, as torch's own optimizers do it
            torch._foreach_add_(self.weights, list(update.unbind(0)), alpha=-factor)  # pyright: ignore[reportPrivateImportUsage]

    def shrink(self, factor: Scalar) -> None:
        """W ← W · (1 − factor)."""
        weights = self.weights
        if isinstance(factor, Tensor):
            by = (1 - factor).to(weights[0].dtype)
            torch._foreach_mul_(weights, list(by.flatten().unbind(0)) if by.ndim else by)  # pyright: ignore[reportPrivateImportUsage]
        elif factor:
            # On a CPU a tensor, not a number: torch loops over many small tensors three times as fast with it.
            by = torch.tensor(1 - factor, dtype=weights[0].dtype) if weights[0].device.type == "cpu" else 1 - factor
            torch._foreach_mul_(weights, by)  # pyright: ignore[reportPrivateImportUsage]


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
        step.grads = self.decay.gradient(step)
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

    @property
    def waits(self) -> str:
        """What waits for the host, and so cannot be in a graph; mostly nothing."""
        found = [getattr(piece, "waits", "") for piece in (*self._stateful(), self.orthogonalize)]
        return next(filter(None, found), "")

    def describe(self) -> str:
        pieces = [self.momentum, *self.precondition, self.orthogonalize, *self.refine, self.scale, *self.adjust, self.decay]
        return " -> ".join(str(piece) for piece in pieces) + ("" if self.apply == SUBTRACT else f" -> {self.apply}")
