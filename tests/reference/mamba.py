"""Mamba-2 (arXiv 2405.21060) position by position, in float64: the recurrence (equation 1 with A_t = exp(dt_t A) and B_t scaled by
dt_t), and the layer around it. One sequence, one position, one head at a time; nothing is computed in chunks or in parallel."""

from __future__ import annotations

import torch


def recurrence(x, dt, a, b, c, d, state=None):
    """x (batch, t, h, p), dt (batch, t, h), a and d (h,), b and c (batch, t, g, n) -> y like x, the last state (batch, h, p, n)."""
    batch, t, heads, p = x.shape
    groups, n = b.shape[2:]
    ys, states = [], []
    for i in range(batch):
        hs = [x.new_zeros(p, n) if state is None else state[i, h] for h in range(heads)]
        rows = []
        for s in range(t):
            row = []
            for h in range(heads):
                g = h // (heads // groups)
                hs[h] = torch.exp(dt[i, s, h] * a[h]) * hs[h] + dt[i, s, h] * torch.outer(x[i, s, h], b[i, s, g])
                row.append(hs[h] @ c[i, s, g] + d[h] * x[i, s, h])
            rows.append(torch.stack(row))
        ys.append(torch.stack(rows))
        states.append(torch.stack(hs))
    return torch.stack(ys), torch.stack(states)


def layer(weights, u, *, heads, groups, n):
    """The layer with the `weights` of a Mamba2 by name: u (batch, t, d) -> (batch, t, d)."""
    w = {name: value.detach().double() for name, value in weights.items()}
    u = u.double()
    inner = w["out_proj.weight"].shape[1]
    z, xbc, dt = torch.split(u @ w["in_proj.weight"].T, [inner, inner + 2 * groups * n, heads], dim=-1)
    kernel = w["conv.weight"][:, 0]
    width = kernel.shape[1]
    convolved = torch.zeros_like(xbc)
    for s in range(u.shape[1]):
        convolved[:, s] = w["conv.bias"]
        for back in range(width):  # the last weight meets the newest position
            if s - back >= 0:
                convolved[:, s] += kernel[:, width - 1 - back] * xbc[:, s - back]
    xbc = convolved * torch.sigmoid(convolved)
    x, b, c = torch.split(xbc, [inner, groups * n, groups * n], dim=-1)
    dt = torch.log1p(torch.exp(dt + w["dt_bias"]))
    x = x.reshape(*x.shape[:2], heads, inner // heads)
    b, c = (v.reshape(*v.shape[:2], groups, n) for v in (b, c))
    y, _ = recurrence(x, dt, -torch.exp(w["A_log"]), b, c, w["D"])
    y = y.reshape(*u.shape[:2], groups, inner // groups) * (z * torch.sigmoid(z)).reshape(*u.shape[:2], groups, inner // groups)
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    return (y.reshape(*u.shape[:2], inner) * w["norm.gains"]) @ w["out_proj.weight"].T
