"""nGPT: the normalized transformer (arXiv 2410.01131). Weights and hidden states are unit vectors; a layer turns them a little.

    h ← norm(h + |α| ⊙ (norm(block(h)) − h))        twice a layer: attention, then MLP; no norm before a block

The weights stay on their spheres by the optimizer's `constraint` alone (unit_norm, geodesic, geodesic_by_norm): `specs` says
along which axis. Nothing in the forward pass divides by a weight's norm, so that without a constraint this is another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from muonlab.models.attention import Cache, document_mask, positions, rotate
from muonlab.models.decoding import Past, States
from muonlab.models.family import Model, ModelConfig


class NGPTConfig(ModelConfig):
    """Sizes of an nGPT. Depth and width are GPT-2's unless given; heads, MLP and α the paper's."""

    family: Literal["ngpt"] = "ngpt"
    layers: PositiveInt = Field(12, description="number of layers, each attention and then an MLP")
    width: PositiveInt = Field(768, description="model dimension d")
    head_width: PositiveInt = Field(64, description="dimensions per attention head; divides width, even")
    mlp_width: PositiveInt | None = Field(None, description="hidden width of the SwiGLU; default: 4·width, as in the paper")
    rope_base: float = Field(10000.0, gt=1, description="RoPE turns pair i of d_head/2 by rope_base^(−2i/d_head) per position")
    alpha_init: float = Field(0.05, gt=0, description="the eigen learning rates α at the start: how far a block turns h")
    gated: bool = Field(False, description="a learned gate per block output as well as α: norm(g ⊙ block(h))")

    @model_validator(mode="after")
    def _heads_fit(self) -> NGPTConfig:
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} is not a multiple of head_width {self.head_width}")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even (RoPE turns pairs), got {self.head_width}")
        return self

    def build(self, vocab_size: int) -> NGPT:
        """The module, uninitialized; vocab_size is used where the config leaves it open."""
        return NGPT(self, self.vocab_size or vocab_size)


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last dimension, in float32 or better: bf16 would leave norms off by a hundredth. Zero stays zero."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-24)


def rotary_table(length: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_width / 2) of RoPE as published (arXiv 2104.09864): every pair turns, pair i by base^(−2i/d_head).

    NVIDIA's code for the paper makes (−x_j cos, x_i sin) of a pair (its issue 10): no rotation, and no relative positions.
    """
    frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


class Scale(nn.Module):
    """A vector of learned factors with the effective value stored · (init / scale).

    It is stored as `scale` and starts at `init`: an Adam step of η, which moves what is stored by η, moves the effective value by
    η · init / scale. So `scale` sets the learning rate of these factors relative to that of all else (the paper's section 2.5).
    """

    def __init__(self, size: int, *, init: float, scale: float) -> None:
        super().__init__()
        self.init, self.scale = init, scale
        self.stored = nn.Parameter(torch.full((size,), scale))

    def forward(self) -> Tensor:  # (size,)
        return self.stored * (self.init / self.scale)


class Attention(nn.Module):
    """Causal attention with q, k ← s_qk ⊙ norm(rope(·)) per head; RoPE keeps norms, so that it could as well come after the norm.

    The softmax scale is +sqrt(d_head): the product of two random unit vectors has the variance 1/d_head, not d_head.
    """

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.head_width = d // config.head_width, config.head_width
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.s_qk = Scale(d, init=1.0, scale=d**-0.5)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """h: (B, T, d); mask: (B, 1, T, T) bool of what each position sees, None for all of its past; cache: as in the GPT's."""
        B, T, d = h.shape
        h = h.to(self.q.weight.dtype)
        q, k, v = (f(h).view(B, T, self.heads, self.head_width) for f in (self.q, self.k, self.v))
        s_qk = self.s_qk().view(self.heads, self.head_width)
        q, k = ((s_qk * unit(rotate(u, cos, sin))).to(v.dtype) for u in (q, k))
        if cache is not None:
            k, v = cache(k, v)
        q, k, v = (u.transpose(1, 2) for u in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=math.sqrt(self.head_width)
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).reshape(B, T, d))


class MLP(nn.Module):
    """W_o(u ⊙ SiLU(v)) with u, v ← s_uv · sqrt(d) ⊙ W_uv h.

    The sqrt(d) makes v, a product of unit vectors, large enough for SiLU to bend. On u it is only a factor on the block's output,
    which the norm after the block takes away: the paper has it on v alone, NVIDIA's code on both, and they are one function.
    """

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_width or 4 * config.width
        self.gain = math.sqrt(config.width)
        self.uv = nn.Linear(config.width, 2 * hidden, bias=False)  # u's rows, then v's
        self.s_uv = Scale(2 * hidden, init=1.0, scale=1.0)
        self.proj = nn.Linear(hidden, config.width, bias=False)

    def forward(self, h: Tensor) -> Tensor:  # (B, T, d)
        uv = self.uv(h.to(self.uv.weight.dtype))
        u, v = (uv * (self.s_uv() * self.gain).to(uv.dtype)).chunk(2, dim=-1)
        return self.proj(u * F.silu(v))


class Turn(nn.Module):
    """h ← norm(h + |α| ⊙ (norm(g ⊙ block(h)) − h)), with g = 1 unless gated.

    The gate g (d,), 1 at the start, stands inside the norm, the only place where it is not another α: outside it would be a factor
    of α. Nor can the output projection take it over, since its columns have norm 1: g scales its rows, and so says which
    dimensions of h a block writes to, where α says how far each of them goes.
    """

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        self.alpha = Scale(config.width, init=config.alpha_init, scale=config.width**-0.5)
        self.gate = Scale(config.width, init=1.0, scale=1.0) if config.gated else None

    def forward(self, h: Tensor, out: Tensor) -> Tensor:  # h, the block's output: (B, T, d)
        if self.gate is not None:
            out = self.gate() * out
        return unit(torch.lerp(h, unit(out), self.alpha().abs().to(h.dtype)))


class Layer(nn.Module):
    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        self.attention, self.attention_turn = Attention(config), Turn(config)
        self.mlp, self.mlp_turn = MLP(config), Turn(config)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:  # h: (B, T, d), unit vectors
        h = self.attention_turn(h, self.attention(h, cos, sin, mask, cache))
        return self.mlp_turn(h, self.mlp(h))


class NGPT(Model):
    """tokens (B, T) int64 -> logits (B, T, vocab) float32, s_z ⊙ (E_out h); position t sees the tokens 0 … t. T ≤ config.context.

    Embedding and head are not tied: with unit rows, a token's logit would be largest for itself.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NGPTConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.longest = config, vocab_size, config.context
        self.embed = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self.s_z = Scale(vocab_size, init=1.0, scale=config.width**-0.5)
        cos, sin = rotary_table(config.context, config.head_width, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        mask, cos, sin = None, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        if documents is not None:  # s_qk weighs what RoPE has turned, so that places are not merely relative
            mask, place = document_mask(documents), positions(documents)
            cos, sin = cos[place], sin[place]
        return self._logits(tokens, cos, sin, mask)

    @torch.no_grad()
    def extend(self, tokens: Tensor, states: States | None = None, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """See Model.extend."""
        past = Past(tokens, states, lengths, layers=len(self.blocks), longest=self.config.context)
        cos, sin = past.tables(self.cos, self.sin)
        return self._logits(past.tokens, cos, sin, past.mask(), past), past.states()

    def _logits(self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past: Past | None = None) -> Tensor:
        h = self.embed(tokens)  # (B, T, d): unit vectors, as the rows are
        h = h.to(torch.promote_types(h.dtype, torch.float32))  # hidden states stay so, also where the weights are bf16
        for i, block in enumerate(self.blocks):
            h = block(h, cos, sin, mask, None if past is None else partial(past.keep, i))
        return self.s_z() * self.head(h.to(self.head.weight.dtype)).to(
            h.dtype
        )  # s_z is float32, and so is this product, also where autocast makes the head's bf16

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fresh weights: random directions, of norm 1 along each weight's own axis; scales at their start. `generator(name)` gives
        each parameter a random stream of its own, so that its first value depends on the seed, its name and its shape alone."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.normal_(generator=generator(name))
                p.div_(torch.linalg.vector_norm(p, dim=0 if name.endswith("proj.weight") else 1, keepdim=True))
        for module in self.modules():
            if isinstance(module, Scale):
                module.stored.fill_(module.scale)

    def roles(self) -> dict[str, str]:
        """{pattern: role} for whoever builds an optimizer."""
        return {"*": "vector", "embed.weight": "embedding", "head.weight": "head", "blocks.*.weight": "matrix"}

    def specs(self) -> dict[str, dict[str, Any]]:
        """{pattern: MatrixSpec fields}: what reads h has unit rows, what writes to h unit columns: every vector in the space of h
        has norm 1. u and v are two matrices."""
        return {
            "*.weight": {"norm_axis": "input"},
            "blocks.*.proj.weight": {"norm_axis": "output"},
            "blocks.*.uv.weight": {"split": 2},
        }
