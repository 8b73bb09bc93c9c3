"""The GPT: what it may see, what its pieces are, how large it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muonlab.models.attention import rotary_table, rotate
from muonlab.models.counting import size_of
from muonlab.models.gpt import GPTConfig
from muonlab.models.softcap import soft_cap
from muonlab.optim.routing import assign
from muonlab.streams import stream_seed
from muonlab.train.recipe import load_recipe
from tests.reference import gpt as plain

ROOT = Path(__file__).parents[2]
SMALL = GPTConfig(layers=2, width=32, head_width=16, context=24)
FOUR = GPTConfig(layers=4, width=32, head_width=8, context=24)
EXTRAS = [
    {},
    {"kv_heads": 2},
    {"tied": True},
    {"bias": False},
    {"window_pattern": "LSS", "window_block": 2},
    {"value_embeddings": 1},
    {"value_embeddings": 2},
    {"skips": ((2, 0), (3, 0), (3, 1))},
    {"logit_cap": 5.0},
    {"logit_cap_form": "tanh"},
    {"logit_cap_form": "none"},
    {"residual_scale": 0.7, "residual_scale_learned": "branch"},
]
EXTRAS.append({key: value for extras in EXTRAS for key, value in extras.items() if value != "none"})  # all of them together


def build(config=SMALL, seed=0, vocab=50, random=True, device="cpu"):
    model = config.build(vocab)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
    if random:  # projections start at zero; give them values, so that every path carries something
        for name, p in model.named_parameters():
            if "proj" in name or "head" in name:
                torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    return model.double().to(device)


def build_with(extras, device="cpu"):
    """Four layers with these extras, their scalars away from where they start."""
    model = build(FOUR.model_copy(update=extras))
    for name, p in model.named_parameters():
        if name.endswith(("value_mix", "skip_weights", "residual_scales")):
            torch.nn.init.uniform_(p, 0.3, 1.3, generator=torch.Generator().manual_seed(1))
    return model.to(device)


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("t", [0, 7, 22])
def test_position_t_cannot_see_t_plus_1(t, extras, device):
    model = build_with(extras, device=device)
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2)).to(device)
    changed = tokens.clone()
    changed[:, t + 1 :] = (changed[:, t + 1 :] + 13) % 50
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1], rtol=0, atol=0)
    assert not torch.allclose(a[:, t + 1 :], b[:, t + 1 :])


def test_every_position_sees_the_first_token(device):
    model = build(device=device)
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2)).to(device)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))
    assert (difference > 1e-6).all()


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@torch.no_grad()
def test_forward_matches_a_plain_implementation(extras, device):
    model = build_with(extras, device=device)
    tokens = torch.randint(0, 50, (10,), generator=torch.Generator().manual_seed(3)).to(device)
    found = model(tokens[None])[0].double().cpu()
    torch.testing.assert_close(found, plain.forward(model.cpu(), tokens.cpu()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("extras", EXTRAS[1:], ids=str)
@torch.no_grad()
def test_every_extra_makes_a_difference(extras, device):
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(3)).to(device)
    model = build_with(extras, device=device)
    assert not torch.allclose(model(tokens), build(FOUR, device=device)(tokens))


def test_rope_is_a_rotation_that_knows_relative_positions_only(device):
    cos, sin = (table.to(device) for table in rotary_table(64, 16, 1024.0))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator).expand(1, 64, 1, 16).to(device) for _ in range(2))
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


def test_logits_stay_below_the_cap_and_start_at_zero(device):
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=device)
    assert build(device=device)(tokens).abs().max() < 15
    assert torch.equal(build(random=False, device=device)(tokens), torch.zeros(1, 4, 50, device=device))


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


def test_grouped_queries_are_attention_with_repeated_keys_and_values(device):
    grouped = build(SMALL.model_copy(update={"width": 64, "kv_heads": 2}), device=device)
    full = build(SMALL.model_copy(update={"width": 64}), device=device)
    state = {name: p for name, p in grouped.state_dict().items() if not name.endswith(("k.weight", "k.bias", "v.weight", "v.bias"))}
    for name, p in grouped.state_dict().items():
        if name not in state:  # rows of one head of 16 serve two heads
            state[name] = p.unflatten(0, (2, 16)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2)).to(device)
    torch.testing.assert_close(grouped(tokens), full(tokens))


@pytest.mark.parametrize(("pattern", "blocks", "seen"), [("L", 2, 8), ("S", 2, 4), ("S", 1, 4), ("L", 9, 24)])
def test_a_window_hides_what_lies_before_it(pattern, blocks, seen, device):
    model = build(SMALL.model_copy(update={"layers": 1, "window_pattern": pattern, "window_block": 4}), device=device)
    model.set_window(blocks)
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2)).to(device)
    for position in range(24):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        differs = (model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-9
        expected = torch.zeros(24, dtype=torch.bool, device=device)
        expected[position : position + seen] = True
        assert torch.equal(differs, expected)


def test_a_window_of_the_whole_context_is_plain_attention(device):
    windowed = build(SMALL.model_copy(update={"window_pattern": "L", "window_block": 8}), device=device)
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2)).to(device)
    torch.testing.assert_close(windowed(tokens), build(device=device)(tokens))


def test_layers_take_long_and_short_windows_in_turn(device):
    model = build(SMALL.model_copy(update={"layers": 2, "window_pattern": "SL", "window_block": 2}), device=device)
    model.set_window(4)  # short: 4 tokens, long: 8; two layers see 4 + 8 − 1 back
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(2)).to(device)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    differs = (model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-12
    assert differs[:11].all()
    assert not differs[11:].any()


def test_a_tied_head_shares_the_embedding(device):
    model = build(SMALL.model_copy(update={"tied": True}), device=device)
    assert size_of(SMALL.model_copy(update={"tied": True}), 50).parameters == size_of(SMALL, 50).parameters - 33 * 50
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2)).to(device)
    hidden = []
    model.norm_out.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    logits = model(tokens)
    raw = hidden[0] @ model.embed.weight.T
    torch.testing.assert_close(logits.double(), 15 * raw / (raw**2 + 225).sqrt(), rtol=1e-5, atol=1e-5)


def test_the_residual_scale_multiplies_every_branch(device):
    plain, scaled = build(device=device), build(SMALL.model_copy(update={"residual_scale": 0.7}), device=device)
    for name, p in plain.named_parameters():  # the same function: the factor moved into the projections
        if "proj" in name:
            p.data *= 0.7
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2)).to(device)
    torch.testing.assert_close(scaled(tokens), plain(tokens))


@pytest.mark.parametrize(("learned", "count"), [("layer", 1), ("branch", 2)])
def test_a_learned_residual_scale_starts_at_its_value_and_gets_gradients(learned, count, device):
    fixed = build(SMALL.model_copy(update={"residual_scale": 0.7}), device=device)
    model = build(SMALL.model_copy(update={"residual_scale": 0.7, "residual_scale_learned": learned}), device=device)
    tokens = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2)).to(device)
    torch.testing.assert_close(model(tokens), fixed(tokens), rtol=1e-6, atol=1e-6)
    model(tokens).square().sum().backward()
    for block in model.blocks:
        assert block.residual_scales.shape == (count,)
        assert (block.residual_scales.grad != 0).all()
    assert {name for name, role in model.roles().items() if role == "matrix"} == {"blocks.*.weight"}


def test_kv_heads_must_divide_the_heads():
    with pytest.raises(ValueError, match="divisor of the number of heads, 2, got 3"):
        GPTConfig(layers=1, width=32, head_width=16, kv_heads=3)


def test_value_embeddings_serve_the_first_layers_and_again_the_last():
    config = GPTConfig(layers=16, width=32, head_width=8, value_embeddings=5)
    assert [config.value_table(i) for i in range(16)] == [0, 1, 2, 3, 4, *[None] * 6, 0, 1, 2, 3, 4]
    assert all(GPTConfig(layers=3).value_table(i) is None for i in range(3))


def test_value_embeddings_and_skips_start_at_the_records_values_and_get_gradients(device):
    model = build(FOUR.model_copy(update={"value_embeddings": 1, "skips": ((2, 0),), "kv_heads": 2}), random=False)
    assert [block.attention.value_mix is not None for block in model.blocks] == [True, False, False, True]
    assert torch.equal(model.blocks[0].attention.value_mix, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.equal(model.skip_weights, torch.ones(1, dtype=torch.float64))
    assert model.value_embeds[0].weight.shape == (50, 2 * 8)
    assert 0.9 < model.value_embeds[0].weight.std() < 1.1
    for i, p in enumerate([model.head.weight, *(block.attention.proj.weight for block in model.blocks)]):
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    model.to(device)(torch.arange(24, device=device)[None]).square().sum().backward()
    assert (model.value_embeds[0].weight.grad[:24] != 0).all()
    assert all((p.grad != 0).all() for p in (model.skip_weights, *(model.blocks[i].attention.value_mix for i in (0, 3))))


def test_value_embeddings_are_embeddings_and_scalars_are_vectors():
    extras = {"value_embeddings": 2, "skips": ((3, 1),), "residual_scale_learned": "layer"}
    plan = {a.name: a.role for a in assign(build(FOUR.model_copy(update=extras)))}
    tables = {"embed.weight", "value_embeds.0.weight", "value_embeds.1.weight"}
    assert {name for name, role in plan.items() if role == "embedding"} == tables
    assert plan["skip_weights"] == plan["blocks.0.attention.value_mix"] == plan["blocks.0.residual_scales"] == "vector"
    assert all(role == "matrix" for name, role in plan.items() if name.startswith("blocks") and name.endswith("weight"))


def test_extras_that_are_off_are_not_in_the_recipe_and_skips_have_one_order():
    assert not {"value_embeddings", "skips", "logit_cap_form", "window_pattern"} & GPTConfig().model_dump().keys()
    one, other = (GPTConfig(skips=pairs) for pairs in ([[9, 6], [10, 4]], [[10, 4], [9, 6]]))
    assert one.model_dump(mode="json") == other.model_dump(mode="json")
    assert one.model_dump(mode="json")["skips"] == [[9, 6], [10, 4]]
    assert GPTConfig.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"value_embeddings": 3}, "at most 2 for 4 layers, got 3"),
        ({"skips": [[2, 2]]}, r"from < to < layers \(4\), got \[2, 2\]"),
        ({"skips": [[4, 1]]}, r"got \[4, 1\]"),
        ({"skips": [[2, -1]]}, "greater than or equal to 0"),
        ({"skips": [[3, 1], [3, 1]]}, r"each pair once, got \[\[3, 1\], \[3, 1\]\]"),
        ({"logit_cap_form": "none", "logit_cap": 30.0}, "leave one of them out"),
        ({"logit_cap_form": "sigmoid"}, "'rsqrt', 'tanh' or 'none'"),
    ],
)
def test_extras_that_do_not_fit_are_refused(extras, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(layers=4, width=32, head_width=8, **extras)


@pytest.mark.parametrize("form", ["rsqrt", "tanh"])
def test_a_soft_cap_is_the_identity_at_zero_bounded_and_has_its_own_derivative(form):
    x = torch.tensor([0.0, 1e-3, -2.0, 7.0, 40.0, -1e6], dtype=torch.float64)
    y = soft_cap(x, 5.0, form)
    assert (y.abs() <= 5).all()
    torch.testing.assert_close(y[:2], x[:2], rtol=1e-6, atol=0)
    assert abs(y[-1].item() + 5) < 1e-6
    assert torch.autograd.gradcheck(lambda x: soft_cap(x, 5.0, form), (x[:-1].requires_grad_(),))


def test_the_benchmarks_cap_is_the_formula_to_the_last_bit_with_gradients_within_rounding(device):
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).to(device) * 30
    ours, formula = (x.clone().requires_grad_() for _ in range(2))
    y, z = soft_cap(ours, 15.0), 15.0 * formula * torch.rsqrt(formula.square() + 225.0)
    assert torch.equal(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(ours.grad, formula.grad, rtol=1e-4, atol=1e-5)


def test_the_records_sigmoid_is_tanh_and_a_constant(device):
    x = torch.linspace(-60, 60, 101, dtype=torch.float64, device=device)
    torch.testing.assert_close(30 * torch.sigmoid(x / 7.5) - 15, soft_cap(x, 15.0, "tanh"))


def test_the_medium_recipe_is_the_medium_tracks_model():
    recipe = load_recipe(ROOT / "recipes" / "gpt-medium.toml")
    c = recipe.model
    assert (c.layers, c.width, c.head_width, c.vocab_size) == (16, 1024, 128, 50304)
    assert c.skips == ((9, 6), (10, 4), (11, 2))
    assert [i for i in range(16) if c.window_pattern[i] == "L"] == [0, 4, 11, 15]
    size = size_of(c, 50304)
    assert size.matmul_parameters == 16 * 12 * 1024**2 + 50304 * 1024 == 252_837_888
    vectors = 1024 * (2 * 16 + 2) + 2 * 10 + 3  # gains, mixes of values, skips; no biases
    assert size.parameters == size.matmul_parameters + 6 * 50304 * 1024 + vectors  # an embedding and five tables of values
    assert recipe.tokens_per_step == 524_288
