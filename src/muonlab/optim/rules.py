"""READ FIRST. What one optimizer step is: a rule, applied to a stack of equal-shaped matrices.

`MatrixRule` is the whole Muon family on one screen: a fixed skeleton whose slots are filled with pieces.
A piece (`Transform`) maps a stack (B, m, n) to a stack of the same shape; it may keep state, never mutates
its input, and names the scalars that it wants to find in the parameter group, where schedulers can reach them.

A scalar is a number, or a tensor without dimensions where the step is one graph (captured, compiled) or may not wait for a GPU: no
Python branch on one, and `arithmetic.py` for what torch takes numbers for only. What needs the host names it in `waits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from muonlab.optim import scratch
from muonlab.optim.apply import SUBTRACT, Apply
from muonlab.optim.decay import Decay
from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.scaling import shape_scale
from muonlab.optim.step import Step


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
        result is used again.

        A step in a graph may turn out not to be taken (`Step.taken`): a mean keeps what it holds by its β, which `live._STILL`
        has to name; whatever else is kept goes through step.keep, counts through step.count. A scalar's range is in `checks`.
        """
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
