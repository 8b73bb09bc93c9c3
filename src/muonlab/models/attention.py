"""Attention and its pieces: RMSNorm, half-truncated RoPE, grouped queries, sliding windows, QK-norm, value embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionConfig(Protocol):
    """What attention needs to know of a model's config."""

    @property
    def width(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def kv_heads(self) -> int | None: ...
    @property
    def bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def attention_scale(self) -> float: ...


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
    """Rotates the pairs (x_i, x_{i + d/2}) of x (B, T, heads, d) by the table's angles (T, d / 2) or (B, T, d / 2)."""
    x1, x2 = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


def window_mask(length: int, window: Tensor) -> Tensor:
    """(length, length) bool: position t sees the `window` (0-d) newest positions, t − window + 1 … t."""
    position = torch.arange(length, device=window.device)
    back = position[:, None] - position  # how far key j lies behind query i
    return (back >= 0) & (back < window)


def document_mask(documents: Tensor) -> Tensor:
    """documents (B, T) -> (B, 1, T, T) bool: a position sees those of its past that are of its own document."""
    return (documents[:, :, None] == documents[:, None, :]).tril_()[:, None]


def positions(documents: Tensor) -> Tensor:
    """documents (B, T), rising along a row -> the place of each position in its document, from 0, (B, T)."""
    place = torch.arange(documents.shape[1], device=documents.device)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return place - (place * begins).cummax(1).values


Cache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # keys and values (B, T, kv_heads, head_width) of new positions -> of all


class Attention(nn.Module):
    """Causal attention. With fewer `kv_heads` than heads, a key and its value serve a group of queries (arXiv 2305.13245).

    With `mixes_values`, a second source of values is given beside x, such as an embedding of the tokens (modded-nanogpt, after
    value residuals, arXiv 2410.17897): v ← λ₁v + λ₂·values, both λ learned, ½ at first.
    """

    def __init__(self, config: AttentionConfig, mixes_values: bool = False) -> None:
        super().__init__()
        d = config.width
        self.heads, self.scale, self.qk_norm = d // config.head_width, config.attention_scale, config.qk_norm
        self.kv_heads = config.kv_heads or self.heads
        self.max_logits: Tensor | None = None  # (heads,), where it is recorded
        self.record_logits = False
        self.q = nn.Linear(d, d, bias=config.bias)
        self.k = nn.Linear(d, self.kv_heads * config.head_width, bias=config.bias)
        self.v = nn.Linear(d, self.kv_heads * config.head_width, bias=config.bias)
        self.proj = nn.Linear(d, d, bias=config.bias)
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if mixes_values else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        values: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x: (B, T, d); mask: (T, T) or (B, 1, T, T) bool of what each position sees, None for all of its past; values:
        (B, T, kv_heads·head_width) with mixes_values. With a cache, x goes on from what is in it, and the mask is (B, 1, T, S)."""
        B, T, d = x.shape
        q = self.q(x).view(B, T, self.heads, -1)
        k, v = (f(x).view(B, T, self.kv_heads, -1) for f in (self.k, self.v))
        if self.value_mix is not None:
            assert values is not None, "a layer with mixes_values needs values"
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v + mix[1] * values.view_as(v)
        q, k = (rotate(F.rms_norm(u, (u.shape[-1],)) if self.qk_norm else u, cos, sin) for u in (q, k))
        if cache is not None:
            k, v = cache(k, v)
        # torch's kernels for groups spare single queries a copy of the whole cache; others they may send to slower ones
        grouped = self.kv_heads < self.heads and cache is not None and T == 1
        if self.kv_heads < self.heads and not grouped:
            k, v = (u.repeat_interleave(self.heads // self.kv_heads, dim=2) for u in (k, v))
        if self.record_logits and self.training:
            self._record(q.detach(), k.detach(), mask)
        q, k, v = (u.transpose(1, 2) for u in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).reshape(B, T, d))

    def _record(self, q: Tensor, k: Tensor, mask: Tensor | None) -> None:  # q, k: (B, T, heads, head_width)
        logits = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * self.scale
        seen = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril() if mask is None else mask
        largest = logits.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
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
