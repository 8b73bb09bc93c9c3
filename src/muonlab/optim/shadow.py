"""An exact float32 shadow of bfloat16 weights: the 16 bits that bfloat16 cannot hold, kept in the optimizer's state.

The weight that the model sees is the float32 value rounded to nearest; the int16 beside it is what is missing. Both together
are the float32 value, bit for bit, at 2 bytes a weight more than bfloat16 alone (modded-nanogpt keeps the same, truncated).
"""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA = "mantissa"  # the key in optimizer.state[p]


def join(weight: Tensor, low: Tensor) -> Tensor:
    """bfloat16 weight and int16 remainder, of one shape -> the float32 value."""
    return ((weight.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def split(value: Tensor) -> tuple[Tensor, Tensor]:
    """float32 value -> bfloat16 weight (rounded to nearest, halves upwards in magnitude) and int16 remainder."""
    bits = value.contiguous().view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)
