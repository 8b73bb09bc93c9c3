"""The product of two matrices that is known to be symmetric, at half the multiplications."""

from __future__ import annotations

import torch
from torch import Tensor

from muonlab.optim.kernels.switch import DTYPES, available


def symmetric_product(
    a: Tensor, b: Tensor, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """alpha·ab + beta·add, where ab and add are symmetric: one triangle is computed, and the other is its mirror image.

    a (B, m, k), b (B, k, m), add and out (B, m, m): on one device, all of one dtype (bfloat16, float16 or float32), with any
    strides. Sums are in float32, for float32 inputs in TF32 if torch's own matrix products are. The result is symmetric to
    the bit, whether or not ab is. Returns `out`, which is new where none is given, and must not share memory with an input.
    Raises ValueError for shapes or devices that do not fit, TypeError for dtypes, RuntimeError where `available(a)` is false.
    """
    if a.ndim != 3 or b.shape != (a.shape[0], a.shape[2], a.shape[1]):
        raise ValueError(f"symmetric_product: expected a (B, m, k) and b (B, k, m), got {tuple(a.shape)} and {tuple(b.shape)}")
    square = (a.shape[0], a.shape[1], a.shape[1])
    for name, x, shape in (("b", b, b.shape), ("add", add, square), ("out", out, square)):
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"symmetric_product: expected {name} {square}, got {tuple(x.shape)}")
        if x.dtype != a.dtype:
            raise TypeError(f"symmetric_product: expected {name} in a's dtype {a.dtype}, got {x.dtype}")
        if x.device != a.device:
            raise ValueError(f"symmetric_product: expected {name} on a's device {a.device}, got {x.device}")
    if a.dtype not in DTYPES:
        raise TypeError(f"symmetric_product: expected bfloat16, float16 or float32, got {a.dtype}")
    if not available(a):
        raise RuntimeError(f"symmetric_product: needs Triton, and a CUDA tensor or TRITON_INTERPRET=1; a is on {a.device}")
    from muonlab.optim.kernels import triangle

    if out is None:
        out = torch.empty(square, dtype=a.dtype, device=a.device)
    triangle.launch(a, b, None if beta == 0 else add, beta, alpha, out)  # as in torch, beta = 0 leaves `add` unread
    return out
