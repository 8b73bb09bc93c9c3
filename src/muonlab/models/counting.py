"""Parameters and FLOPs of a model, counted by torch's own FlopCounterMode on a model without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muonlab.models.gpt import GPTConfig


@dataclass(frozen=True)
class Size:
    """`matmul_parameters` are those that take part in matrix products: all but lookups, gains and biases."""

    parameters: int
    matmul_parameters: int
    flops_per_token: float  # one forward and one backward pass at full context, multiply and add counted apart


def size_of(config: GPTConfig, vocab_size: int) -> Size:
    """Counts the model that `config` builds. Nothing is allocated: it runs on the meta device."""
    with torch.device("meta"):
        model = config.build(vocab_size)
        tokens = torch.zeros(1, config.context, dtype=torch.int64)
    # The meta device has no fused attention; the plain form has the products that the fused one is counted by.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    matmul = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    matmul += model.embed.weight.numel() if config.tied else 0
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        matmul_parameters=matmul,
        flops_per_token=counter.get_total_flops() / config.context,
    )
