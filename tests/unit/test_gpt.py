"""The GPT: what it may see, what its pieces are, how large it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muonlab.models.attention import rotary_table, rotate
from muonlab.models.counting import size_of
from muonlab.models.gpt import GPTConfig
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


def test_grouped_queries_are_attention_with_repeated_keys_and_values():
    grouped = build(SMALL.model_copy(update={"width": 64, "kv_heads": 2}))
    full = build(SMALL.model_copy(update={"width": 64}))
    state = {name: p for name, p in grouped.state_dict().items() if not name.endswith(("k.weight", "k.bias", "v.weight", "v.bias"))}
    for name, p in grouped.state_dict().items():
        if name not in state:  # rows of one head of 16 serve two heads
            state[name] = p.unflatten(0, (2, 16)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(grouped(tokens), full(tokens))


@pytest.mark.parametrize(("pattern", "blocks", "seen"), [("L", 2, 8), ("S", 2, 4), ("S", 1, 4), ("L", 9, 24)])
def test_a_window_hides_what_lies_before_it(pattern, blocks, seen):
    model = build(SMALL.model_copy(update={"layers": 1, "window_pattern": pattern, "window_block": 4}))
    model.set_window(blocks)
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2))
    for position in range(24):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        differs = (model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-9
        expected = torch.zeros(24, dtype=torch.bool)
        expected[position : position + seen] = True
        assert torch.equal(differs, expected)


def test_a_window_of_the_whole_context_is_plain_attention():
    windowed = build(SMALL.model_copy(update={"window_pattern": "L", "window_block": 8}))
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(windowed(tokens), build()(tokens))


def test_layers_take_long_and_short_windows_in_turn():
    model = build(SMALL.model_copy(update={"layers": 2, "window_pattern": "SL", "window_block": 2}))
    model.set_window(4)  # short: 4 tokens, long: 8; two layers see 4 + 8 − 1 back
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    differs = (model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-12
    assert differs[:11].all()
    assert not differs[11:].any()


def test_a_tied_head_shares_the_embedding():
    model = build(SMALL.model_copy(update={"tied": True}))
    assert size_of(SMALL.model_copy(update={"tied": True}), 50).parameters == size_of(SMALL, 50).parameters - 33 * 50
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    hidden = []
    model.norm_out.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    logits = model(tokens)
    raw = hidden[0] @ model.embed.weight.T
    torch.testing.assert_close(logits.double(), 15 * raw / (raw**2 + 225).sqrt(), rtol=1e-5, atol=1e-5)


def test_the_residual_scale_multiplies_every_branch():
    plain, scaled = build(), build(SMALL.model_copy(update={"residual_scale": 0.7}))
    for name, p in plain.named_parameters():  # the same function: the factor moved into the projections
        if "proj" in name:
            p.data *= 0.7
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(scaled(tokens), plain(tokens))


@pytest.mark.parametrize(("learned", "count"), [("layer", 1), ("branch", 2)])
def test_a_learned_residual_scale_starts_at_its_value_and_gets_gradients(learned, count):
    fixed = build(SMALL.model_copy(update={"residual_scale": 0.7}))
    model = build(SMALL.model_copy(update={"residual_scale": 0.7, "residual_scale_learned": learned}))
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(tokens), fixed(tokens), rtol=1e-6, atol=1e-6)
    model(tokens).square().sum().backward()
    for block in model.blocks:
        assert block.residual_scales.shape == (count,)
        assert (block.residual_scales.grad != 0).all()
    assert {name for name, role in model.roles().items() if role == "matrix"} == {"blocks.*.weight"}


def test_kv_heads_must_divide_the_heads():
    with pytest.raises(ValueError, match="divisor of the number of heads, 2, got 3"):
        GPTConfig(layers=1, width=32, head_width=16, kv_heads=3)
