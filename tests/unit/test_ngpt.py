"""nGPT: the paper's equations, what it may see, and that every constraint keeps its weights on their spheres."""

from __future__ import annotations

import copy
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F

import muonlab as lab
from muonlab.errors import Interrupted
from muonlab.models.attention import rotate
from muonlab.models.counting import size_of
from muonlab.models.ngpt import NGPT, NGPTConfig, Scale, rotary_table, unit
from muonlab.optim.routing import assign
from muonlab.streams import stream_seed
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from tests.reference import ngpt as paper

SMALL = NGPTConfig(layers=2, width=32, head_width=8, mlp_width=48, context=24, alpha_init=0.15)
GATED = SMALL.model_copy(update={"gated": True})
CONSTRAINTS = ["unit_norm", "geodesic", "geodesic_by_norm"]


def build(config=SMALL, seed=0, vocab=50, moved=False, device="cpu") -> NGPT:
    model = config.build(vocab)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
    if moved:  # scales away from their start, some of them negative, so that each of them counts
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.data *= 1 + 0.6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    return model.to(device)


def some_tokens(*shape, seed=2, vocab=50, device="cpu"):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def loss_of(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def worst_norm(model) -> float:
    """How far the norm of any row (of what reads h) or column (of what writes to it) is from 1."""
    norms = []
    for name, p in model.named_parameters():
        if p.ndim == 2:
            norms.append(p.detach().norm(dim=0 if "proj" in name else 1))
    assert len(norms) == 2 + 6 * len(model.blocks)
    return (torch.cat(norms) - 1).abs().max().item()


def effective(scale: Scale):
    return scale.stored.detach() * scale.init / scale.scale


def written_out(model: NGPT, tokens):
    """The same weights through the paper's equations."""
    layers = []
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        W_u, W_v = mlp.uv.weight.detach().chunk(2)
        s_u, s_v = effective(mlp.s_uv).chunk(2)
        gates = [effective(turn.gate) if turn.gate else None for turn in (block.attention_turn, block.mlp_turn)]
        layers.append(
            paper.LayerWeights(
                *(getattr(attention, name).weight.detach() for name in ("q", "k", "v", "proj")),
                effective(attention.s_qk),
                effective(block.attention_turn.alpha),
                W_u,
                W_v,
                mlp.proj.weight.detach(),
                s_u,
                s_v,
                effective(block.mlp_turn.alpha),
                *gates,
            )
        )
    return torch.stack(
        [
            paper.logits(
                row.tolist(),
                model.embed.weight.detach(),
                layers,
                model.head.weight.detach(),
                effective(model.s_z),
                heads=model.config.width // model.config.head_width,
                base=model.config.rope_base,
            )
            for row in tokens
        ]
    )


# -- the equations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, GATED, SMALL.model_copy(update={"rope_base": 100.0, "mlp_width": None})])
def test_forward_is_what_the_paper_writes(config, device):
    model, tokens = build(config, moved=True, device=device).double(), some_tokens(2, 9, device=device)
    # the rotation is computed in float32
    torch.testing.assert_close(model(tokens).cpu(), written_out(copy.deepcopy(model).cpu(), tokens), rtol=1e-5, atol=2e-6)


def test_scales_start_at_their_effective_values_and_are_stored_as_the_paper_says(device):
    config = SMALL.model_copy(update={"gated": True, "alpha_init": 0.12})
    model = build(config, device=device)
    d = config.width
    expected = {"alpha": (0.12, d**-0.5), "s_qk": (1.0, d**-0.5), "s_uv": (1.0, 1.0), "s_z": (1.0, d**-0.5), "gate": (1.0, 1.0)}
    seen = set()
    for path, module in model.named_modules():
        if isinstance(module, Scale):
            value, stored = expected[path.split(".")[-1]]
            torch.testing.assert_close(module(), torch.full_like(module.stored, value))
            torch.testing.assert_close(module.stored.detach(), torch.full_like(module.stored, stored))
            seen.add(path.split(".")[-1])
    assert seen == expected.keys()


def test_a_step_of_adam_moves_an_effective_scale_by_lr_times_init_over_stored_scale(device):
    alpha, plain = Scale(64, init=0.05, scale=1 / 8).to(device), Scale(64, init=1.0, scale=1.0).to(device)
    before = alpha().detach(), plain().detach()
    optimizer = torch.optim.Adam([*alpha.parameters(), *plain.parameters()], lr=1e-3)
    (alpha().sum() + plain().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(before[0] - alpha(), torch.full((64,), 1e-3 * 0.05 * 8, device=device))
    torch.testing.assert_close(before[1] - plain(), torch.full((64,), 1e-3, device=device))


def test_the_sign_of_alpha_does_not_matter(device):
    model, tokens = build(moved=True, device=device), some_tokens(1, 8, device=device)
    before = model(tokens)
    for block in model.blocks:
        block.mlp_turn.alpha.stored.data.neg_()
    assert torch.equal(model(tokens), before)


def test_the_gate_is_nothing_at_one_and_no_second_alpha(device):
    plain, gated = build(device=device), build(GATED, device=device)
    tokens = some_tokens(2, 10, device=device)
    assert torch.equal(plain(tokens), gated(tokens))
    gate = gated.blocks[0].mlp_turn.gate.stored
    gate.data *= 3  # a factor common to all dimensions is normalized away ...
    torch.testing.assert_close(plain(tokens), gated(tokens), rtol=1e-5, atol=1e-6)
    gate.data[0] *= 3  # ... one of its own is not
    assert (plain(tokens) - gated(tokens)).abs().max() > 1e-3
    assert len([p for name, p in gated.named_parameters() if "gate" in name]) == 4


@pytest.mark.parametrize("config", [SMALL, GATED])
def test_hidden_states_are_unit_vectors_in_bf16_autocast_too(config, device):
    model = build(config, moved=True, device=device)
    seen = []
    for block in model.blocks:
        for turn in (block.attention_turn, block.mlp_turn):
            turn.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.autocast(device, torch.bfloat16):
        logits = model(some_tokens(2, 24, device=device))
    assert logits.dtype == torch.float32
    assert all(h.dtype == torch.float32 for h in seen)
    assert max((h.norm(dim=-1) - 1).abs().max().item() for h in seen) < 1e-6
    exact = model(some_tokens(2, 24, device=device))
    assert 0 < (logits - exact).abs().max() < 0.05


# -- what it sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 7, 22])
def test_position_t_cannot_see_t_plus_1(t, device):
    model, tokens = build(GATED, moved=True, device=device), some_tokens(1, 24, device=device)
    changed = tokens.clone()
    changed[:, t + 1 :] = (changed[:, t + 1 :] + 13) % 50
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1], rtol=0, atol=0)
    assert not torch.allclose(a[:, t + 1 :], b[:, t + 1 :])


def test_every_position_sees_the_first_token(device):
    model, tokens = build(device=device).double(), some_tokens(1, 24, device=device)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    assert ((model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-6).all()


def test_rope_turns_every_pair_keeps_norms_and_knows_relative_positions_only(device):
    cos, sin = (table.to(device) for table in rotary_table(64, 16, 10000.0))
    angle = torch.atan2(sin[1], cos[1])
    torch.testing.assert_close(angle, 10000.0 ** (-torch.arange(8, device=device) / 8))
    generator = torch.Generator().manual_seed(0)
    x, y = (unit(torch.randn(16, generator=generator).to(device)).expand(1, 64, 1, 16) for _ in range(2))
    q, k = rotate(x, cos, sin)[0, :, 0], rotate(y, cos, sin)[0, :, 0]
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(64, device=device))
    for shift in (0, 1, 9):
        products = (q[shift:] * k[: 64 - shift]).sum(-1)
        torch.testing.assert_close(products, products[0].expand_as(products), rtol=1e-4, atol=1e-5)
    products = q @ k[0]
    assert products.std() > 0.05, "and it does know them"


# -- weights on spheres -----------------------------------------------------------------------------------------


def trained(name, constraint, steps, config=GATED, each=None, every=1, autocast=False, device="cpu", **options):
    model, tokens = build(config, device=device), some_tokens(4, 25, device=device)
    optimizer = lab.optimizer(model, name, constraint=constraint, project_every=every, **options)
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        if each:
            each(t, model, loss.item())
    return model


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(("name", "lr"), [("muon", 0.05), ("normuon", 0.05), ("adamw", 0.02)])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_weight_stays_on_its_sphere(constraint, name, lr, autocast, device):
    """Embedding and head too, which AdamW trains in all of these; the free vectors move."""
    worst = []
    before = dict(build(GATED, device=device).named_parameters())
    options = {} if name == "adamw" else {"weight_decay": 0.1}
    model = trained(
        name,
        constraint,
        6,
        lr=lr,
        aux_lr=0.02,
        autocast=autocast,
        each=lambda t, m, loss: worst.append(worst_norm(m)),
        **options,
        device=device,
    )
    assert max(worst) < 1e-6
    for key, p in model.named_parameters():
        moved = (p - before[key]).abs().max()
        assert moved > 1e-3, f"{key} moved by {moved}"


@pytest.mark.parametrize(("name", "lr"), [("muon", 0.05), ("adamw", 0.02)])
def test_lazy_projection_returns_to_the_spheres_at_every_kth_step(name, lr, device):
    def look(t, model, loss):
        assert worst_norm(model) < 1e-6 if t % 3 == 0 else worst_norm(model) > 1e-4

    trained(name, "unit_norm", 9, lr=lr, aux_lr=0.02, every=3, each=look, device=device)


def test_without_a_constraint_the_weights_leave_their_spheres(device):
    assert worst_norm(trained("muon", "none", 3, lr=0.05, aux_lr=0.02, device=device)) > 0.01


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_one_small_step_decreases_the_loss_and_stays_on_the_spheres(constraint, name, device):
    """A geodesic that ran uphill, as in a public study, would raise it."""
    model, tokens = build(GATED, moved=True, device=device), some_tokens(4, 25, device=device)
    before = loss_of(model, tokens)
    optimizer = lab.optimizer(model, name, constraint=constraint, lr=1e-3, aux_lr=1e-3)
    before.backward()
    optimizer.step()
    assert loss_of(model, tokens) < before - 1e-3
    assert worst_norm(model) < 1e-6


def test_the_first_order_of_a_geodesic_step_is_the_slope_of_the_loss(device):
    """d loss / d θ = −Σ ‖tangent gradient‖ when every row turns by θ against its own gradient: measured against autograd."""
    model, tokens = build(device=device).double(), some_tokens(4, 25, device=device)
    before = loss_of(model, tokens)
    before.backward()
    name, dim = "blocks.1.mlp.proj.weight", 0
    p = dict(model.named_parameters())[name]
    tangent = p.grad - (p.grad * p).sum(dim, keepdim=True) * p
    slope = tangent.norm(dim=dim).sum().item()
    for key, other in model.named_parameters():
        other.requires_grad_(key == name)
        other.grad = other.grad if key == name else None
    theta = 1e-5
    lab.optimizer(model, "sgd", constraint="geodesic", lr=theta).step()
    assert (before - loss_of(model, tokens)).item() / theta == pytest.approx(slope, rel=1e-3)


def test_weight_decay_is_no_decay_on_a_sphere(device):
    """norm((1 − ηd)w − ηu) is a step at the rate η / (1 − ηd); along a geodesic it is nothing at all."""
    # weights that differ in the last place may round to two neighbours in bfloat16, in which a GPU makes the products
    atol = 1e-4 if device == "cpu" else 2e-3
    decayed = trained("muon", "unit_norm", 3, lr=0.05, weight_decay=2.0, aux_lr=0.02, device=device)
    faster = trained("muon", "unit_norm", 3, lr=0.05 / 0.9, aux_lr=0.02, device=device)
    plain = trained("muon", "unit_norm", 3, lr=0.05, aux_lr=0.02, device=device)
    for (name, a), b, c in zip(decayed.named_parameters(), faster.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)
        assert a.ndim == 1 or "embed" in name or "head" in name or not torch.allclose(a, c, rtol=1e-3, atol=1e-4)
    geodesic = [trained("muon", "geodesic", 3, lr=0.05, weight_decay=wd, aux_lr=0.02, device=device) for wd in (0.0, 2.0)]
    for a, b in zip(*(m.parameters() for m in geodesic), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)


# -- roles, sizes, starts ---------------------------------------------------------------------------------------


def test_roles_and_matrices():
    for assigned in assign(build(GATED)):
        part = assigned.name.split(".")[-2]
        if assigned.parameter.ndim == 1:
            assert assigned.role == "vector"
            continue
        assert assigned.role == {"embed": "embedding", "head": "head"}.get(part, "matrix"), assigned
        assert assigned.spec.norm_axis == ("output" if part == "proj" else "input"), assigned
        assert assigned.spec.split == (2 if part == "uv" else 1), assigned
    # u and v are orthogonalized apart: two matrices (48, 32), with the aspect factor of 48 / 32 and not of 96 / 32
    rates = {row.name: row.lr for row in lab.optimizer(build(GATED), "muon", lr=0.02).plan}
    assert rates["blocks.0.mlp.uv.weight"] == pytest.approx(0.02 * math.sqrt(48 / 32))


def test_initial_weights_are_unit_and_depend_on_seed_name_and_shape_alone():
    model = build(seed=1)
    assert worst_norm(model) < 1e-6
    a, b, c = (dict(build(seed=s).named_parameters()) for s in (1, 1, 2))
    other = dict(build(GATED.model_copy(update={"layers": 3, "alpha_init": 0.3}), seed=1, vocab=60).named_parameters())
    for name, p in a.items():
        assert torch.equal(p, b[name])
        if p.ndim == 2:
            assert not torch.equal(p, c[name])
            assert torch.equal(p, other[name]) == (name not in ("embed.weight", "head.weight"))
    assert not torch.equal(a["blocks.0.attention.q.weight"], a["blocks.1.attention.q.weight"])
    again = copy.deepcopy(model)
    again.initialize(lambda name: torch.Generator().manual_seed(stream_seed(1, "init", name)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)), "at any second time too"


def test_the_155m_model_of_the_study():
    size = size_of(NGPTConfig(layers=11, mlp_width=2048, gated=True, alpha_init=0.15, vocab_size=50257), 1)
    matrices, words = 11 * 12 * 768**2, 50257 * 768
    scales = 11 * (4 * 768 + 768 + 2 * 2048) + 50257
    assert size.parameters == matrices + 2 * words + scales == 155_189_073
    assert size.matmul_parameters == matrices + words
    two, one = size_of(NGPTConfig(layers=2, vocab_size=50257), 1), size_of(NGPTConfig(layers=1, vocab_size=50257), 1)
    assert two.matmul_parameters - one.matmul_parameters == (4 + 3 * 4) * 768**2, "the paper's MLP: 4·width, three matrices"
    # forward and backward: 6 for each matrix parameter, and 12·layers·d·T for attention without regard to the mask
    assert size.flops_per_token == 6 * size.matmul_parameters + 12 * 11 * 768 * 1024


@pytest.mark.parametrize(
    ("sizes", "message"), [({"width": 100}, "multiple of head_width"), ({"head_width": 3, "width": 12}, "must be even")]
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        NGPTConfig(**sizes)


# -- in the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["name=muon", "name=adamw"])
def test_an_interrupted_run_goes_on_bit_for_bit_between_two_projections(workdir, optimizer):
    settings = ["model.family=ngpt", "model.gated=true", f"optimizer.{optimizer}"]
    recipe = load_recipe("tiny.toml", [*settings, "optimizer.constraint=unit_norm", "optimizer.project_every=5"])
    whole = train(recipe, 5, "whole", threads=1)

    def stop(progress):
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(recipe, 5, "parts", threads=1, on_progress=stop)
    parts = train(recipe, 5, "parts", threads=1, resume=True)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert parts["val_loss"] == whole["val_loss"] < 5.5


def test_bf16_weights_give_logits_near_those_of_float32(device):
    model = NGPTConfig(layers=2, width=32, head_width=16, context=16).build(50)
    model.initialize(lambda name: torch.Generator().manual_seed(len(name)))
    model.to(device)
    tokens = torch.arange(16, device=device)[None]
    with torch.no_grad():
        exact = model(tokens)
        low = model.bfloat16()(tokens)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact.flatten(), low.flatten(), dim=0) > 0.999
