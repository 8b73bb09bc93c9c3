"""What a parameter group may hold."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.rules import UpdateRule

_RANGES = {
    "lr": (0.0, math.inf),
    "weight_decay": (-math.inf, math.inf),
    "momentum": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "eps": (0.0, math.inf),
}
_RANGES |= {"betas": (0.0, 1.0), "lr_mul": (0.0, math.inf), "wd_mul": (-math.inf, math.inf)}


def check_scalars(group: dict[str, Any]) -> None:
    """Raises ValueError for a scalar of a group that is out of range or not a number."""
    for name, (low, high) in _RANGES.items():
        value = group.get(name, low if math.isfinite(low) else 0.0)
        for one in value if isinstance(value, list | tuple) else [value]:
            if not low <= one <= high or math.isinf(one):  # NaN is in no range
                raise ValueError(
                    f"expected {name} {'a finite number' if math.isinf(low) else f'>= {low:g}'}"
                    f"{'' if math.isinf(high) else f' and <= {high:g}'}, got {value}"
                )
    for name in ("lr_mul", "wd_mul"):
        value = group[name]
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
