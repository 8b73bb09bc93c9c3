"""nGPT (arXiv 2410.01131) as the paper writes it: one token, one head, one vector at a time, in float64.

A layer's scaling factors are the effective ones. Positions turn the pairs (x_i, x_{i + d_head/2}), written as complex numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerWeights:
    W_q: Tensor  # (d, d)
    W_k: Tensor
    W_v: Tensor
    W_o: Tensor
    s_qk: Tensor  # (d,)
    alpha_A: Tensor  # (d,)
    W_u: Tensor  # (hidden, d)
    W_v_mlp: Tensor
    W_o_mlp: Tensor  # (d, hidden)
    s_u: Tensor  # (hidden,)
    s_v: Tensor
    alpha_M: Tensor
    gate_A: Tensor | None = None  # (d,): not in the paper
    gate_M: Tensor | None = None


def norm(x: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(a) ** 2 for a in x))


def rope(x: Tensor, position: int, base: float) -> Tensor:
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        z = complex(x[i], x[i + half]) * complex(math.cos(angle), -math.sin(angle))
        turned[i], turned[i + half] = z.real, z.imag
    return turned


def attention(h: list[Tensor], w: LayerWeights, heads: int, base: float) -> list[Tensor]:
    d_head = len(h[0]) // heads
    out = []
    for t in range(len(h)):
        parts = []
        for n in range(heads):
            rows = slice(n * d_head, (n + 1) * d_head)
            q = norm(rope(w.W_q[rows] @ h[t], t, base)) * w.s_qk[rows]  # eq. 15
            scores = []
            for s in range(t + 1):
                k = norm(rope(w.W_k[rows] @ h[s], s, base)) * w.s_qk[rows]  # eq. 16
                scores.append(float(q @ k) * math.sqrt(d_head))
            weights = [math.exp(x - max(scores)) for x in scores]
            values = [p / sum(weights) * (w.W_v[rows] @ h[s]) for s, p in enumerate(weights)]
            parts.append(torch.stack(values).sum(0))
        out.append(w.W_o @ torch.cat(parts))
    return out


def mlp(h: Tensor, w: LayerWeights) -> Tensor:
    u = w.W_u @ h * w.s_u  # eq. 20
    v = w.W_v_mlp @ h * w.s_v * math.sqrt(len(h))  # eq. 21
    silu = torch.tensor([float(x) / (1 + math.exp(-float(x))) for x in v], dtype=torch.float64)
    return w.W_o_mlp @ (u * silu)


def turn(h: Tensor, out: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:
    out = norm(out if gate is None else gate * out)
    return norm(h + alpha.abs() * (out - h))  # eqs. 10 and 11


def logits(
    tokens: list[int], embed: Tensor, layers: list[LayerWeights], head: Tensor, s_z: Tensor, heads: int, base: float
) -> Tensor:
    """tokens -> (len(tokens), vocab)."""
    h = [embed[token] for token in tokens]
    for w in layers:
        h = [turn(x, a, w.alpha_A, w.gate_A) for x, a in zip(h, attention(h, w, heads, base), strict=True)]
        h = [turn(x, mlp(x, w), w.alpha_M, w.gate_M) for x in h]
    return torch.stack([head @ x * s_z for x in h])
