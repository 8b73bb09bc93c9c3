"""Orthogonalizers by name: X (..., m, n) -> an approximation of its polar factor U Vᵀ, where X = U S Vᵀ."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import scratch
from muonlab.optim.coefficients import CONVERGING, CUBIC, FAST, KELLER, POLAR_EXPRESS5, YOU5, Polynomial, polar_express
from muonlab.optim.exact import SVD, Cayley
from muonlab.optim.newton_schulz import NewtonSchulz


class Orthogonalizer(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """x (..., m, n) -> (..., m, n), same dtype; x is left as it was."""
        ...

    def flops(self, m: int, n: int) -> int: ...


def _repeated(polynomial: Polynomial, default: int) -> Callable[[int | None], tuple[Polynomial, ...]]:
    return lambda steps: (polynomial,) * (default if steps is None else steps)


def _listed(polynomials: tuple[Polynomial, ...]) -> Callable[[int | None], tuple[Polynomial, ...]]:
    return lambda steps: polynomials[: len(polynomials) if steps is None else max(steps, 0)]


# name -> (polynomials for so many steps, norm, safety). Polar Express goes in the standard form: its polynomials are so steep
# just beyond 1 that the rounding of two of them multiplied out blows up (bfloat16, 64×128 of rank 2: σ = 4580).
_LISTS: dict[str, tuple[Callable[[int | None], tuple[Polynomial, ...]], str, float]] = {
    "fast": (_listed(FAST), "schatten4", 1.0),
    "keller5": (_repeated(KELLER, 5), "frobenius", 1.0),
    "you5": (_listed(YOU5), "frobenius", 1.0),
    "polar_express5": (_listed(POLAR_EXPRESS5), "frobenius", 1.02),
    "dsv4_10": (_listed((KELLER,) * 8 + (CONVERGING,) * 2), "frobenius", 1.0),
    "converged12": (_repeated(CONVERGING, 12), "frobenius", 1.0),
    "cubic": (_repeated(CUBIC, 10), "frobenius", 1.0),
    # A public trainer's names for the cubic with five and ten steps. Five are far from done; and these are not the quintic
    # of zeropower_via_newtonschulz5 (KellerJordan/Muon), which is 'keller5'.
    "newtonschulz5": (_repeated(CUBIC, 5), "frobenius", 1.0),
    "newtonschulz10": (_repeated(CUBIC, 10), "frobenius", 1.0),
}
_METHODS = (*_LISTS, "polar_express", "cayley", "svd", "exact")


def orthogonalizer(
    method: str, *, steps: int | None = None, dtype: torch.dtype | str | None = None, coefficients: Any = None, **options: float
) -> Orthogonalizer:
    """The orthogonalizer of that name, or written as a call: `"polar_express(l=1e-4, steps=6, dtype='float32')"`.

    steps: how many polynomials (for lists: the first so many). dtype: what the products are computed in; default: bfloat16 where
    that is fast. coefficients: other polynomials for a Newton–Schulz method, one (c₀, c₁, …) for all steps or one a step;
    options: those of `polar_express` (l, safety, cushion). Raises ValueError for unknown names and values out of range.
    """
    if "(" in method:
        method, written = _parsed(method)
        given = {"steps": steps, "dtype": dtype, "coefficients": coefficients}
        return orthogonalizer(method, **{**{k: v for k, v in given.items() if v is not None}, **options, **written})
    choose("orthogonalizer", method, _METHODS)
    dtype = _floating(method, dtype)
    steps = None if steps is None else _whole(method, steps)
    if coefficients is not None and method not in _LISTS:
        raise ValueError(f"{method}: takes no coefficients")
    known = ("l", "safety", "cushion") if method == "polar_express" else ()
    for option, value in options.items():
        choose(f"option of {method}:", option, (*known, "steps", "dtype", "coefficients"))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number:
            raise ValueError(f"{method}: expected {option} to be a number, got {value!r}")
    if method == "polar_express":
        steps = 5 if steps is None else steps
        polynomials = polar_express(steps=steps, **options)
        label, margin = _label(method, steps=steps, **options), 1 + options.get("safety", 2e-2)
        return NewtonSchulz(label, polynomials, safety=margin, longest=1, dtype=dtype)
    if method == "cayley":
        return Cayley(method, 6 if steps is None else steps, dtype)
    if method in ("svd", "exact"):
        if steps is not None:
            raise ValueError(f"{method}: takes no steps")
        return SVD(method, torch.float64 if method == "exact" and dtype is None else dtype)
    of_steps, norm, safety = _LISTS[method]
    polynomials = of_steps(steps) if coefficients is None else _given(method, coefficients, steps)
    if not polynomials or (steps is not None and len(polynomials) != steps):
        raise ValueError(f"{method}: expected 1 to {min(len(of_steps(100)), 100)} steps, got {steps}")
    label = method if coefficients is None and steps is None else _label(method, steps=len(polynomials))
    longest = 1 if method == "polar_express5" else 2
    return NewtonSchulz(label, polynomials, norm=norm, safety=safety, longest=longest, dtype=dtype)


def chosen(orthogonalizer_: str | Orthogonalizer) -> Orthogonalizer:
    """The orthogonalizer of that name, or the object itself. Raises ValueError for what is neither."""
    if isinstance(orthogonalizer_, str):
        return orthogonalizer(orthogonalizer_)
    if callable(orthogonalizer_):
        return orthogonalizer_
    raise ValueError(f"expected an orthogonalizer's name, or an object that is called as one, got {orthogonalizer_!r}")


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """ "name(key=value, …)" -> name and its keywords; literals only."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keywords")
        given = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"orthogonalizer {text!r}: expected a name or name(key=value, ...), as 'cubic(steps=12)'") from None
    if "method" in given:  # the name stands before the bracket
        raise ValueError(f"orthogonalizer {text!r}: unknown option 'method'")
    return call.func.id, given


def _given(method: str, coefficients: Any, steps: int | None) -> tuple[Polynomial, ...]:
    try:
        single = not isinstance(coefficients[0], Sequence)
        polynomials = [tuple(map(float, p)) for p in ([coefficients] if single else coefficients)]
        if not all(math.isfinite(c) for p in polynomials for c in p):
            raise ValueError("not finite")
    except (TypeError, ValueError, LookupError):
        raise ValueError(f"{method}: expected coefficients (c0, c1, c2) or a list of such, got {coefficients!r}") from None
    return tuple(polynomials) * (5 if steps is None else steps) if single else tuple(polynomials)


def _whole(method: str, steps: Any) -> int:
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 100:
        raise ValueError(f"{method}: expected 1 to 100 steps, got {steps!r}")
    return steps


def _floating(method: str, dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise ValueError(f"{method}: expected a floating dtype for the products, got {dtype}")
    return found


def _label(method: str, **options: float) -> str:
    return f"{method}({', '.join(f'{k}={v:g}' for k, v in options.items())})"


def orthogonalizers() -> list[str]:
    return list(_METHODS)


_cached = cache(orthogonalizer)


def orthogonalize(
    g: Tensor, method: str = "polar_express5", *, steps: int | None = None, dtype: torch.dtype | str | None = None
) -> Tensor:
    """The polar factor of g, approximately: U Vᵀ where g = U S Vᵀ.

    g: (..., m, n), any floating dtype; leading dimensions are a batch of independent matrices. Returns a new tensor of
    g's shape and dtype, outside of autograd. method, steps, dtype: see `orthogonalizer`. Raises ValueError for
    fewer than two dimensions or an unknown method, TypeError for integer and complex input.
    """
    if g.ndim < 2:
        raise ValueError(f"orthogonalize: expected a matrix or a batch of them (..., m, n), got shape {tuple(g.shape)}")
    if not g.is_floating_point():
        raise TypeError(f"orthogonalize: expected a real floating dtype, got {g.dtype}")
    return scratch.own(_cached(method, steps=steps, dtype=dtype)(g.detach()))
