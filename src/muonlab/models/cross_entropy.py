"""Head, soft cap and cross-entropy in one, for the CPU: logits are a model's largest tensor, and here never all there at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from muonlab.models.softcap import Form, soft_cap

_IGNORED = -100  # cross_entropy's own
_ROWS = 256  # positions whose logits are there at a time: enough for fast matrix products
_BLOCK = 1 << 18  # elements that the passes between the products work on at a time: a core's cache holds them


def head_loss(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float, form: Form) -> Tensor:
    """The mean of cross_entropy(soft_cap(x·weightᵀ + bias), targets) in nats over the targets that are not -100, a scalar.

    x (..., d), weight (V, d), bias (V,), targets (...) int64. On the CPU, outside torch.compile, logits and gradients are made for
    some rows at a time in the forward pass (as in Liger Kernel, arXiv 2410.10989): the same to rounding, with less memory and time.
    Elsewhere by torch's own operations. No second derivative on the CPU.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        logits = soft_cap(F.linear(x, weight, bias).float(), cap, form)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    rows, flat = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    if not isinstance(flat, FakeTensor) and not (counts := flat != _IGNORED).all():
        rows, flat = rows[counts], flat[counts]
    return _HeadLoss.apply(rows, weight, bias, flat, cap, form, dtype, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, d)
        weight: Tensor,  # (V, d)
        bias: Tensor | None,
        targets: Tensor,  # (N,)
        cap: float,
        form: Form,
        dtype: torch.dtype | None,
        training: bool,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            low, w = x.to(dtype or x.dtype), weight.to(dtype or weight.dtype)
            b = None if bias is None else bias.to(w.dtype)
            total = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
            dx = torch.empty_like(low) if training else None
            # float32 for bf16 weights too: sums of many small parts, of which bf16 would lose the later ones
            dw = torch.zeros_like(weight, dtype=total.dtype) if training else None
            db = torch.zeros_like(bias, dtype=total.dtype) if training and bias is not None else None
            buffer = low.new_empty(min(_ROWS, len(x)), len(w))
            for i in _starts(x, _ROWS):
                part, goals = low[i : i + _ROWS], targets[i : i + _ROWS]
                logits = torch.mm(part, w.mT, out=buffer[: len(part)])
                total += _to_gradients(logits, b, goals, cap, form, 1 / len(x) if training else None)
                if dx is None or dw is None:
                    continue
                torch.mm(logits, w, out=dx[i : i + _ROWS])
                dw.addmm_(logits.mT, part) if dw.dtype == part.dtype else dw.add_(logits.mT @ part)
                if db is not None:
                    db += logits.sum(0, dtype=db.dtype)
        if training:
            ctx.save_for_backward(dx, dw, db)
            ctx.dtypes = x.dtype, weight.dtype
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dw, db = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        of_bias = None if db is None else (db * grad).to(of_weight)
        return dx.to(of_x) * grad, (dw * grad).to(of_weight), of_bias, None, None, None, None, None


def _to_gradients(logits: Tensor, bias: Tensor | None, targets: Tensor, cap: float, form: Form, share: float | None) -> Tensor:
    """logits (n, V) before bias and cap -> the sum of their losses; with a share they become share · its derivatives, in place.

    A few rows at a time go through all the passes, so that these find them in the cache.
    """
    total = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    step = max(1, _BLOCK // logits.shape[1])
    for i in _starts(logits, step):
        block, goals = logits[i : i + step], targets[i : i + step, None]
        z = block.to(total.dtype) if block.dtype != total.dtype else block
        if bias is not None:
            z += bias
        slope = None
        if form == "rsqrt":
            slope = z.square().add_(cap * cap).rsqrt_().mul_(cap)  # dy/dz = slope³
            z.mul_(slope)
        elif form == "tanh":
            z.div_(cap).tanh_()
            slope = None if share is None else 1 - z.square()
            z.mul_(cap)
        hit = z.gather(1, goals)
        largest = z.amax(1, keepdim=True)
        sums = z.sub_(largest).exp_().sum(1, keepdim=True)
        total += (sums.log() + largest - hit).sum()
        if share is not None:
            z.div_(sums / share).scatter_add_(1, goals, torch.full_like(hit, -share))
            if slope is not None:
                z.mul_(slope) if form == "tanh" else z.mul_(slope).mul_(slope).mul_(slope)
            if z is not block:
                block.copy_(z)
    return total


def _starts(rows: Tensor, step: int) -> range:
    """Where each `step` rows begin. Of a tensor without memory, whose needs are only counted, the first ones stand for all."""
    return range(0, step if isinstance(rows, FakeTensor) else len(rows), step)
