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

from muonlab.models.attention import positions, rotate
from muonlab.models.decoding import KV, Past, Slots, newest


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

    cos: Tensor  # (K, head_width / 2), or (B, K, head_width / 2): RoPE's table at each key's last token
    sin: Tensor
    mask: Tensor  # (T, K) bool, or (B, 1, T, K)
    members: tuple[Tensor, ...] | None = None  # with documents, for each scale but 1, (B, blocks, scale): a block's tokens


def keys_of(length: int, scales: tuple[int, ...], cos: Tensor, sin: Tensor, documents: Tensor | None = None) -> Keys:
    """The keys of `length` tokens: first the tokens (scale 1), then the blocks of each further scale in order.

    Block i of scale s is the mean of the tokens i·s … (i + 1)·s − 1. Token t sees it if its last token lies before t: a block that
    ends with t itself does not lie wholly before it. So a block that ends with the last token serves nobody, and is left out.
    With documents (B, length), rising along a row, blocks count from the beginning of each, and a token sees the keys of its own.
    """
    token = torch.arange(length, device=cos.device)
    if documents is not None:
        return _packed_keys(token, scales, cos, sin, documents)
    last = [token] + [token[s - 1 : length - 1 : s] for s in scales[1:]]
    seen_from = torch.cat([token, *(block + 1 for block in last[1:])])
    position = torch.cat(last)
    return Keys(cos[position], sin[position], seen_from <= token[:, None])


def _packed_keys(token: Tensor, scales: tuple[int, ...], cos: Tensor, sin: Tensor, documents: Tensor) -> Keys:
    """As many keys as without documents, whatever these are: two blocks of a scale s never begin within s tokens of one another, so
    there is a slot for each s tokens of the row. One that no block begins in stands for the block of just these, unseen by all.
    """
    length, place = len(token), positions(documents)
    last, seen_from, members = [token.expand_as(documents)], [token.expand_as(documents)], []
    for s in scales[1:]:
        slots, offset = (length - 1) // s, torch.arange(s, device=token.device)
        begins = (place[:, s - 1 : length - 1] + 1) % s == 0  # at token 0, 1, …: a block of it and the s − 1 that follow
        begins = F.pad(begins, (0, slots * s - begins.shape[1])).unflatten(1, (slots, s))
        block = token[: slots * s : s] + (begins * offset).sum(-1)  # (B, slots): its first token
        last.append(block + s - 1)
        seen_from.append(torch.where(begins.any(-1), block + s, length))
        members.append(block[..., None] + offset)
    position = torch.cat(last, dim=1)  # (B, K)
    seen = documents[:, :, None] == documents.gather(1, position)[:, None]
    seen &= torch.cat(seen_from, dim=1)[:, None] <= token[:, None]
    return Keys(cos[position], sin[position], seen[:, None], tuple(members))


class NewKeys(NamedTuple):
    """The keys that new tokens add: T columns of tokens, then the blocks that end among them. The same in every layer.

    In a cache, keys stand in the order in which they can first be seen: a token, the blocks that end with it, the next token. So a
    token sees all that stands before it, and itself.
    """

    cos: Tensor  # (B, E, head_width / 2): RoPE's table at each key's last token
    sin: Tensor
    members: tuple[Tensor, ...]  # for each scale but 1, (B, blocks, scale): a block's tokens, among the newest old and the new ones
    slots: Slots
    mask: Tensor  # (B, 1, T, slots) bool


def new_keys(past: Past, scales: tuple[int, ...], cos: Tensor, sin: Tensor) -> NewKeys:
    """The keys that the new tokens of `past` add to those of its earlier ones; cos and sin: the whole tables."""

    def slot_of(token: Tensor) -> Tensor:  # before it stand as many tokens, and all blocks that have ended
        return token + sum(((token // s) for s in scales[1:]), torch.zeros_like(token))

    start, end = past.start[:, None], past.end[:, None]  # (B, 1)
    last, slots, counts, members = [past.places], [slot_of(past.places)], [past.counts], []
    for i, s in enumerate(scales[1:], 1):
        block = start // s + torch.arange(int((end // s - start // s).max()))  # (B, blocks)
        ends = (block + 1) * s - 1
        counts.append(block < end // s)
        slots.append(slot_of(ends) + 1 + sum(((ends + 1) % shorter == 0).long() for shorter in scales[1:i]))
        last.append(ends.clamp(max=past.longest - 1))
        token = block[..., None] * s + torch.arange(s) - start[..., None] + scales[-1] - 1
        members.append(token.clamp(max=scales[-1] - 2 + past.counts.shape[1]).to(past.device))
    plan = past.put(
        torch.cat(slots, dim=1),
        torch.cat(counts, dim=1),
        total=int(slot_of(past.end).max()),
        most=int(slot_of(torch.tensor(past.longest))),
    )
    position, slot = torch.cat(last, dim=1).to(past.device), torch.arange(plan.total, device=past.device)
    mask = slot <= slot_of(past.position)[:, None, :, None]
    return NewKeys(cos[position], sin[position], tuple(members), plan, mask)


class MultiScaleState(NamedTuple):
    """What multi-scale attention remembers."""

    cache: KV | tuple[()]
    newest: KV  # (B, largest scale − 1, heads, head_width): keys and values of the newest tokens, as they were projected


def blocks(x: Tensor, scale: int) -> Tensor:
    """x (B, T, ...) -> (B, ⌊(T − 1) / scale⌋, ...): the means of the blocks that some token lies after."""
    count = (x.shape[1] - 1) // scale
    return x[:, : count * scale].unflatten(1, (count, scale)).mean(2)


def means(x: Tensor, members: Tensor) -> Tensor:
    """x (B, T, ...), members (B, blocks, scale) -> (B, blocks, ...): the means of the tokens that each block has."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], members].mean(2)


class MultiScaleAttention(nn.Module):
    """Attention over tokens and blocks. A block's key and value are the means of its tokens', its key normalized and rotated like a
    token's, to the position of its last token. With the scale 1 alone it is ordinary causal attention.

    One token at a time it needs, beside the cache of keys and values, the newest tokens' own, of the blocks that have begun.
    """

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.softmax_scale, self.scales = d // config.head_width, config.attention_scale, config.scales
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Keys) -> Tensor:
        """x: (B, T, d); cos, sin: (T, head_width / 2); keys: those of T tokens."""
        q, k, v = self._projected(x)
        k, v = (torch.cat([u, *self._blocks(u, keys)], dim=1) for u in (k, v))  # (B, K, heads, head_width)
        q, k = self._turned(q, cos, sin), self._turned(k, keys.cos, keys.sin)
        return self._attended(q, k, v, keys.mask)

    def extend(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: NewKeys, past: Past, state: MultiScaleState | None
    ) -> tuple[Tensor, MultiScaleState]:
        """y for the new positions x (B, T, d) of `past`, which follow those of `state` (None: nothing), and the new state."""
        q, *kv = self._projected(x)
        before = [u.new_zeros(len(u), self.scales[-1] - 1, *u.shape[2:]) for u in kv] if state is None else state.newest
        recent = [torch.cat([a.to(u.dtype), u], dim=1) for a, u in zip(before, kv, strict=True)]
        k, v = (
            torch.cat([u, *(means(both, members) for members in keys.members)], dim=1)  # (B, E, heads, head_width)
            for u, both in zip(kv, recent, strict=True)
        )
        cache = past.cached(() if state is None else state.cache, KV(self._turned(k, keys.cos, keys.sin), v), keys.slots)
        k, v = (buffer[:, : keys.slots.total] for buffer in cache)
        y = self._attended(self._turned(q, cos, sin), k, v, keys.mask)
        return y, MultiScaleState(cache, KV(*(newest(u, self.scales[-1] - 1, past.lengths) for u in recent)))

    def _projected(self, x: Tensor) -> list[Tensor]:  # (B, T, d) -> q, k and v (B, T, heads, head_width)
        return [f(x).view(*x.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v)]

    def _blocks(self, u: Tensor, keys: Keys) -> list[Tensor]:
        if keys.members is None:
            return [blocks(u, s) for s in self.scales[1:]]
        return [means(u, members) for members in keys.members]

    def _turned(self, u: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # normalized and rotated
        return rotate(F.rms_norm(u, (u.shape[-1],)), cos, sin)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=self.softmax_scale
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).flatten(2))
