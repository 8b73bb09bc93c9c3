"""What is done to the scaled update, against the weights that it will change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.apply import Subtract
from muonlab.optim.checks import check_range
from muonlab.optim.rules import Stateless
from muonlab.optim.step import Scalar, Step

FLOORS = ("matrix", "row", "none")


def _norm(x: Tensor, dim: int | tuple[int, int] = (-2, -1)) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


@dataclass(frozen=True)
class RadialBrake(Stateless):
    """Scales the part of the update along W: by `outward` where the step makes W grow, by `inward` where it shrinks it.

    (modded-nanogpt, optimization benchmark, PR 294: 0.5 and 1.) Both 0 is nearly the hyperball; outward 0 alone is AdamP's.
    """

    outward: float = 0.5
    inward: float = 1.0

    def __post_init__(self) -> None:
        check_range("outward", self.outward, 0.0, float("inf"))
        check_range("inward", self.inward, 0.0, float("inf"))

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        w = step.matrices()
        along = _inner(x, w) / _inner(w, w).clamp(min=1e-12)  # the update is subtracted: below zero, W grows
        return x + w * along * (torch.where(along < 0, self.outward, self.inward) - 1)

    def __str__(self) -> str:
        return f"radial_brake({self.outward:g})"


@dataclass(frozen=True)
class Floor:
    """Raises ‖U‖/‖W‖ to `tau` where it is below, for the matrix or for each of its rows (PR 269, PR 328). A zero W is free."""

    tau: float = 0.35
    per: str = "matrix"

    def __post_init__(self) -> None:
        choose("floor", self.per, FLOORS)

    def scalars(self) -> dict[str, Any]:
        return {"floor": self.tau}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        return {}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        if self.per == "none":
            return x
        dim = (-2, -1) if self.per == "matrix" else -1
        ratio = _norm(x, dim).clamp(min=1e-8) / _norm(step.matrices(), dim).clamp(min=1e-8)
        return x * (step.scalars["floor"] / ratio).clamp(min=1.0)

    def __str__(self) -> str:
        return f"u/w_floor({self.per})"


@dataclass(frozen=True)
class FirstOrderRadius(Subtract):
    """W ← W − η·U, then to the norm that first order gives it, ‖W‖ − η⟨U, W⟩/‖W‖: tangential steps do not make W grow."""

    def __call__(self, u: Tensor, step: Step, factor: Scalar) -> None:
        w = step.matrices()
        norm = _norm(w).clamp(min=1e-8)
        target = (norm - factor * _inner(u, w) / norm).clamp(min=1e-8)
        real = _norm(w) > 0  # before the step: a single matrix is not copied, w moves with it
        step.subtract(u, factor)
        moved = step.matrices()
        # from zero there is no first order: such a matrix takes its step as it is
        back = torch.where(real, target / _norm(moved).clamp(min=1e-8), 1.0)
        step.write(moved * back)

    def __str__(self) -> str:
        return "first_order_radius"
