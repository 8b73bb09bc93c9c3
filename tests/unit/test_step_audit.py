"""`opt.audit()`: what a step did, against what was arranged, and against numpy."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.variants import variant, variants
from tests.clients.tiny import Tiny, assert_same_weights, batches, loss_of


def stepped(model, optimizer, clip=None, tokens=None, **options):
    audit = optimizer.audit(**options)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0] if tokens is None else tokens).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return audit


def row_of(audit, name):
    return next(row for row in audit.rows if row.name == name)


@pytest.mark.parametrize("decay", ["param", "cautious", "both", "squared", "coupled"])
def test_figures_are_those_of_the_weights(decay):
    """σ of the update at a learning rate of 1, whatever decay was taken away beside it."""
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon", lr=0.03, weight_decay=0.2, decay=decay, orthogonalizer="svd")
    for seed in range(3):
        before = copy.deepcopy(model)
        audit = stepped(model, optimizer, tokens=torch.arange(11))
        name = "blocks.1.weight"
        row, w, v = row_of(audit, name), before.blocks[1].weight.detach().numpy(), model.blocks[1].weight.detach().numpy()
        assert row.what == "stepped", seed
        assert row.weight == pytest.approx(float(numpy.sqrt((w**2).mean())), rel=1e-5)
        assert row.update == pytest.approx(float(numpy.sqrt(((w - v) ** 2).mean())), rel=1e-5)
        held = 1.2 if decay == "both" else 1.0  # that decay multiplies the update by 1 + wd
        assert row.sigma == pytest.approx((held, held), abs=1e-4)
        assert row.orthogonalized
        assert row.reached == 1.0
        assert row_of(audit, "lm_head.weight").sigma is None
        assert [r.name for r in audit.rows] == [r.name for r in optimizer.plan]
    assert audit.doubts == []
    assert audit.summary.startswith("2 of 2 updates orthogonal (σ to")


@pytest.mark.parametrize("name", variants())
def test_every_optimizer_can_be_audited_and_trains_as_without(name):
    model, alike = Tiny(), Tiny()
    audited, plain = (muonlab.optimizer(m, name) for m in (model, alike))
    for tokens in batches(3):
        audit = stepped(model, audited, tokens=tokens)
        plain.zero_grad()
        loss_of(alike, tokens).backward()
        plain.step()
        assert len(audit.rows) == len(list(model.parameters()))
        assert str(audit)
        assert not [p for p in model.parameters() if p._post_accumulate_grad_hooks], "it looks at one step"
    assert_same_weights(model, alike)
    flat = [row.orthogonalized for row in audit.rows if row.orthogonalized is not None]
    assert flat == [True, True] or not variant(name).rule().matrices


def test_an_update_that_is_not_orthogonal_is_seen():
    """A rule for matrices that hands the gradient on."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(2)))
    optimizer = Optimizer(list(model.named_parameters()), variant("muon").rule(orthogonalizer=lambda x: x), lr=0.1)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        audit = optimizer.audit()
        optimizer.zero_grad()
        model(x * torch.logspace(0, -2, 64)).square().mean().backward()
        optimizer.step()
    assert [row.orthogonalized for row in audit.rows] == [False, False]
    assert "0.weight, 1.weight: has a matrix optimizer, but its update is not orthogonal" in "\n".join(audit.doubts)
    assert "0 of 2 updates orthogonal" in str(audit)


def test_the_matrices_of_a_fused_parameter_are_looked_at_one_by_one():
    p = nn.Parameter(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = Optimizer([{"params": [p], "spec": MatrixSpec(split=3)}], variant("muon").rule(orthogonalizer="svd"), lr=0.1)
    audit = optimizer.audit()
    p.grad = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert audit.rows[0].sigma == pytest.approx((1.0, 1.0), abs=1e-4)


def test_clipping_is_seen_for_all_and_for_each():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    loss_of(model, batches(1)[0]).backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
    audit = stepped(model, optimizer, clip=norm / 20)
    assert audit.clipped == pytest.approx(0.05, rel=1e-3)
    assert {round(row.clipped, 4) for row in audit.rows if row.clipped is not None} == {0.05}
    assert any(sentence.startswith("gradients were cut to 0.05 of their norm") for sentence in audit.doubts)
    assert stepped(model, optimizer).clipped == pytest.approx(1.0)


def test_what_had_no_part_in_the_step_is_named():
    model = Tiny()
    model.unused = nn.Linear(8, 8, bias=False)
    model.blocks[0].bias.requires_grad_(False)
    optimizer = muonlab.optimizer(model, "muon")
    audit = stepped(model, optimizer)
    assert row_of(audit, "unused.weight").what == "never had a gradient"
    assert row_of(audit, "blocks.0.bias").what == "frozen"
    assert "unused.weight: never had a gradient: has it a part in the loss?" in audit.doubts
    model.unused.weight.grad = torch.randn(8, 8)
    optimizer.step()
    assert row_of(stepped(model, optimizer), "unused.weight").what == "no gradient"


def test_a_step_that_is_left_out():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    stepped(model, optimizer)
    audit = optimizer.audit()
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.warns(UserWarning, match="left out"):
        optimizer.step()
    assert audit.left_out
    assert audit.summary == "the step was left out"
    assert {row.what for row in audit.rows} == {"left out"}
    assert "nothing was changed" in audit.doubts[0]
    assert all(row.update == 0 for row in audit.rows)


def test_steps_that_are_too_long_too_short_or_dead():
    model = Tiny()
    far = "\n".join(stepped(model, muonlab.optimizer(model, "muon", lr=2.0)).doubts)
    assert "blocks.0.weight" in far
    assert "moved by so much of its size in one step: lower its learning rate" in far
    still = Tiny().to(torch.bfloat16)
    doubts = stepped(still, muonlab.optimizer(still, "muon", lr=1e-6, aux_lr=1e-7)).doubts
    assert any("so many entries stay as they are" in sentence for sentence in doubts)
    exact = Tiny().to(torch.bfloat16)
    audit = stepped(exact, muonlab.optimizer(exact, "muon", lr=1e-6, aux_lr=1e-7, exact_bf16=True))
    assert not any("stay as they are" in sentence for sentence in audit.doubts)
    dead = Tiny()
    with torch.no_grad():
        dead.blocks[0].bias[:6] = -1e3
    audit = stepped(dead, muonlab.optimizer(dead, "muon"))
    assert row_of(audit, "blocks.0.weight").dead == 0.75
    assert "blocks.0.weight (75 %): so many of its outputs have no gradient (dead units?)" in audit.doubts
    assert row_of(audit, "blocks.0.weight").orthogonalized


def test_some_layers_of_many():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(9)))

    model = Deep()
    optimizer = muonlab.optimizer(model, "muon")
    audit = optimizer.audit(layers=3)
    model.layers(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()
    assert [row.name for row in audit.rows if row.name.endswith("weight")] == [f"layers.{i}.weight" for i in (0, 4, 8)]
    assert str(audit).count("layers.*.weight (×3)") == 1
    with pytest.raises(ValueError, match="layers to be a whole number >= 1"):
        optimizer.audit(layers=0)
    assert str(optimizer.audit()).startswith("nothing was looked at: no step was taken yet; the next one is looked at")
    with pytest.raises(ValueError, match="layers"):
        optimizer.audit(layers=2.5)


def test_a_matrix_too_large_for_all_of_its_singular_values(monkeypatch):
    from muonlab.optim import audit as module

    monkeypatch.setattr(module, "_LARGE", 4)
    model = Tiny()
    row = row_of(stepped(model, muonlab.optimizer(model, "muon", orthogonalizer="svd")), "blocks.1.weight")
    assert row.sigma == pytest.approx((1.0, 1.0), abs=1e-3)
    assert row.orthogonalized is None


def test_a_closure_and_a_deep_copy():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    audit = optimizer.audit()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert {row.what for row in audit.rows} == {"stepped"}
    optimizer.audit()
    copy.deepcopy(optimizer).step()


@pytest.mark.parametrize("lr", [0.02, 1e-3, 1e-4])
def test_exact_bfloat16_is_looked_at_in_full(lr):
    """What is missing in the weights lies in the state. In plain bfloat16 rounding takes the update: nothing else is blamed."""
    start, draw = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    weights = {"exact": nn.Parameter(start.bfloat16()), "plain": nn.Parameter(start.bfloat16())}
    weights["full"] = nn.Parameter(start.bfloat16().float())
    rule = variant("muon").rule(orthogonalizer="svd")
    optimizers = {name: Optimizer([("w", p)], rule, lr=lr, exact_bf16=name == "exact") for name, p in weights.items()}
    for _ in range(2):
        grad = torch.randn(32, 32, generator=draw).bfloat16()
        audits = {}
        for name, p in weights.items():
            audits[name] = optimizers[name].audit()
            p.grad = grad.to(p.dtype)
            optimizers[name].step()
        exact, full, plain = (audits[name].rows[0] for name in ("exact", "full", "plain"))
        assert exact.update == pytest.approx(full.update, rel=1e-3)
        assert exact.sigma == pytest.approx(full.sigma, abs=1e-2)
        assert exact.orthogonalized
        assert exact.still is None
        assert audits["exact"].doubts == audits["full"].doubts == []
    assert not any("orthogonal" in sentence or "did not move" in sentence for sentence in audits["plain"].doubts)
    assert lr == 0.02 or plain.still > 0.5


def test_what_sgd_steps_had_a_gradient_and_what_is_frozen_may_have_moved():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon", aux="sgd")
    stepped(model, optimizer)
    loss_of(model, batches(1)[0]).backward()
    model.norm.bias.grad = None
    model.norm.weight.requires_grad_(False)
    audit = optimizer.audit()
    optimizer.step()
    assert row_of(audit, "norm.bias").what == "no gradient"
    assert "norm.weight: frozen, yet stepped by an old gradient: zero_grad() first" in audit.doubts


def test_a_loss_scale_is_no_clipping():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    audit = optimizer.audit()
    (loss_of(model, batches(1)[0]) * 2.0**14).backward()
    for p in model.parameters():
        p.grad /= 2.0**14
    optimizer.step()
    assert audit.clipped is None
    assert audit.doubts == []


def test_hooks_do_not_stay():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    first = optimizer.audit()
    second = optimizer.audit()
    assert "another audit has taken its place" in str(first)
    assert all(len(p._post_accumulate_grad_hooks) == 1 for p in model.parameters())
    del optimizer, second
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_gradient_of_zeros_and_what_cannot_be_looked_at_end_no_step():
    p = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    optimizer = Optimizer([p], variant("muon").rule(), lr=0.1, weight_decay=0.1)
    audit = optimizer.audit()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert audit.rows[0].orthogonalized is None
    meta = nn.Parameter(torch.empty(4, 4, device="meta"))
    optimizer = Optimizer([meta], variant("muon").rule(), lr=0.1, nonfinite="ignore")
    audit = optimizer.audit()
    meta.grad = torch.empty_like(meta)
    optimizer.step()
    assert "nothing was looked at: NotImplementedError" in str(audit)


@pytest.fixture(name="command")
def _command(request):
    return request.getfixturevalue("muonlab")


def test_muonlab_train_says_what_an_early_step_did(command, workdir):
    code, out, err = command("train", "tiny.toml", "--out", "run")
    assert code == 0, err
    assert "step 10: 12 of 12 updates orthogonal (σ to 1." in out + err
    code, out, err = command("train", "tiny.toml", "--set", "train.steps=4", "--out", "short", "--json")
    assert code == 0, err
    assert "step 4: 12 of 12 updates orthogonal" in out + err
    assert out.startswith("{"), "JSON alone where it is asked for"
