"""The GPT of the modded-nanogpt optimization benchmark, at any size.

RMSNorm with gains, QK-norm, half-truncated RoPE, ReLU² MLP, soft-capped logits, zero-initialized projections.
The benchmark's own size: 12 layers, width 768, heads of 128, vocabulary 50304, context 1024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn


class GPTConfig(BaseModel):
    """Sizes of a GPT. The defaults are the benchmark's, but for the vocabulary, which follows the tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    family: Literal["gpt"] = "gpt"
    layers: PositiveInt = Field(12, description="number of blocks")
    width: PositiveInt = Field(768, description="model dimension d")
    head_width: PositiveInt = Field(128, description="dimensions per attention head; divides width, a multiple of 4")
    context: PositiveInt = Field(1024, description="tokens that a position can see, itself included; the training length")
    vocab_size: PositiveInt | None = Field(None, description="rows of embedding and head; default: the tokenizer's vocabulary")
    mlp_ratio: PositiveInt = Field(4, description="hidden width of the MLP in units of width")
    bias: bool = Field(True, description="biases in the linear layers (the benchmark has them)")
    rope_base: float = Field(1024.0, gt=1, description="RoPE frequencies run from 1 to 1/rope_base")
    qk_norm: bool = Field(True, description="normalize queries and keys; without it logits can grow: see QKClip")
    attention_scale: float = Field(0.12, gt=0, description="softmax scale of queries and keys")
    logit_cap: float = Field(15.0, gt=0, description="logits are cap·x/sqrt(x² + cap²)")

    @model_validator(mode="after")
    def _heads_fit(self) -> GPTConfig:
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} is not a multiple of head_width {self.head_width}")
        if self.head_width % 4:
            raise ValueError(f"head_width must be a multiple of 4 (half of its pairs rotate), got {self.head_width}")
        return self

    def build(self, vocab_size: int) -> GPT:
        """The module, uninitialized; vocab_size is used where the config leaves it open."""
        return GPT(self, self.vocab_size or vocab_size)


class RMSNorm(nn.Module):
    """x / rms(x) ⊙ gains, over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., width)
        return F.rms_norm(x, (x.shape[-1],), self.gains.to(x.dtype))


def rotary_table(length: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_width / 2) of half-truncated RoPE: the first half of the pairs turns, at
    frequencies from 1 down to 1/base; the second half stands still."""
    turning = (1 / base) ** torch.linspace(0, 1, head_width // 4, dtype=torch.float64)
    frequency = torch.cat([turning, torch.zeros(head_width // 4, dtype=torch.float64)])
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x_i, x_{i + d/2}) of x (B, T, heads, d) by the table's angles (T, d / 2)."""
    x1, x2 = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.scale, self.qk_norm = d // config.head_width, config.attention_scale, config.qk_norm
        self.max_logits: Tensor | None = None  # (heads,), where it is recorded
        self.record_logits = False
        self.q = nn.Linear(d, d, bias=config.bias)
        self.k = nn.Linear(d, d, bias=config.bias)
        self.v = nn.Linear(d, d, bias=config.bias)
        self.proj = nn.Linear(d, d, bias=config.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, d)
        B, T, d = x.shape
        q, k, v = (f(x).view(B, T, self.heads, -1) for f in (self.q, self.k, self.v))
        q, k = (rotate(F.rms_norm(u, (u.shape[-1],)) if self.qk_norm else u, cos, sin) for u in (q, k))
        if self.record_logits and self.training:
            self._record(q.detach(), k.detach())
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=self.scale
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).reshape(B, T, d))

    def _record(self, q: Tensor, k: Tensor) -> None:  # (B, T, heads, head_width)
        logits = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * self.scale
        future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
        largest = logits.masked_fill(future, -torch.inf).amax((0, 2, 3))
        self.max_logits = largest if self.max_logits is None else torch.maximum(self.max_logits, largest)


@dataclass
class QKLayer:
    """What QK-Clip has to know of an attention layer: `muonlab.optim.QKClip` reads and scales it."""

    attention: Attention

    @property
    def heads(self) -> int:
        return self.attention.heads

    @property
    def query(self) -> list[Tensor]:
        return list(self.attention.q.parameters())

    @property
    def key(self) -> list[Tensor]:
        return list(self.attention.k.parameters())

    @property
    def max_logits(self) -> Tensor | None:
        return self.attention.max_logits

    def reset(self) -> None:
        self.attention.max_logits = None


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.proj = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, d)
        return self.proj(self.up(x).relu().square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(config.width), Attention(config)
        self.norm2, self.mlp = RMSNorm(config.width), MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, d)
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, vocab) float32; position t sees the tokens 0 … t. T ≤ config.context."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.width)
        self.norm_in = RMSNorm(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = RMSNorm(config.width)
        self.head = nn.Linear(config.width, vocab_size, bias=config.bias)
        cos, sin = rotary_table(config.context, config.head_width, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1]
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.norm_in(self.embed(tokens))
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm_out(x)).float()
        cap = self.config.logit_cap
        return cap * logits * torch.rsqrt(logits.square() + cap * cap)

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fresh weights. `generator(name)` gives each parameter a random stream of its own, so that a parameter's first
        value depends on the seed, its name and its shape, and on no other parameter."""
        for name, p in self.named_parameters():
            if name.endswith("gains"):
                p.fill_(1.0)
            elif p.ndim < 2 or "proj" in name or name.startswith("head"):
                p.zero_()
            elif name.startswith("embed"):
                p.normal_(generator=generator(name))
            else:
                p.normal_(std=(0.33 / p.shape[1]) ** 0.5, generator=generator(name))

    def qk_layers(self) -> list[QKLayer]:
        """The attention layers for QK-Clip; from now on they record their largest logits in training (a product more a layer).

        Raises ValueError with qk_norm: normalized queries and keys do not feel the scale of their weights.
        """
        if self.config.qk_norm:
            raise ValueError("QK-Clip needs a model with qk_norm = false: behind a norm, scaling W_q and W_k changes nothing")
        attentions = [block.attention for block in self.blocks if isinstance(block, Block)]
        for attention in attentions:
            attention.record_logits = True
        return [QKLayer(attention) for attention in attentions]

    def roles(self) -> dict[str, str]:
        """{pattern: role} for whoever builds an optimizer."""
        return {"*": "vector", "embed.weight": "embedding", "head.weight": "head", "blocks.*.weight": "matrix"}
