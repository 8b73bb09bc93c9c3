"""Scheduled scalars, by hand, by ScalarSchedule and in a recipe; and a compiled step under them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import muonlab
from muonlab.errors import InputError
from muonlab.optim import Optimizer, ScalarSchedule
from muonlab.optim.variants import variant
from muonlab.train.recipe import load_recipe
from muonlab.train.trainer import Trainer, choose_machine


def parameters(seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in [(64, 96), (64, 96), (8, 5)]]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device)


def test_smoothing_runs_as_the_record_ran_it(device):
    """β from 0.5 to 0.2 over 3000 steps, then constant."""
    optimizer = Optimizer(parameters(device=device), variant("smoothed_muon").rule(), lr=0.03)
    schedule = ScalarSchedule(optimizer, "smoothing", [(0, 0.5), (3000, 0.2)])
    seen = []
    for _ in range(4000):
        seen.append(optimizer.param_groups[0]["smoothing"])
        schedule.step()
    assert seen[0] == 0.5
    assert seen[1500] == pytest.approx(0.35)
    assert seen[3000] == seen[3999] == pytest.approx(0.2)


def test_a_schedule_reaches_the_step_and_resumes(device):
    """Against the same scalar set by hand, and through a state dict in the middle."""
    points = [(0, 0.85), (2, 0.95), (3, 0.85)]
    by_hand = [0.85, 0.9, 0.95, 0.85, 0.85]
    ours, theirs = parameters(device=device), parameters(device=device)
    a, b = (Optimizer(params, variant("muon").rule(), lr=0.1) for params in (ours, theirs))
    schedule = ScalarSchedule(a, "momentum", points)
    for i, value in enumerate(by_hand):
        if i == 2:
            state = schedule.state_dict()
            schedule = ScalarSchedule(a, "momentum", [(0, 0.1)])
            schedule.load_state_dict(state)
        for params in (ours, theirs):
            give_gradients(params, i)
        b.param_groups[0]["momentum"] = value
        a.step()
        b.step()
        schedule.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_wrong_schedules_are_refused_in_words():
    optimizer = Optimizer(parameters(), variant("muon").rule(), lr=0.1)
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        ScalarSchedule(optimizer, "momentun", [(0, 0.1)])
    for points in ([], [(1, 2, 3)], [(3, 0.1), (1, 0.2)], 5, [("a", 0.1)], [(0, float("nan"))]):
        with pytest.raises(ValueError, match="ascending order"):
            ScalarSchedule(optimizer, "momentum", points)
    with pytest.raises(ValueError, match="expected momentum >= 0 and <= 1, got 5"):
        ScalarSchedule(optimizer, "momentum", [(0, 0.9), (10, 5.0)])
    for key in ("params", "rule"):
        with pytest.raises(ValueError, match="unknown scalar to schedule"):
            ScalarSchedule(optimizer, key, [(0, 0.1)])


TINY = ["model.layers=1", "model.width=32", "model.head_width=16", "model.context=32", "train.steps=4", "train.batch=2"]


def test_a_recipe_schedules_scalars_by_fractions_of_the_run():
    overrides = [*TINY, "optimizer.name=smoothed_muon", "schedule.scalars={smoothing=[[0, 0.5], [0.5, 0.2]]}"]
    recipe = load_recipe("recipes/quickstart.toml", overrides)
    trainer = Trainer(recipe, 0, choose_machine(recipe))
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append(next(g["smoothing"] for g in trainer.optimizer.param_groups if "smoothing" in g))
    assert seen == pytest.approx([0.5, 0.35, 0.2, 0.2])
    with pytest.raises(InputError, match="did you mean 'smoothing'"):
        load_recipe("recipes/quickstart.toml", [*overrides[:-1], "schedule.scalars={smooting=[[0, 0.5]]}"])
    with pytest.raises(InputError, match=r"schedule.scalars.*expected smoothing >= 0 and < 1, got 1.5"):
        load_recipe("recipes/quickstart.toml", [*overrides[:-1], "schedule.scalars={smoothing=[[0, 1.5]]}"])


def test_a_compiled_step_equals_the_plain_one_and_a_new_rate_compiles_nothing(device):
    ours, theirs = parameters(device=device), parameters(device=device)
    rate = [torch.tensor(0.1, device=device), torch.tensor(0.1, device=device)]
    a, b = (
        Optimizer(params, variant("normuon").rule(orthogonalizer="keller5(dtype='float32')"), lr=lr, nonfinite="ignore")
        for params, lr in zip((ours, theirs), rate, strict=True)
    )
    compiled = torch.compile(a.step, backend="eager")
    graphs = []
    for i in range(6):
        for params in (ours, theirs):
            give_gradients(params, i)
        compiled()
        b.step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for lr in rate:
            lr.mul_(0.9)
    assert graphs[2] == graphs[5] > 0
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_a_matrix_that_begins_at_zero_is_free_on_the_sphere_and_keeps_moving(device):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False)).to(device)
    with torch.no_grad():
        model[2].weight.zero_()
    optimizer = muonlab.optimizer(model, "muonh", lr=0.05)
    start = model[0].weight.norm().item()
    norms = []
    for i in range(5):
        give_gradients(model.parameters(), i)
        optimizer.step()
        norms.append(model[2].weight.norm().item())
    assert model[0].weight.norm().item() == pytest.approx(start, rel=1e-5)
    assert norms[-1] > 1.5 * norms[0] > 0
