"""The hybrid's own parts once more, token by token in plain loops: multi-scale attention and the recursive processor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def turned(x: Tensor, position: int, base: float) -> Tensor:
    """x (d,) with the first d/4 of its pairs (i, i + d/2) turned by position·frequency, from 1 down to 1/base."""
    d, y = len(x), x.clone()
    for i in range(d // 4):
        frequency = base ** -(i / (d // 4 - 1))
        c, s = math.cos(position * frequency), math.sin(position * frequency)
        y[i], y[i + d // 2] = c * x[i] + s * x[i + d // 2], c * x[i + d // 2] - s * x[i]
    return y


def multiscale(
    x: Tensor,
    layer: dict[str, Tensor],
    heads: int,
    scales: list[int],
    softmax_scale: float,
    base: float,
    documents: list[int] | None = None,
) -> Tensor:
    """x (T, d) -> (T, d). Token t looks at the tokens of its document up to t, and at the mean of every block of s tokens, counted
    from the document's first one, that ends before t."""
    T, d = x.shape
    documents = documents or [0] * T
    out = torch.zeros_like(x)
    for h in range(heads):
        rows = slice(h * d // heads, (h + 1) * d // heads)
        q, k, v = (x @ layer[f"{name}.weight"][rows].T for name in "qkv")
        for t in range(T):
            query = turned(unit(q[t]), t, base)
            logits, values = [], []
            for scale in scales:
                start = documents.index(documents[t])
                while start + scale <= T:
                    last = start + scale - 1
                    if last < t or (last == t and scale == 1):
                        key = turned(unit(k[start : last + 1].mean(0)), last, base)
                        logits.append(softmax_scale * query @ key)
                        values.append(v[start : last + 1].mean(0))
                    start += scale
            out[t, rows] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out @ layer["proj.weight"].T


def processor(y: Tensor, memory: Tensor, weights: dict[str, Tensor], passes: int) -> tuple[Tensor, Tensor]:
    """y, memory (T, d) -> the mixture of the passes, the memory. `weights` as in the module's state dict."""
    own = "passes.1.read" in weights  # weights of its own for each pass
    mixed, memories = [], []
    for token, m in zip(y, memory, strict=True):
        h, states = token, []
        for k in range(passes):
            w = {name.split(".", 2)[2]: p for name, p in weights.items() if name.startswith(f"passes.{k if own else 0}.")}
            keep = 1 / (1 + torch.exp(w["write"]))
            m = keep * m + (1 - keep) * unit(h)
            inside = unit(h) * w["norm.gains"] + w["read"] * m
            h = h + w["mlp.proj.weight"] @ F.relu(w["mlp.up.weight"] @ inside) ** 2
            states.append(h)
        gates = torch.exp(weights["depth.weight"] @ unit(token)) if passes > 1 else torch.ones(1, dtype=y.dtype)
        mixed.append(sum(g * s for g, s in zip(gates / gates.sum(), states, strict=True)))
        memories.append(m)
    return torch.stack(mixed), torch.stack(memories)
