"""What a parameter group may hold."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.magnitude import all_finite
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.rules import UpdateRule

_FINITE = (-math.inf, math.inf, "a finite number")
_POSITIVE = (0.0, math.inf, ">= 0")
_FRACTION = (0.0, math.nextafter(1.0, 0.0), ">= 0 and < 1")
_RANGES = {"lr": _POSITIVE, "lr_mul": _POSITIVE, "eps": _POSITIVE, "weight_decay": _FINITE, "wd_mul": _FINITE}
_RANGES |= {"floor": _POSITIVE, "shampoo_beta": _FRACTION}
_RANGES |= {"momentum": (0.0, 1.0, ">= 0 and <= 1"), "beta2": _FRACTION, "betas": _FRACTION, "smoothing": _FRACTION}


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises ValueError unless low <= value <= high (low < value with open_low)."""
    if not (low < value if open_low else low <= value) or not value <= high:
        upper = f" and <= {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"expected {name} {'>' if open_low else '>='} {low:g}{upper}, got {value}")


def check_whole(name: str, value: Any, low: int) -> None:
    """Raises ValueError unless value is a whole number, low or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"expected {name} to be a whole number >= {low}, got {value!r}")


def pair(name: str, values: Any) -> tuple[float, float]:
    """Two numbers as floats. Raises ValueError for anything else."""
    try:
        first, second = map(float, values)
    except (TypeError, ValueError):
        raise ValueError(f"expected two {name}, got {values!r}") from None
    return first, second


def check_scalars(group: dict[str, Any]) -> None:
    """Raises ValueError for a scalar of a group that is out of range or not a number."""
    if "betas" in group:
        pair("betas", group["betas"])
    for name, (low, high, words) in _RANGES.items():
        value = group.get(name, 0.0)
        for one in value if isinstance(value, list | tuple) else [value]:
            number = isinstance(one, Real) or (isinstance(one, Tensor) and one.numel() == 1)
            if not number or not low <= one <= high or math.isinf(one):  # NaN is in no range
                raise ValueError(f"expected {name} {words}, got {value!r}")
    for name in ("lr_mul", "wd_mul"):
        value = group.get(name)
        if isinstance(value, list | tuple) and len(value) != len(group["params"]):
            raise ValueError(f"expected one {name} or {len(group['params'])} (one per parameter), got {len(value)}")


def check_parameter(name: str, p: Tensor, rule: UpdateRule, spec: MatrixSpec) -> None:
    if p.is_complex() and (rule.matrices or spec.norm_axis is not None):
        raise ValueError(f"{name}: expected a real matrix, got {p.dtype}: an elementwise rule such as 'adamw' can train it")
    if p.dtype == torch.complex32:
        raise ValueError(f"{name}: expected complex64 or complex128, got {p.dtype}: its state would overflow")
    if rule.matrices:
        try:
            spec.matrices(p)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def check_dense(groups: list[dict[str, Any]]) -> None:
    """Raises RuntimeError, with the parameter's name, for a sparse gradient."""
    for g, group in enumerate(groups):
        for j, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.is_sparse:
                name = _name(group, g, j)
                raise RuntimeError(f"{name}: expected a dense gradient, got a sparse one: build the embedding with sparse=False")


def check_gradients(groups: list[dict[str, Any]], nonfinite: str) -> bool:
    """True if the step can be taken: with `nonfinite` "skip", whether every gradient is finite.

    Raises FloatingPointError, with the parameter's name, where one is not and `nonfinite` is "raise", and RuntimeError for
    sparse gradients. Nothing has changed then.
    """
    check_dense(groups)
    if nonfinite == "ignore":
        return True
    found = [(g, j, p.grad) for g, group in enumerate(groups) for j, p in enumerate(group["params"]) if p.grad is not None]
    by_kind: dict[Any, list[Tensor]] = {}
    for _, _, grad in found:
        by_kind.setdefault((grad.device, grad.dtype), []).append(grad)
    if all(bool(all_finite(grads)) for grads in by_kind.values()):
        return True
    if nonfinite == "raise":
        names = [_name(groups[g], g, j) for g, j, grad in found if not torch.isfinite(grad).all()]
        raise FloatingPointError(
            f"{len(names)} of {len(found)} gradients are not finite, first that of {(names or ['?'])[0]}: nothing was changed. "
            "Lower the learning rate or clip gradients; nonfinite='skip' leaves such steps out."
        )
    return False


def _name(group: dict[str, Any], g: int, j: int) -> str:
    return group["param_names"][j] if "param_names" in group else f"group {g}, parameter {j}"
