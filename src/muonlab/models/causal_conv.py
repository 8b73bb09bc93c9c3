"""The causal convolution of Mamba: each channel on its own, over the newest positions, then SiLU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = find_spec("causal_conv1d") is not None  # comes with the extra "mamba"; for CUDA alone


class CausalConv(nn.Module):
    """SiLU of a convolution of each channel on its own. The weights are stored as nn.Conv1d stores them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(channels, 1, width)), nn.Parameter(torch.zeros(channels))

    def forward(self, u: Tensor, documents: Tensor | None = None) -> Tensor:
        """Inputs (B, width − 1 + T, channels), the oldest first -> (B, T, channels), for the last T positions. documents (B, T): a
        position takes in only what is of its own document, and the first width − 1 inputs are of the first."""
        return causal_conv(u, self.weight[:, 0], self.bias, documents)


def causal_conv(u: Tensor, weight: Tensor, bias: Tensor, documents: Tensor | None = None) -> Tensor:
    """u (b, w − 1 + t, d), weight (d, w), bias (d,) -> silu(bias + Σ_k weight_k u_{s+k}) (b, t, d) at each start s, in u's type."""
    if documents is not None:  # of all inputs
        documents = F.pad(documents[:, None], (weight.shape[1] - 1, 0), mode="replicate")[:, 0]
    if KERNELS and u.is_cuda and 2 <= weight.shape[1] <= 4 and u.shape[2] % 8 == 0:
        return kernel_conv(u, weight, bias, documents)
    return _CausalConv.apply(u, weight, bias, documents)  # pyright: ignore[reportReturnType]


def kernel_conv(u: Tensor, weight: Tensor, bias: Tensor, documents: Tensor | None = None) -> Tensor:
    """The same by the kernel of causal-conv1d, which pads with zeros by itself: its first w − 1 results are dropped."""
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports]

    conv: Any = causal_conv1d_fn
    seq_idx = None if documents is None else documents.to(torch.int32).contiguous()
    return conv(u.mT, weight.to(u.dtype), bias.to(u.dtype), seq_idx=seq_idx, activation="silu").mT[:, weight.shape[1] - 1 :]


class _CausalConv(torch.autograd.Function):
    """w multiply-adds over shifted views, in at least float32. torch's own convolution of single channels is slow on CPUs: its
    gradient took a quarter of a layer's time. documents: of all inputs, (b, w − 1 + t)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor, documents: Tensor | None) -> Tensor:
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32)).mT.contiguous()  # (w, d)
        t = u.shape[1] - len(kernel) + 1
        y = torch.addcmul(bias.to(kernel.dtype), _seen(u[:, :t], documents, 0), kernel[0])
        for k in range(1, len(kernel)):
            y.addcmul_(_seen(u[:, k : k + t], documents, k), kernel[k])
        ctx.save_for_backward(u, y, weight, bias, documents)
        return F.silu(y).to(u.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, y, weight, bias, documents = ctx.saved_tensors
        t, kernel = y.shape[1], weight.to(y.dtype).mT.contiguous()
        of_y = torch.ops.aten.silu_backward(grads[0].to(y.dtype), y)
        of_u = torch.zeros(u.shape, dtype=y.dtype, device=y.device)
        of_kernel, product = torch.empty_like(kernel), torch.empty_like(y)
        for k in range(len(kernel)):
            of_seen = _seen(of_y, documents, k)
            of_u[:, k : k + t].addcmul_(of_seen, kernel[k])
            of_kernel[k] = torch.mul(of_seen, u[:, k : k + t], out=product).sum((0, 1))
        return of_u.to(u.dtype), of_kernel.mT.to(weight.dtype), of_y.sum((0, 1)).to(bias.dtype), None


def _seen(x: Tensor, documents: Tensor | None, k: int) -> Tensor:
    """x (b, t, d), zero at the positions whose k-th tap lies in another document."""
    if documents is None:
        return x
    t = x.shape[1]
    return x * (documents[:, k : k + t] == documents[:, documents.shape[1] - t :])[..., None]
