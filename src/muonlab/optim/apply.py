"""How an update reaches the weights: subtracted, or in a way that keeps a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.step import Scalar, Step

_TINY = 1e-12


class Apply(Protocol):
    def scalars(self) -> dict[str, Any]: ...
    def init(self, like: Tensor) -> dict[str, Tensor]: ...

    def prepare(self, step: Step) -> None:
        """Called before weight decay, for what has to be known of the weights as they were."""
        ...

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        """Moves step.weights in place by the update u (B, m, n) at the learning rate `factor`."""
        ...


@dataclass(frozen=True)
class Subtract:
    """W ← W − η·U."""

    def scalars(self) -> dict[str, Any]:
        return {}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {}

    def prepare(self, step: Step) -> None:
        pass

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        step.subtract(u, factor)

    def __str__(self) -> str:
        return "subtract"


SUBTRACT = Subtract()


@dataclass(frozen=True)
class UnitNorm(Subtract):
    """W ← W − η·U, then every row (or column) back to norm 1, after every `every`-th step (lazy projection).

    Which of the two is the parameter's own: MatrixSpec.norm_axis. Parameters without one are only subtracted from. nGPT
    (arXiv 2410.01131) projects after each step. A zero row stays zero. State: the count of steps, where `every` > 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"expected project_every >= 1, a whole number, got {self.every!r}")

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {} if self.every == 1 else {"applied": like.new_zeros(len(like))}

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        step.subtract(u, factor)
        if step.norm_dim is None:
            if self.every > 1:
                step.count("applied")
            return
        w = step.matrices()
        projected = w / _norm(w, step.norm_dim)
        if self.every > 1:
            due = step.count("applied") % self.every == 0
            projected = torch.where(due.reshape(-1, *[1] * (w.ndim - 1)), projected, w)
        step.write(projected)

    def __str__(self) -> str:
        return "unit_norm" if self.every == 1 else f"unit_norm(every {self.every})"


@dataclass(frozen=True)
class Geodesic(Subtract):
    """Along the great circle that the update points down: w ← w cos θ − t/‖t‖ sin θ, for every unit row (or column) w.

    t = u − ⟨u, w⟩w is the update's part tangent to the sphere; θ = lr, or with `by_norm` η·‖t‖, whose first order is plain
    subtraction. Updates point uphill here (they are subtracted), so the step goes against t: a public experiment went along it. The
    weights are brought back to the unit sphere in the same pass, so that rounding does not build up.
    """

    by_norm: bool = False

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        dim = step.norm_dim
        if dim is None:
            step.subtract(u, factor)
            return
        w = step.matrices()
        w = w / _norm(w, dim)
        tangent = u - (u * w).sum(dim, keepdim=True) * w
        length = torch.linalg.vector_norm(tangent, dim=dim, keepdim=True)
        # Where u is along w already, the tangent is rounding: such a row stays where it is.
        real = length > 16 * torch.finfo(u.dtype).eps * torch.linalg.vector_norm(u, dim=dim, keepdim=True)
        direction = torch.where(real, tangent / length.clamp(min=torch.finfo(u.dtype).tiny), 0.0)
        theta = torch.where(real, factor * length if self.by_norm else torch.zeros_like(length) + step.lr, 0.0)
        moved = w * theta.cos() - direction * theta.sin()
        step.write(moved / _norm(moved, dim))

    def __str__(self) -> str:
        return "geodesic_by_norm" if self.by_norm else "geodesic"


@dataclass(frozen=True)
class Sphere(Subtract):
    """W ← W − η·U, then back to the Frobenius norm that W began with. State: that radius. What begins at zero is free."""

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {"radius": like.new_zeros(len(like))}  # 0: not yet measured; -1: the matrix began at zero

    def prepare(self, step: Step) -> None:
        held = step.state["radius"]
        norm = _frobenius(step.matrices()).flatten()
        step.keep("radius", torch.where(held != 0, held, torch.where(norm > 0, norm, -1.0)))

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        radius = step.state["radius"].reshape(-1, *[1] * (u.ndim - 1))
        step.subtract(self._update(u, radius), factor)
        w = step.matrices()
        back = radius / _frobenius(w).clamp(min=_TINY)
        step.write(w * torch.where(radius > 0, back, 1.0))

    def _update(self, u: Tensor, radius: Tensor) -> Tensor:
        return u

    def __str__(self) -> str:
        return "sphere"


@dataclass(frozen=True)
class Hyperball(Sphere):
    """MuonH: a step of relative length η, ‖ΔW‖_F = η·‖W‖_F, and back to the initial radius.

    W ← R·(W − ηR·U/‖U‖)/‖·‖ (modded-nanogpt, optimization benchmark, 2026-04-30). A matrix that begins at zero could
    never move: it takes the step that it would without the constraint.
    """

    eps: float = 1e-10

    def _update(self, u: Tensor, radius: Tensor) -> Tensor:
        return torch.where(radius > 0, u * (radius / _frobenius(u).clamp(min=self.eps)), u)

    def __str__(self) -> str:
        return "hyperball"


CONSTRAINTS = ("none", "unit_norm", "geodesic", "geodesic_by_norm", "sphere")


def constraint(name: str, every: int = 1) -> Apply:
    """The way of applying an update that keeps the norm of that name. Raises ValueError for an unknown one."""
    choose("constraint", name, CONSTRAINTS)
    if every != 1 and name != "unit_norm":
        raise ValueError(f"project_every goes with constraint 'unit_norm', not with {name!r}")
    found: dict[str, Apply] = {
        "none": SUBTRACT,
        "geodesic": Geodesic(),
        "geodesic_by_norm": Geodesic(by_norm=True),
        "sphere": Sphere(),
    }
    return found[name] if name in found else UnitNorm(every)


def _norm(w: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The norm along dim, with zero rows taken as 1 (they stay zero)."""
    norm = torch.linalg.vector_norm(w, dim=dim, keepdim=True)
    return torch.where(norm > 0, norm, 1.0)


def _frobenius(x: Tensor) -> Tensor:
    """(B, ...) -> (B, 1, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True) if x.ndim > 1 else x.abs()
