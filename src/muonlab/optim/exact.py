"""Polar factors that are exact to rounding: references, and for those who can pay for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.optim.magnitude import to_unit_range


@dataclass(frozen=True)
class SVD:
    """U Vᵀ from a singular value decomposition, in `dtype` (None: the input's), at least float32.

    Singular values below eps·max(m, n)·σ_max count as zero and add nothing, as in the limit of the iterations: a zero
    matrix stays zero.
    """

    name: str = "svd"
    dtype: torch.dtype | None = None

    waits: ClassVar[str] = "a singular value decomposition waits for the host"

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        wide = x.to(torch.promote_types(self.dtype or x.dtype, torch.float32))
        wide = wide * to_unit_range(wide)
        bad = ~wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)  # it spoils itself alone
        u, s, vt = torch.linalg.svd(torch.where(bad, 0.0, wide), full_matrices=False)
        tolerance = torch.finfo(wide.dtype).eps * max(x.shape[-2:])
        kept = (s > tolerance * s.amax(-1, keepdim=True)).to(wide.dtype)
        return torch.where(bad, float("nan"), (u * kept.unsqueeze(-2)) @ vt).to(x.dtype)

    def flops(self, m: int, n: int) -> int:
        """About 6·m·n² + 20·n³ for the thin decomposition (Golub & Van Loan, table 8.6.1), plus the product."""
        m, n = max(m, n), min(m, n)
        return 6 * m * n**2 + 20 * n**3 + 2 * m * n**2

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cayley:
    """X(XᵀX)^(−1/2) on the small side, by a Padé (1, 1) iteration with solves; orthogonalizes any (m, n).

    X ← (aI + bR)(I + cR)⁻¹ X with R = XXᵀ: each step is a Cayley (Möbius) transform of R with the weights of QDWH
    (Nakatsukasa, Bai & Gygi 2010, doi 10.1137/090774999), which map σ in [l, 1] as near to 1 as such a step can; six
    steps reach rounding from l = 1e-8. The products and the Cholesky solves are in `dtype` (None: float64), at least float32.
    """

    name: str = "cayley"
    steps: int = 6
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        y = x.to(torch.promote_types(self.dtype or torch.float64, torch.float32))
        y = y * to_unit_range(y)
        if x.shape[-2] > x.shape[-1]:
            y = y.mT
        norm = torch.linalg.matrix_norm(y @ y.mT, keepdim=True).sqrt()  # ‖XXᵀ‖_F^(1/2) >= σ_max
        y = y / norm.clamp(min=torch.finfo(y.dtype).tiny)
        eye = torch.eye(y.shape[-2], dtype=y.dtype, device=y.device)
        low = 1e-8 if y.dtype == torch.float64 else 1e-3  # float32 resolves R's eigenvalues to about 1e-7
        for _ in range(self.steps):
            d = (4 * (1 - low**2) / low**4) ** (1 / 3)
            a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * math.sqrt(1 + d)))
            b = (a - 1) ** 2 / 4
            c = a + b - 1
            r = y @ y.mT
            # (aI + bR)(I + cR)⁻¹ = (b/c)I + (a − b/c)(I + cR)⁻¹. The factor is not checked, which would wait for a GPU: it exists
            # unless a matrix is not finite, and then that matrix alone comes out so.
            y = (b / c) * y + (a - b / c) * torch.cholesky_solve(y, torch.linalg.cholesky_ex(eye + c * r).L)
            low = min(low * (a + b * low**2) / (1 + c * low**2), 1.0)
        return (y.mT if x.shape[-2] > x.shape[-1] else y).to(x.dtype)

    def flops(self, m: int, n: int) -> int:
        """Each step: XXᵀ, a Cholesky factor and two triangular solves."""
        m, n = min(m, n), max(m, n)
        return self.steps * (2 * m * m * n + m**3 // 3 + 2 * m * m * n)

    def __str__(self) -> str:
        return self.name
