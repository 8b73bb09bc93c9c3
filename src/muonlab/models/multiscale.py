"""Causal attention at several scales: a token attends to its own past and to averages of blocks that lie wholly before it.

One softmax over all keys, of single tokens and of blocks. A softmax for each scale, fused by learned weights, would need as many
attention calls, those weights, and a rule for the first tokens, which have no block before them. Here every token sees itself at
least, so that there is no empty softmax; and a block weighs what its key earns against the tokens' own.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.models.attention import rotate


class MultiScaleConfig(Protocol):
    """What multi-scale attention needs to know of a model's config."""

    @property
    def width(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def scales(self) -> tuple[int, ...]: ...


class Keys(NamedTuple):
    """Where the K keys of T tokens stand, and who sees them: the same in every layer, so made once a forward pass."""

    cos: Tensor  # (K, head_width / 2): RoPE's table at each key's last token
    sin: Tensor
    mask: Tensor  # (T, K) bool, or (B, 1, T, K)


def keys_of(length: int, scales: tuple[int, ...], cos: Tensor, sin: Tensor, documents: Tensor | None = None) -> Keys:
    """The keys of `length` tokens: first the tokens (scale 1), then the blocks of each further scale in order.

    Block i of scale s is the mean of the tokens i·s … (i + 1)·s − 1. Token t sees it if its last token lies before t: a block that
    ends with t itself does not lie wholly before it. So a block that ends with the last token serves nobody, and is left out.
    With documents (B, length), rising along a row, it sees the keys that lie wholly in its own.
    """
    token = torch.arange(length, device=cos.device)
    last = [token] + [token[s - 1 : length - 1 : s] for s in scales[1:]]
    seen_from = torch.cat([token, *(block + 1 for block in last[1:])])
    position = torch.cat(last)
    seen = seen_from <= token[:, None]
    if documents is not None:
        first = torch.cat([token] + [block + 1 - s for s, block in zip(scales[1:], last[1:], strict=True)])
        of_key = documents[:, position]
        whole = torch.where(documents[:, first] == of_key, of_key, -1)  # (B, K)
        seen = (seen & (documents[:, :, None] == whole[:, None, :]))[:, None]
    return Keys(cos[position], sin[position], seen)


def blocks(x: Tensor, scale: int) -> Tensor:
    """x (B, T, ...) -> (B, ⌊(T − 1) / scale⌋, ...): the means of the blocks that some token lies after."""
    count = (x.shape[1] - 1) // scale
    return x[:, : count * scale].unflatten(1, (count, scale)).mean(2)


class MultiScaleAttention(nn.Module):
    """Attention over tokens and blocks. A block's key and value are the means of its tokens', its key normalized and rotated like a
    token's, to the position of its last token. With the scale 1 alone it is ordinary causal attention.

    One token at a time it needs, beside the cache of keys and values, the sums of the block that each scale has begun.
    """

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.softmax_scale, self.scales = d // config.head_width, config.attention_scale, config.scales
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Keys) -> Tensor:
        """x: (B, T, d); cos, sin: (T, head_width / 2); keys: those of T tokens."""
        B, T, d = x.shape
        q, k, v = (f(x).view(B, T, self.heads, -1) for f in (self.q, self.k, self.v))
        k, v = (torch.cat([u, *(blocks(u, s) for s in self.scales[1:])], dim=1) for u in (k, v))  # (B, K, heads, head_width)
        q, k = (F.rms_norm(u, (u.shape[-1],)) for u in (q, k))
        q, k = rotate(q, cos, sin), rotate(k, keys.cos, keys.sin)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=keys.mask, scale=self.softmax_scale
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).reshape(B, T, d))
