"""What a parameter group may hold."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.rules import UpdateRule

_FINITE = (-math.inf, math.inf, "a finite number")
_POSITIVE = (0.0, math.inf, ">= 0")
_FRACTION = (0.0, math.nextafter(1.0, 0.0), ">= 0 and < 1")
_RANGES = {"lr": _POSITIVE, "lr_mul": _POSITIVE, "eps": _POSITIVE, "weight_decay": _FINITE, "wd_mul": _FINITE}
_RANGES |= {"momentum": (0.0, 1.0, ">= 0 and <= 1"), "beta2": _FRACTION, "betas": _FRACTION}


def check_scalars(group: dict[str, Any]) -> None:
    """Raises ValueError for a scalar of a group that is out of range or not a number."""
    for name, (low, high, words) in _RANGES.items():
        value = group.get(name, 0.0)
        for one in value if isinstance(value, list | tuple) else [value]:
            if not low <= one <= high or math.isinf(one):  # NaN is in no range
                raise ValueError(f"expected {name} {words}, got {value}")
    if len(group.get("betas", (0, 0))) != 2:
        raise ValueError(f"expected two betas, got {group['betas']}")
    for name in ("lr_mul", "wd_mul"):
        value = group.get(name)
        if isinstance(value, list | tuple) and len(value) != len(group["params"]):
            raise ValueError(f"expected one {name} or {len(group['params'])} (one per parameter), got {len(value)}")


def check_parameter(name: str, p: Tensor, rule: UpdateRule, spec: MatrixSpec) -> None:
    if p.is_complex():
        raise ValueError(f"{name}: expected a real parameter, got {p.dtype}: train torch.view_as_real(parameter) instead")
    if rule.matrices:
        try:
            spec.view(p)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
