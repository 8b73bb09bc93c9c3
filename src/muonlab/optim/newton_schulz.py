"""The iteration: a composition of odd polynomials, by matrix products alone.

Everything between two looks at X happens on the small side. With R = XXᵀ (m, m), one polynomial is X ← z(R) X, where
z(R) = c₀I + c₁R + c₂R² + …; several in a row need X only at their end: R ← R z(R)², Q ← Q z(R), X ← Q X (the Gram form).
That squares the condition number: a rounding error in R grows with the square of the slopes c₀. So X and R are brought up
to date ("restart") after every two polynomials. With three, in bfloat16, a matrix of one large and some small singular values
blows up (measured: keller5, 2×30: σ = 1e7; you5, 256×1024 of rank 4: σ = 8). One restart a polynomial is the standard form; of the
two, the one with fewer FLOPs is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import kernels, scratch
from muonlab.optim.coefficients import Polynomial
from muonlab.optim.magnitude import to_float16_range, to_unit_range
from muonlab.optim.precision import fast_matmul_dtype

# Below this size a product is all call overhead, and bfloat16 saves nothing.
_BF16_FROM = 64

# From this size on a symmetric product pays by blocks on a CPU (0.75–0.85 of a full one; below, the calls eat it up).
_BLOCKS_FROM = 768
_BLOCK = 256

NORMS = ("frobenius", "schatten4")


@dataclass(frozen=True)
class NewtonSchulz:
    """X (..., m, n) -> p_k(… p_1(X / ‖X‖)), which has X's singular vectors and singular values near 1.

    `norm` is what X is divided by: ‖X‖_F, or the nearer bound on σ_max ‖XXᵀ‖_F^(1/2) ("schatten4"). `safety` divides it once
    more, so that rounding cannot push σ_max above 1. `eps` is the smallest norm that is divided by, as torch.optim.Muon has it;
    with 0 the size of X is no matter (float32's range through), and a zero matrix stays zero.
    `longest` is the number of polynomials between two restarts at most; 1 is the standard form.
    `dtype` is what the products are computed in; None takes bfloat16 where this device multiplies it faster than float32 (and the
    matrix has 64 rows and columns or more), and float32 elsewhere (float64 inputs stay float64).
    """

    name: str
    polynomials: tuple[Polynomial, ...]
    norm: str = "frobenius"
    safety: float = 1.0
    eps: float = 0.0
    longest: int = 2
    dtype: torch.dtype | None = field(default=None)

    def __post_init__(self) -> None:
        choose("norm", self.norm, NORMS)
        if not self.polynomials or any(len(p) < 2 for p in self.polynomials):
            raise ValueError(f"{self.name}: expected at least one polynomial of two or more coefficients, got {self.polynomials}")

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        *batch, m, n = x.shape
        dtype = self.dtype or (fast_matmul_dtype(x) if min(m, n) >= _BF16_FROM else torch.promote_types(x.dtype, torch.float32))
        stored, scale = _scaled(x.reshape(-1, m, n), dtype)
        found = self._iterate(stored.mT if m > n else stored, smallest=self.eps * scale.double() if self.eps else None)
        scratch.release(stored)
        result = found.mT if m > n else found
        if dtype == x.dtype:
            return result.reshape(*batch, m, n)
        out = scratch.empty(x.shape, x.dtype, x.device)
        out.copy_(result.reshape(x.shape))
        scratch.release(found)
        return out

    def _iterate(self, y: Tensor, smallest: Tensor | None) -> Tensor:
        """y (B, m, n), m <= n, in the dtype of the products -> the result, in other memory. `smallest` norm of y: (B, 1, 1)."""
        given = y
        # In half precision a few rows blow up in the Gram form now and then: nothing averages their rounding out (8×700: σ = 10).
        longest = 1 if y.dtype in (torch.bfloat16, torch.float16) and y.shape[-2] < _BF16_FROM else self.longest
        for i, polynomials in enumerate(segments(self.polynomials, *y.shape[-2:], longest=longest)):
            r = symmetric_product(y, y.mT)  # R = XXᵀ
            scale = self._normalize(r, smallest) if i == 0 else None
            q = self._compose(polynomials, r)
            if scale is not None:
                q.mul_(scale)
            x, y = y, torch.bmm(q, y, out=scratch.empty(y.shape, y.dtype, y.device))
            scratch.release(q)
            if x is not given:
                scratch.release(x)
        return y

    def _compose(self, polynomials: tuple[Polynomial, ...], r: Tensor) -> Tensor:
        """Q = z_k(R_k) … z_1(R), where R is taken along: R ← R z(R)². Uses r up."""
        q = None
        for i, (c0, *higher) in enumerate(polynomials):
            s = _without_constant(higher, r)  # S = z(R) − c₀I
            last = i == len(polynomials) - 1
            if not last:
                t = symmetric_product(r, s, add=r, beta=c0)
                scratch.release(r)
                r = symmetric_product(t, s, add=t, beta=c0)
                scratch.release(t)
            if q is None:
                q = s
                q.diagonal(dim1=-2, dim2=-1).add_(c0)
            else:
                before, q = q, symmetric_product(q, s, add=q, beta=c0)
                scratch.release(before)
                scratch.release(s)
        scratch.release(r)
        assert q is not None
        return q

    def _normalize(self, r: Tensor, smallest: Tensor | None) -> Tensor:
        """R = XXᵀ -> that of X / norm, in place. Returns 1 / norm (B, 1, 1): X itself is scaled later, through Q."""
        # In float64, which the square of a scaled eps fits. (Apple's GPUs have none.)
        wide = torch.float32 if r.device.type == "mps" else torch.float64
        if self.norm == "schatten4":
            squared = torch.linalg.vector_norm(r, dim=(-2, -1), keepdim=True, dtype=wide)
        else:
            squared = r.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide)[:, None, None]  # ‖X‖_F²
        squared = (squared * self.safety**2).clamp(min=torch.finfo(r.dtype).tiny)  # whose inverse is finite in R's dtype
        inverse = 1 / (squared if smallest is None else torch.maximum(squared, smallest.to(wide).square()))
        # In R's own dtype, since a product of two dtypes is slow: what rounding does to the scale, the next R undoes.
        r.mul_(inverse.to(r.dtype))
        return inverse.sqrt().to(r.dtype)

    def flops(self, m: int, n: int) -> int:
        """Floating-point operations for one (m, n) matrix, a multiplication and an addition counted apart."""
        return _form_flops(segments(self.polynomials, m, n, longest=self.longest), m, n)

    def __str__(self) -> str:
        return self.name


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (B, m, n) -> the same times a power of two in the dtype of the products, in memory of its own, and that power (B, 1, 1)."""
    scale = to_float16_range(x) if dtype == torch.float16 else to_unit_range(x)
    out = scratch.empty(x.shape, dtype, x.device)
    same_range = dtype == x.dtype or (x.dtype, dtype) == (torch.float32, torch.bfloat16)
    if same_range and x.device.type == "cpu":  # cast first, which is much faster on a CPU
        return out.copy_(x).mul_(scale.to(dtype)), scale
    return torch.mul(x, scale, out=out), scale


def _without_constant(higher: list[float], r: Tensor) -> Tensor:
    """c₁R + c₂R² + … by Horner's rule: one product for each degree above the first."""
    *lower, last = higher
    if not lower:
        return r * last
    s = symmetric_product(r, r, add=r, beta=lower[-1], alpha=last)
    for c in reversed(lower[:-1]):
        before, s = s, symmetric_product(r, s, add=r, beta=c)
        scratch.release(before)
    return s


def symmetric_product(a: Tensor, b: Tensor, *, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """alpha·ab + beta·add for a (B, m, k) and b (B, k, m) whose product is symmetric, as is `add` (B, m, m)."""
    m = a.shape[-2]
    out = scratch.empty((len(a), m, m), a.dtype, a.device)
    if kernels.chosen(a):
        return kernels.symmetric_product(a, b, add=add, beta=beta, alpha=alpha, out=out)
    if a.device.type != "cpu" or m < _BLOCKS_FROM or torch.compiler.is_compiling():
        if add is None:
            return torch.bmm(a, b, out=out)
        return torch.baddbmm(add, a, b, beta=beta, alpha=alpha, out=out)
    block = math.ceil(m / round(m / _BLOCK))
    for i in range(len(a)):
        for top in range(0, m, block):  # the blocks right of the diagonal, row by row; below it their transposes
            rows, rest = slice(top, top + block), slice(top, None)
            if add is None:
                product = torch.mm(a[i, rows], b[i, :, rest])
            else:
                product = torch.addmm(add[i, rows, rest], a[i, rows], b[i, :, rest], beta=beta, alpha=alpha)
            out[i, rows, rest] = product
            out[i, top + block :, rows] = product[:, block:].mT
    return out


def segments(polynomials: tuple[Polynomial, ...], m: int, n: int, *, longest: int) -> tuple[tuple[Polynomial, ...], ...]:
    """The polynomials in runs between restarts, for a matrix (m, n): the cheaper of the standard and the Gram form."""
    m, n = min(m, n), max(m, n)
    standard = tuple((p,) for p in polynomials)
    gram = tuple(polynomials[i : i + longest] for i in range(0, len(polynomials), longest))
    return gram if _form_flops(gram, m, n) < _form_flops(standard, m, n) else standard


def _form_flops(form: tuple[tuple[Polynomial, ...], ...], m: int, n: int) -> int:
    return sum([_segment_flops(segment, m, n) for segment in form])


def _segment_flops(segment: tuple[Polynomial, ...], m: int, n: int) -> int:
    m, n = min(m, n), max(m, n)
    squares = sum(len(p) - 2 for p in segment) + 3 * (len(segment) - 1)  # Horner; and R z², Q z between two polynomials
    return 2 * m * m * n * 2 + squares * 2 * m**3
