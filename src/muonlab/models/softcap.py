"""Soft caps on logits: odd, increasing functions with slope 1 at zero that stay between −cap and cap."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Form = Literal["rsqrt", "tanh", "none"]


def soft_cap(x: Tensor, cap: float, form: Form = "rsqrt") -> Tensor:
    """rsqrt: cap·x/√(x² + cap²), the optimization benchmark's. tanh: cap·tanh(x/cap), Gemma 2's (arXiv 2408.00118). none: x.

    The speed records' 30·sigmoid(x/7.5) is tanh's with cap 15, plus 15: softmax does not feel the difference.
    """
    if form == "none":
        return x
    return cap * torch.tanh(x / cap) if form == "tanh" else _Rsqrt.apply(x, cap)


class _Rsqrt(torch.autograd.Function):
    """By hand, since logits are a model's largest tensor and memory is what they cost: this keeps one tensor of their size for
    the backward pass, and makes three; autograd keeps four and makes a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        r = x.square().add_(cap * cap).rsqrt_()
        ctx.save_for_backward(r)
        ctx.cap = cap
        return (cap * x).mul_(r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (r,) = ctx.saved_tensors  # dy/dx = (cap·r)³
        return r.pow(3).mul_(ctx.cap**3).mul_(grad), None
