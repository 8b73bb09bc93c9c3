"""Orthogonalizers: X (..., m, n) -> an approximation of its polar factor U Vᵀ, where X = U S Vᵀ.

Every method here is a composition of odd quintics, X ← aX + b(XXᵀ)X + c(XXᵀ)²X, after dividing X by its
Frobenius norm; on the singular values it acts as σ ← aσ + bσ³ + cσ⁵. The tables say what each list is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.precision import fast_matmul_dtype

Quintic = tuple[float, float, float]

# Keller Jordan, https://kellerjordan.github.io/posts/muon/ : the slope at zero is as large as it can be while σ stays
# within about 0.68–1.13; it does not converge to 1. torch.optim.Muon's default.
KELLER: Quintic = (3.4445, -4.7750, 2.0315)

# YouJiacheng, five different quintics (modded-nanogpt): σ in [0.01, 1] lands in 0.978–1.032.
YOU5: tuple[Quintic, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Polar Express, arXiv 2505.16932: the optimal composition for σ in [1e-3, 1], five steps, safety factor 2e-2,
# cushion 0.02 (Algorithm 1 of the paper makes the list; every polynomial but the last is safety-scaled).
POLAR_EXPRESS5: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# The textbook Newton–Schulz step, σ ← 1.5σ − 0.5σ³. It converges to 1, slowly: five steps leave the singular
# values of a 256×512 Gaussian at 0.14–0.68, ten at 0.81–1.00. That is why ten is the default here.
CUBIC: Quintic = (1.5, -0.5, 0.0)


class Orthogonalizer(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """x (..., m, n) -> (..., m, n), same dtype; x is left as it was."""
        ...


@dataclass(frozen=True)
class NewtonSchulz:
    """A composition of odd quintics on the side where rows ≤ columns.

    `safety` divides X once more, so that rounding cannot push σ_max above 1. `eps` is the smallest norm that is
    divided by: a zero matrix stays zero. `dtype` is what the products are computed in; None takes bfloat16 where
    this device multiplies it faster than float32 and float32 elsewhere (float64 inputs stay float64).
    """

    name: str
    coefficients: tuple[Quintic, ...]
    safety: float = 1.0
    eps: float = 1e-7
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        *batch, m, n = x.shape
        dtype = self.dtype or fast_matmul_dtype(x)
        y = x.reshape(-1, m, n)  # (B, m, n)
        norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True, dtype=_norm_dtype(x.dtype))
        y = (y / (norm * self.safety).clamp(min=self.eps)).to(dtype)
        if m > n:
            y = y.mT
        for a, b, c in self.coefficients:
            gram = torch.bmm(y, y.mT)  # XXᵀ
            if c:
                gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # bXXᵀ + c(XXᵀ)²
                y = torch.baddbmm(y, gram, y, beta=a)
            else:
                y = torch.baddbmm(y, gram, y, beta=a, alpha=b)
        if m > n:
            y = y.mT
        return y.to(x.dtype).reshape(*batch, m, n)

    def __str__(self) -> str:
        return self.name


def _norm_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


# name -> (coefficients for k steps, default k, safety)
_METHODS = {
    "cubic": (lambda k: (CUBIC,) * k, 10, 1.0),
    "keller5": (lambda k: (KELLER,) * k, 5, 1.0),
    "you5": (lambda k: YOU5[:k], 5, 1.0),
    "polar_express5": (lambda k: POLAR_EXPRESS5[:k], 5, 1.02),
}


def orthogonalizer(method: str, *, steps: int | None = None, dtype: torch.dtype | None = None) -> NewtonSchulz:
    """The orthogonalizer of that name. Raises ValueError for an unknown name or a number of steps that it lacks."""
    choose("orthogonalizer", method, _METHODS)
    coefficients, default, safety = _METHODS[method]
    steps = default if steps is None else steps
    chosen = coefficients(max(steps, 0))
    if not chosen or len(chosen) != steps:
        raise ValueError(f"{method}: expected 1 to {len(coefficients(100))} steps, got {steps}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"{method}: expected a floating dtype for the products, got {dtype}")
    return NewtonSchulz(method, chosen, safety=safety, dtype=dtype)


def orthogonalizers() -> list[str]:
    return list(_METHODS)


def orthogonalize(
    g: Tensor, method: str = "polar_express5", *, steps: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The polar factor of g, approximately: U Vᵀ where g = U S Vᵀ.

    g: (..., m, n), any floating dtype; leading dimensions are a batch of independent matrices. Returns a new tensor of
    g's shape and dtype. `dtype` is what the products are computed in (see `NewtonSchulz`). Raises ValueError for
    fewer than two dimensions or an unknown method, TypeError for integer and complex input.
    """
    if g.ndim < 2:
        raise ValueError(f"orthogonalize: expected a matrix or a batch of them (..., m, n), got shape {tuple(g.shape)}")
    if not g.is_floating_point():
        raise TypeError(f"orthogonalize: expected a real floating dtype, got {g.dtype}")
    return orthogonalizer(method, steps=steps, dtype=dtype)(g)
