"""The recursive block: Mamba-2, then a processor that thinks several times about each token, then multi-scale attention.

With n(x) = x / rms(x), all per token, and m the memory, which begins at zero and goes from one recursive block to the next:

    y = x + mamba(norm(x))                                                 h₀ = y
    pass k = 1 … r:   m ← m + σ(write) ⊙ (n(h) − m);   h_k = h_{k−1} + mlp(norm(h_{k−1}) + read ⊙ m)
    z = Σ_k p_k h_k,  p = softmax(depth · n(y))                            the depth gate
    x' = y + φ ((z − y) + attention(norm(z))),  φ = 2 σ(fuse · n(y))       fused with Mamba's output

The block comes from a public hybrid whose gates and pools ran over the whole sequence, and so showed each token what comes after
it. Here each gate is a function of its own token, which Mamba has told of the past alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.models.attention import RMSNorm
from muonlab.models.decoding import Past
from muonlab.models.gpt import MLP, MLPConfig
from muonlab.models.mamba import Mamba2, Mamba2Config, MambaState
from muonlab.models.multiscale import Keys, MultiScaleAttention, MultiScaleConfig, MultiScaleState, NewKeys


class RecursiveConfig(Mamba2Config, MLPConfig, MultiScaleConfig, Protocol):
    """What the recursive block needs to know of a model's config."""

    @property
    def passes(self) -> int: ...
    @property
    def share_passes(self) -> bool: ...


def unit_rms(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],))


class Pass(nn.Module):
    """One pass of the processor: the memory takes in the token, the MLP reads both."""

    def __init__(self, config: RecursiveConfig) -> None:
        super().__init__()
        self.norm, self.mlp = RMSNorm(config.width), MLP(config)
        self.write, self.read = nn.Parameter(torch.zeros(config.width)), nn.Parameter(torch.zeros(config.width))

    def forward(self, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # both (B, T, d)
        # written before it is read, so that what the last pass of all writes is not lost
        memory = memory + self.write.sigmoid() * (unit_rms(h) - memory)
        return h + self.mlp(self.norm(h) + self.read * memory), memory


def half_life(passes: int) -> float:
    """The first value of `write`, with which a memory keeps half of itself through so many passes: σ(write) = 1 − 2^(−1/passes)."""
    return math.log(2 ** (1 / passes) - 1)


class RecursiveProcessor(nn.Module):
    """`config.passes` passes of a normalized MLP, with weights that all share or each has of its own, mixed by the depth gate.

    Every quantity of a token is a function of that token's input and memory.
    """

    def __init__(self, config: RecursiveConfig) -> None:
        super().__init__()
        self.count = config.passes
        self.passes = nn.ModuleList(Pass(config) for _ in range(1 if config.share_passes else config.passes))
        # with one pass there is nothing to choose
        self.depth = nn.Linear(config.width, config.passes, bias=False) if config.passes > 1 else None

    def forward(self, y: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """y, memory: (B, T, d) -> the mixture of the passes and the memory after the last one."""
        share = torch.ones_like(y[..., :1]) if self.depth is None else self.depth(unit_rms(y)).softmax(-1)  # (B, T, passes)
        h, mixed = y, torch.zeros_like(y)
        for k in range(self.count):
            h, memory = self.passes[k % len(self.passes)](h, memory)
            mixed = mixed + share[..., k : k + 1] * h
        return mixed, memory


class RecursiveState(NamedTuple):
    """What a recursive block remembers of earlier tokens. Their memories are not part of it: a token has its own."""

    mamba: MambaState
    attention: MultiScaleState


class RecursiveBlock(nn.Module):
    """x, memory -> x', memory, as above."""

    def __init__(self, config: RecursiveConfig) -> None:
        super().__init__()
        self.norm1, self.mamba = RMSNorm(config.width), Mamba2(config)
        self.processor = RecursiveProcessor(config)
        self.norm2, self.attention = RMSNorm(config.width), MultiScaleAttention(config)
        self.fuse = nn.Linear(config.width, 1, bias=False)

    def forward(
        self, x: Tensor, memory: Tensor, cos: Tensor, sin: Tensor, keys: Keys, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x, memory: (B, T, d); cos, sin, keys: see MultiScaleAttention; documents: see Mamba2."""
        y = x + self.mamba(self.norm1(x), documents)
        return self._think(y, memory, lambda z: self.attention(z, cos, sin, keys))

    def extend(
        self, x: Tensor, memory: Tensor, cos: Tensor, sin: Tensor, keys: NewKeys, past: Past, layer: int
    ) -> tuple[Tensor, Tensor]:
        """The same for the new tokens of `past`, whose `layer` this is."""
        state: RecursiveState | None = past.layers[layer] or None
        y, mamba = self.mamba.extend(self.norm1(x), state and state.mamba, past.lengths)

        def attend(z: Tensor) -> Tensor:
            out, attention = self.attention.extend(z, cos, sin, keys, past, state and state.attention)
            past.layers[layer] = RecursiveState(mamba, attention)
            return out

        return self._think(x + y, memory, attend)

    def _think(self, y: Tensor, memory: Tensor, attend: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        z, memory = self.processor(y, memory)
        z = z - y + attend(self.norm2(z))
        return y + 2 * self.fuse(unit_rms(y)).sigmoid() * z, memory
