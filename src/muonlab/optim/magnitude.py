"""Powers of two to multiply by before anything is squared, so that no size of gradient over- or underflows.

A square leaves float32's range for entries above 1.8e19 and below 1e-19, float16's above 256. Products with a power of two are
exact, so inside the range they change nothing, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BOUNDED = 2.0**50  # the products of so large entries still fit float32 when 2²⁷ of them are added


def to_unit_range(x: Tensor) -> Tensor:
    """x (..., m, n) -> (..., 1, 1) in float32 (float64 for float64): the power of two that brings each matrix's largest entry
    into [1, 2), 2¹²⁶ at most (2¹⁰²² in float64). What is NaN or infinite spoils its own matrix alone; a zero matrix stays zero."""
    return 1 / _power_of_two_below(_largest(x))


def to_float16_range(x: Tensor) -> Tensor:
    """The same for products in float16: brings ‖x‖_F into [64, 128), so that x xᵀ fits, and its small entries too."""
    s = to_unit_range(x)
    norm = torch.linalg.vector_norm(x * s, dim=(-2, -1), keepdim=True)
    return (s * (64 / _power_of_two_below(norm))).clamp(max=_most(norm))  # a zero matrix has no norm


def bounded(x: Tensor) -> Tensor:
    """x (..., m, n), where a matrix with entries above 2⁵⁰ is scaled by a power of two to below that: it can be squared."""
    if x.numel() == 0:
        return x
    largest = _power_of_two_below(_largest(x))
    return x * torch.where(largest > _BOUNDED, _BOUNDED / largest, 1.0).to(x.dtype)


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether no entry of these tensors, of one dtype and device, is NaN or infinite: a flag on their device."""
    tensors = [t for t in tensors if t.numel()] or [tensors[0].new_zeros(1)]
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        # the largest entry, in one launch for all of them; a NaN is the largest of any
        norms = torch._foreach_norm(tensors, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    else:
        # Here sums of squares are many times as fast. They may overflow: then each entry is looked at.
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        norms = torch._foreach_norm(tensors, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
        if not bool(torch.stack(norms).isfinite().all()):
            return torch.stack([t.isfinite().all() for t in tensors]).all()
    return torch.stack(norms).isfinite().all()


def _largest(x: Tensor) -> Tensor:
    """max |x| over the last two dimensions, kept, in float32 at least."""
    if x.device.type == "cpu":  # two reductions that it does in vectors are faster than the norm, which it does not
        largest = torch.maximum(x.amax((-2, -1), keepdim=True), x.amin((-2, -1), keepdim=True).neg())
    else:
        largest = torch.linalg.vector_norm(x, float("inf"), dim=(-2, -1), keepdim=True)
    return largest.to(torch.promote_types(x.dtype, torch.float32))


def _power_of_two_below(x: Tensor) -> Tensor:
    """x >= 0 in float32 or float64 -> the power of two with its exponent, of those whose inverse that dtype has too (and bfloat16,
    for float32)."""
    whole, exponent = (torch.int32, 0x7F800000) if x.dtype == torch.float32 else (torch.int64, 0x7FF0000000000000)
    return (x.contiguous().view(whole) & exponent).view(x.dtype).clamp(1 / _most(x), _most(x))


def _most(x: Tensor) -> float:
    return 2.0**126 if x.dtype == torch.float32 else 2.0**1022
