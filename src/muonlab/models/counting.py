"""Parameters and FLOPs of a model, counted by torch's own FlopCounterMode on a model without memory."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muonlab.models.family import Model, ModelConfig


@dataclass(frozen=True)
class Size:
    """`matmul_parameters` are those that take part in matrix products: the roles matrix and head, and an embedding that is also
    the head."""

    parameters: int
    matmul_parameters: int
    flops_per_token: float  # one forward and one backward pass at full context, multiply and add counted apart


def size_of(config: ModelConfig, vocab_size: int) -> Size:
    """Counts the model that `config` builds. Nothing is allocated: it runs on the meta device."""
    with torch.device("meta"):
        model = config.build(vocab_size)
        tokens = torch.zeros(1, config.context, dtype=torch.int64)
    # The meta device has no fused attention; the plain form has the products that the fused one is counted by.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        matmul_parameters=sum(p.numel() for name, p in model.named_parameters() if _in_products(model, name)),
        flops_per_token=counter.get_total_flops() / config.context,
    )


def _in_products(model: Model, name: str) -> bool:
    roles = model.roles()
    role = [role for pattern, role in roles.items() if fnmatch.fnmatchcase(name, pattern)][-1]
    return role in ("matrix", "head") or (name == "embed.weight" and "head" not in roles.values())
