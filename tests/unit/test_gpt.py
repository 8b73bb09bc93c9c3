"""The GPT: what it may see, what its pieces are, how large it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muonlab.models.counting import size_of
from muonlab.models.gpt import GPTConfig, rotary_table, rotate
from muonlab.streams import stream_seed

SMALL = GPTConfig(layers=2, width=32, head_width=16, context=24)


def build(config=SMALL, seed=0, vocab=50, random=True):
    model = config.build(vocab)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
    if random:  # projections start at zero; give them values, so that every path carries something
        for name, p in model.named_parameters():
            if "proj" in name or "head" in name:
                torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    return model.double()


@pytest.mark.parametrize("t", [0, 7, 22])
def test_position_t_cannot_see_t_plus_1(t):
    model = build()
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, t + 1 :] = (changed[:, t + 1 :] + 13) % 50
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1], rtol=0, atol=0)
    assert not torch.allclose(a[:, t + 1 :], b[:, t + 1 :])


def test_every_position_sees_the_first_token():
    model = build()
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))
    assert (difference > 1e-6).all()


def test_forward_matches_a_plain_implementation():
    """The equations once more, written out with loops and a mask."""
    model = build()
    tokens = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(3))
    norm = lambda x, g: x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * g  # noqa: E731
    frequencies = [(1 / 1024) ** (i / 3) for i in range(4)] + [0.0] * 4
    x = norm(model.embed.weight[tokens], model.norm_in.gains)
    mask = torch.full((10, 10), float("-inf"), dtype=torch.float64).triu(1)
    for block in model.blocks:
        a = norm(x, block.norm1.gains)
        heads = []
        for h in range(2):
            rows = slice(16 * h, 16 * h + 16)
            q, k, v = (a @ f.weight[rows].T + f.bias[rows] for f in (block.attention.q, block.attention.k, block.attention.v))
            q, k = norm(q, 1.0), norm(k, 1.0)
            turned = []
            for u in (q, k):
                new = u.clone()
                for t in range(10):
                    for i, w in enumerate(frequencies):
                        c, s = torch.cos(torch.tensor(t * w)), torch.sin(torch.tensor(t * w))
                        new[:, t, i] = u[:, t, i] * c + u[:, t, i + 8] * s
                        new[:, t, i + 8] = u[:, t, i + 8] * c - u[:, t, i] * s
                turned.append(new)
            weights = F.softmax(0.12 * turned[0] @ turned[1].mT + mask, dim=-1)
            heads.append(weights @ v)
        x = x + torch.cat(heads, -1) @ block.attention.proj.weight.T + block.attention.proj.bias
        m = norm(x, block.norm2.gains)
        m = (m @ block.mlp.up.weight.T + block.mlp.up.bias).clamp(min=0) ** 2
        x = x + m @ block.mlp.proj.weight.T + block.mlp.proj.bias
    logits = norm(x, model.norm_out.gains) @ model.head.weight.T + model.head.bias
    logits = 15 * logits / (logits**2 + 225).sqrt()
    torch.testing.assert_close(model(tokens).double(), logits, rtol=1e-4, atol=1e-4)


def test_rope_is_a_rotation_that_knows_relative_positions_only():
    cos, sin = rotary_table(64, 16, 1024.0)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator).expand(1, 64, 1, 16) for _ in range(2))
    q, k = rotate(q, cos, sin)[0, :, 0], rotate(k, cos, sin)[0, :, 0]
    torch.testing.assert_close(q.norm(dim=-1), q[0].norm().expand(64))
    for shift in (1, 9):
        products = (q[shift:] * k[: 64 - shift]).sum(-1)
        torch.testing.assert_close(products, products[0].expand_as(products), rtol=1e-4, atol=1e-4)


def test_half_of_the_pairs_stand_still():
    cos, sin = rotary_table(64, 16, 1024.0)
    assert torch.equal(cos[:, 4:], torch.ones(64, 4))
    assert torch.equal(sin[:, 4:], torch.zeros(64, 4))
    assert torch.allclose(torch.atan2(sin[1, :4], cos[1, :4]), (1 / 1024) ** torch.tensor([0, 1 / 3, 2 / 3, 1.0]))


def test_logits_stay_below_the_cap_and_start_at_zero():
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert build()(tokens).abs().max() < 15
    assert torch.equal(build(random=False)(tokens), torch.zeros(1, 4, 50))


def test_initial_weights_hash_the_seed_and_the_name():
    a, b, c = (dict(build(seed=s, random=False).named_parameters()) for s in (1, 1, 2))
    wider = dict(build(GPTConfig(layers=3, width=32, head_width=16, context=24), seed=1, random=False).named_parameters())
    name = "blocks.1.mlp.up.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])
    assert torch.equal(a[name], wider[name]), "more layers leave the first ones as they were"
    assert not torch.equal(a[name], a["blocks.0.mlp.up.weight"])


def test_sizes_from_the_toy_to_the_benchmark():
    benchmark = size_of(GPTConfig(), 50304)
    assert benchmark.matmul_parameters == 12 * 12 * 768**2 + 50304 * 768 == 123_568_128
    biases = 12 * (9 * 768) + 50304
    gains = 768 * (2 * 12 + 2)
    assert benchmark.parameters == 123_568_128 + 50304 * 768 + biases + gains
    # forward and backward: 6 for each matrix parameter, and 12·layers·d·T for attention without regard to the mask
    assert benchmark.flops_per_token == 6 * 123_568_128 + 12 * 12 * 768 * 1024
    toy = size_of(GPTConfig(layers=4, width=128, head_width=32, context=256), 257)
    assert 0.8e6 < toy.parameters < 1.2e6


@pytest.mark.parametrize(
    ("sizes", "message"), [({"width": 100}, "multiple of head_width"), ({"head_width": 6, "width": 12}, "multiple of 4")]
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**sizes)
