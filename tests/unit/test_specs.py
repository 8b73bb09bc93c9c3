"""Unusual shapes, what the plan says of blocks, and specs that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.variants import variant
from tests.unit.test_matrices import RULES, draw, parameters, step


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (0, 4), (4, 0), (0, 0), (3, 0, 2, 2)])
def test_degenerate_matrices_take_finite_steps(rule, shape, device):
    p = parameters([shape], device=device)[0]
    optimizer = Optimizer([p], RULES[rule], lr=0.1, weight_decay=0.1)
    for t in range(5):
        before = p.detach().clone()
        step(optimizer, [p], draw([shape], t, device=device))
        assert torch.isfinite(p).all()
        # one number on the hyperball has nowhere to go
        assert p.numel() == 0 or (rule, shape) == ("muonh", (1, 1)) or not torch.equal(p, before)


def test_a_bank_without_a_matrix_is_no_obstacle(device):
    empty, full = parameters([(0, 4, 3), (2, 4, 3)], device=device)
    optimizer = Optimizer([{"params": [empty, full], "spec": MatrixSpec(batch_dims=1)}], RULES["muon"], lr=0.1)
    for t in range(2):
        step(optimizer, [empty, full], draw([(0, 4, 3), (2, 4, 3)], t, device=device))
    Optimizer([{"params": [empty, full], "spec": MatrixSpec(batch_dims=1)}], RULES["muon"], lr=1.0).load_state_dict(
        optimizer.state_dict()
    )
    assert not torch.equal(full, parameters([(0, 4, 3), (2, 4, 3)], device=device)[1])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4)])
def test_elementwise_rules_take_any_shape_as_torch_does(shape, device):
    for ours, theirs in (
        (variant("adamw").rule(), lambda p: torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.2)),
        (variant("sgd").rule(momentum=0.9), lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.2)),
    ):
        params, qs = parameters([shape] * 2, device=device), parameters([shape] * 2, device=device)
        one, each = Optimizer(params, ours, lr=0.1, weight_decay=0.2), [theirs(q) for q in qs]
        for t in range(5):
            grads = draw([shape] * 2, t, device=device)
            step(one, params, grads)
            for optimizer, q, g in zip(each, qs, grads, strict=True):
                step(optimizer, [q], [g])
        for p, q in zip(params, qs, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_the_plan_shows_the_blocks_and_their_own_learning_rates():
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 6, bias=False))
    specs = {"0.weight": {"split": (8, 2, 2)}, "2.weight": {"split": 3, "axis": "input"}}
    plan = muonlab.optimizer(model, "muon", lr=0.1, roles={"*": "matrix"}, specs=specs, lr_mul={"2.weight": 2.0}).plan
    rows = {row.name: row for row in plan}
    assert [rows[name].matrices.split(" (")[0] for name in ("0.weight.0", "0.weight.1", "2.weight")] == [
        "1 × 8×6", "2 × 2×6", "3 × 6×4",
    ]  # fmt: skip
    assert rows["0.weight.0"].lr == pytest.approx(0.1 * math.sqrt(8 / 6))
    assert rows["0.weight.1"].lr == pytest.approx(0.1)
    assert rows["2.weight"].lr == pytest.approx(0.2 * math.sqrt(6 / 4))
    assert "12×6 = 1 × 8×6 (split (8, 2, 2) along output)" in str(plan)


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((7, 4), MatrixSpec(split=3), "split 3 does not fit 7 outputs"),
        ((8, 4), MatrixSpec(split=(5, 2)), r"split \(5, 2\) does not fit 8 outputs"),
        ((4, 5), MatrixSpec(split=2, axis="input"), "split 2 does not fit 5 inputs"),
        ((4, 5), MatrixSpec(batch_dims=1), "expected 1 batch dimensions and a matrix"),
        ((5,), MatrixSpec(), "elementwise rule"),
        ((2, 3, 4), MatrixSpec(transposed=True), "transposed: expected a matrix"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_with_the_parameters_name(shape, spec, message):
    with pytest.raises(ValueError, match=f"block.weight: .*{message}"):
        Optimizer([{"params": [("block.weight", nn.Parameter(torch.ones(shape)))], "spec": spec}], RULES["muon"], lr=0.1)


@pytest.mark.parametrize(
    "bad", [{"split": 0}, {"split": ()}, {"split": (2, -1)}, {"split": 1.5}, {"axis": "rows"}, {"norm_axis": 1}]
)
def test_a_spec_without_meaning_is_refused(bad):
    with pytest.raises(ValueError, match=r"split|axis"):
        MatrixSpec(**bad)


@pytest.mark.parametrize("bad", [-1, 1.5, "1"])
def test_batch_dims_that_count_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="batch_dims"):
        MatrixSpec(batch_dims=bad)
