"""Weights on spheres: norms stay what they are declared to be, steps go downhill, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec, Optimizer, orthogonalize, orthogonalizers
from muonlab.optim.apply import Geodesic, Sphere, UnitNorm
from muonlab.optim.variants import variant

RULES = {name: variant(name).rule() for name in ("muon", "normuon", "adamw", "lion", "sgd")}


def draw(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def constrained(rule, apply):
    return replace(RULES[rule], apply=apply)


def unit(w, dim):
    return w / w.norm(dim=dim, keepdim=True)


def steps(optimizer, params, count, seed=0):
    for t in range(count):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=seed + 100 * t + i, device=p.device).to(p.dtype)
        optimizer.step()


# shape, spec -> the vectors of norm 1, as the rows of a matrix
DECLARED = {
    "rows": ((6, 4), MatrixSpec(norm_axis="input"), lambda w: w),
    "columns": ((6, 4), MatrixSpec(norm_axis="output"), lambda w: w.T),
    "rows, stored transposed": ((4, 6), MatrixSpec(norm_axis="input", transposed=True), lambda w: w.T),
    "columns, stored transposed": ((4, 6), MatrixSpec(norm_axis="output", transposed=True), lambda w: w),
    "rows of a bank": ((2, 6, 4), MatrixSpec(norm_axis="input", batch_dims=1), lambda w: w.reshape(12, 4)),
    "columns of a bank": ((2, 6, 4), MatrixSpec(norm_axis="output", batch_dims=1), lambda w: w.mT.reshape(8, 6)),
    "rows of heads": ((6, 4), MatrixSpec(norm_axis="input", split=3), lambda w: w),
    "columns of heads of inputs": ((6, 4), MatrixSpec(norm_axis="output", split=2, axis="input"), lambda w: w.T),
    "filters": ((6, 2, 3, 3), MatrixSpec(norm_axis="input"), lambda w: w.reshape(6, 18)),
    "weights of an input": ((6, 2, 3, 3), MatrixSpec(norm_axis="output"), lambda w: w.reshape(6, 18).T),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("apply", [UnitNorm(), Geodesic(), Geodesic(by_norm=True)], ids=str)
def test_unit_vectors_stay_unit_vectors(rule, declared, apply, device):
    shape, spec, vectors = DECLARED[declared]
    params = [nn.Parameter(draw(*shape, seed=i, device=device)) for i in range(3)]
    optimizer = Optimizer([{"params": params, "spec": spec, "lr_mul": [1.0, 0.3, 2.0]}], constrained(rule, apply), lr=0.01)
    for t in range(5):
        steps(optimizer, params, 1, seed=t)
        for p in params:
            norms = vectors(p.detach()).norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


@pytest.mark.parametrize("apply", [UnitNorm(), Geodesic()], ids=str)
@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("shape", [(5,), ()])
def test_vectors_have_no_axes_and_stay_free(apply, axis, shape, device):
    """'*.weight' matches the gains of a LayerNorm too: they are not to become a unit vector."""
    some, free = ([nn.Parameter(torch.ones(shape, device=device)) for _ in range(2)] for _ in range(2))
    one = Optimizer([{"params": some, "spec": MatrixSpec(norm_axis=axis)}], constrained("adamw", apply), lr=0.01)
    two = Optimizer(free, RULES["adamw"], lr=0.01)
    steps(one, some, 3)
    steps(two, free, 3)
    assert all(torch.equal(p, q) for p, q in zip(some, free, strict=True))


def test_a_whole_model_keeps_the_norms_that_it_declares(device):
    """As in nGPT: inputs along rows, output projections along columns, the rest free."""
    model = nn.ModuleDict(
        {"embed": nn.Embedding(9, 6), "up": nn.Linear(6, 8), "down": nn.Linear(8, 6), "norm": nn.LayerNorm(6)}
    ).to(device)
    specs = {"*.weight": {"norm_axis": "input"}, "down.weight": {"norm_axis": "output"}}
    optimizer = muonlab.optimizer(model, "normuon", lr=0.02, constraint="unit_norm", specs=specs)
    steps(optimizer, list(model.parameters()), 10)
    for name, dim in (("embed", 1), ("up", 1), ("down", 0)):
        norms = model[name].weight.detach().norm(dim=dim)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
    assert model["norm"].weight.norm() > 2


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_lazy_projection_comes_every_so_many_steps_of_a_parameter(rule, device):
    params = [nn.Parameter(unit(draw(5, 4, seed=i, device=device), 1)) for i in range(2)]
    group = {"params": params, "spec": MatrixSpec(norm_axis="input")}
    optimizer = Optimizer([group], constrained(rule, UnitNorm(every=3)), lr=0.05)
    taken = [0, 0]
    for t in range(12):
        for i, p in enumerate(params):
            absent = i == 1 and t in (1, 5)  # this one falls behind
            p.grad = None if absent else draw(5, 4, seed=10 * t + i, device=device)
            taken[i] += not absent
        if t == 7:
            state = optimizer.state_dict()
            optimizer = Optimizer([group], constrained(rule, UnitNorm(every=3)), lr=0.05)
            optimizer.load_state_dict(state)
        optimizer.step()
        for p, count in zip(params, taken, strict=True):
            off = (p.detach().norm(dim=1) - 1).abs().max()
            assert off < 1e-6 if count % 3 == 0 else off > 1e-4


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("apply", [Geodesic(), Geodesic(by_norm=True), UnitNorm()], ids=str)
@pytest.mark.parametrize("axis", ["input", "output"])
def test_a_step_along_the_sphere_goes_downhill(rule, apply, axis, device):
    dim = 1 if axis == "input" else 0
    target = unit(draw(6, 5, seed=1, device=device), dim)
    p = nn.Parameter(unit(draw(6, 5, device=device), dim))
    optimizer = Optimizer([{"params": [p], "spec": MatrixSpec(norm_axis=axis)}], constrained(rule, apply), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.95 * losses[0]


def test_the_angle_of_a_geodesic_step_is_the_learning_rate(device):
    w = unit(draw(6, 5, device=device).double(), 1)
    for by_norm in (False, True):
        p = nn.Parameter(w.clone())
        rule = constrained("sgd", Geodesic(by_norm))
        optimizer = Optimizer([{"params": [p], "spec": MatrixSpec(norm_axis="input")}], rule, lr=0.03)
        p.grad = draw(6, 5, seed=1, device=device).double()
        tangent = p.grad - (p.grad * w).sum(1, keepdim=True) * w
        optimizer.step()
        angle = torch.arccos((p.detach() * w).sum(1))
        expected = 0.03 * tangent.norm(dim=1) if by_norm else torch.full((6,), 0.03, device=device).double()
        torch.testing.assert_close(angle, expected, rtol=0, atol=1e-7)
        toward = ((p.detach() - w) * tangent).sum(1)
        assert (toward < 0).all()


def test_every_block_keeps_its_own_frobenius_norm(device):
    p, q = nn.Parameter(draw(9, 4, device=device)), nn.Parameter(draw(9, 4, seed=1, device=device) * 3)
    spec = MatrixSpec(split=(4, 2, 3))
    before = [b.norm().item() for w in (p, q) for b in w.detach().split((4, 2, 3))]
    optimizer = Optimizer([{"params": [p, q], "spec": spec}], constrained("muon", Sphere()), lr=0.1, weight_decay=0.3)
    steps(optimizer, [p, q], 10)
    after = [b.norm().item() for w in (p, q) for b in w.detach().split((4, 2, 3))]
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("rule", ["muon", "adamw"])
@pytest.mark.parametrize("apply", [UnitNorm(), UnitNorm(every=2), Geodesic(), Geodesic(by_norm=True), Sphere()], ids=str)
def test_zero_rows_under_zero_gradients_stay_zero_and_nothing_becomes_nan(rule, apply, device):
    start = unit(draw(5, 4, device=device), 1)
    start[2] = 0
    p = nn.Parameter(start.clone())
    optimizer = Optimizer([{"params": [p], "spec": MatrixSpec(norm_axis="input")}], constrained(rule, apply), lr=0.1)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), start, rtol=0, atol=1e-6)
    assert (p[2] == 0).all()
    steps(optimizer, [p], 4)
    assert torch.isfinite(p).all()


def test_a_constraint_that_nobody_declares_an_axis_for_is_refused():
    for name in ("unit_norm", "geodesic", "geodesic_by_norm"):
        with pytest.raises(ValueError, match="along which axis: none of 2 parameters"):
            muonlab.optimizer(nn.Sequential(nn.Linear(3, 4)), "muon", constraint=name, roles={"0.weight": "matrix"})


@pytest.mark.parametrize("method", orthogonalizers())
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (1, 6)])
def test_a_matrix_of_any_shape_takes_the_method_that_was_asked_for(method, shape, device):
    """The singular vectors stay, and every singular value comes near 1: no shape falls back on another method."""
    m, n = shape
    u, _, vt = torch.linalg.svd(draw(m, n, device=device).double(), full_matrices=False)
    s = torch.linspace(1.0, 0.6, min(m, n), device=device).double()
    o = orthogonalize((u * s) @ vt, method)
    found = u.T @ o @ vt.T
    torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-6)
    assert (found.diagonal() > 0.65).all()
    assert (found.diagonal() < 1.2).all()
    torch.testing.assert_close(o, u @ torch.diag(found.diagonal()) @ vt, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["muon", "normuon", "adamuon", "muonh", "muon_floor", "contra_muon", "smoothed_muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_momentum_buffer_is_the_mean_of_gradients_and_nothing_else(name, dtype, device):
    """Without Nesterov it is handed on itself: whatever normalizes or scales it in place would spoil it."""
    p = nn.Parameter(draw(6, 4, device=device).to(dtype))
    optimizer = Optimizer([p], variant(name).rule(nesterov=False, momentum=0.9), lr=0.01)
    mean = torch.zeros(6, 4, dtype=torch.float64, device=device)
    for t in range(5):
        steps(optimizer, [p], 1, seed=t)
        mean = 0.9 * mean + 0.1 * p.grad.double()
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"].double(), mean, rtol=0, atol=1e-6)
