"""The GPT once more, position by position and head by head, from the equations: slow, float64, no attention kernel, no mask."""

from __future__ import annotations

import torch


def norm(x, gains=1.0):
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * gains


def turned(u, t, base):
    """Half of the pairs (u_i, u_{i + d/2}) turn by t·base^(−i / (d/4 − 1)), the other half stand still."""
    new, half = u.clone(), len(u) // 2
    for i in range(half // 2):
        angle = torch.tensor(t * base ** (-i / max(1, half // 2 - 1)), dtype=torch.float64)
        new[i] = u[i] * angle.cos() + u[i + half] * angle.sin()
        new[i + half] = u[i + half] * angle.cos() - u[i] * angle.sin()
    return new


def linear(f, x):
    return f.weight @ x + (f.bias if f.bias is not None else 0)


def forward(model, tokens):
    """tokens (T,) -> logits (T, vocab), with whatever extras model.config asks for."""
    c, T = model.config, len(tokens)
    streams = [[norm(model.embed.weight[token], model.norm_in.gains) for token in tokens]]  # streams[l][t]: what layer l gets
    for i, block in enumerate(model.blocks):
        x = list(streams[i])
        for n, (to, source) in enumerate(c.skips):
            if to == i:
                x = [a + model.skip_weights[n] * b for a, b in zip(x, streams[source + 1])]
        scales = [c.residual_scale] * 2 if block.residual_scales is None else list(block.residual_scales) * 2
        table = i if i < c.value_embeddings else i - len(model.blocks) + c.value_embeddings
        seen = int(model.window["LS".index(c.window_pattern[i % len(c.window_pattern)])]) if c.window_pattern else T
        a = [norm(u, block.norm1.gains) for u in x]
        outputs = [
            attended(block.attention, c, a, t, seen, tokens, model.value_embeds[table] if table >= 0 else None) for t in range(T)
        ]
        x = [u + scales[0] * linear(block.attention.proj, o) for u, o in zip(x, outputs)]
        m = [norm(u, block.norm2.gains) for u in x]
        streams.append([u + scales[1] * linear(block.mlp.proj, linear(block.mlp.up, v).clamp(min=0) ** 2) for u, v in zip(x, m)])
    final = [norm(u, model.norm_out.gains) for u in streams[-1]]
    logits = torch.stack([model.embed.weight @ u if model.head is None else linear(model.head, u) for u in final])
    capped = {"rsqrt": lambda z: z / (1 + z**2).sqrt(), "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp())}
    return logits if c.logit_cap_form == "none" else c.logit_cap * capped[c.logit_cap_form](logits / c.logit_cap)


def attended(attention, c, a, t, seen, tokens, table):
    """What position t gathers from the `seen` newest positions: (d,)."""
    heads = c.width // c.head_width
    group = heads // (c.kv_heads or heads)
    past = range(max(0, t - seen + 1), t + 1)
    gathered = []
    for h in range(heads):
        q = slice(h * c.head_width, (h + 1) * c.head_width)
        kv = slice(h // group * c.head_width, (h // group + 1) * c.head_width)
        query = turned(norm(linear(attention.q, a[t])[q]), t, c.rope_base)
        keys = [turned(norm(linear(attention.k, a[s])[kv]), s, c.rope_base) for s in past]
        values = [linear(attention.v, a[s])[kv] for s in past]
        if table is not None:
            own, other = attention.value_mix
            values = [own * v + other * table.weight[tokens[s]][kv] for v, s in zip(values, past)]
        weights = torch.stack([(c.attention_scale * query @ key).exp() for key in keys])
        gathered.append(sum(w * v for w, v in zip(weights / weights.sum(), values)))
    return torch.cat(gathered)
