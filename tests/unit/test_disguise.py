"""Arms in disguise: what is claimed to train alike does, and nothing else is claimed."""

from __future__ import annotations

import pytest
import torch

from muonlab.lab.plan import disguise
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.optim.variants import variants
from muonlab.train.recipe import load_recipe
from muonlab.train.trainer import Trainer, choose_machine

WITH_DECAY = [name for name, chosen in variants().items() if "decay" in chosen.options()]


def cells(*settings):
    return [(f"arm{i}", load_recipe("tiny.toml", chosen).canonical()) for i, chosen in enumerate(settings)]


def trained(settings, steps=6):
    recipe = load_recipe("tiny.toml", settings)
    trainer = Trainer(recipe, 0, choose_machine(recipe, "cpu", 1, False))
    for _ in range(steps):
        trainer.train_step()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


PAIRS = [
    (["optimizer.decay=update", "optimizer.weight_decay=-0.4"], ["optimizer.lr=0.012", "optimizer.decay=param"]),
    (["optimizer.decay=update", "optimizer.weight_decay=0.5"], ["optimizer.lr=0.03", "optimizer.decay=cautious"]),
    (
        ["optimizer.decay=both", "optimizer.weight_decay=0.25"],
        ["optimizer.lr=0.025", "optimizer.weight_decay=0.2", "optimizer.decay=param"],
    ),
    (["optimizer.decay=both", "optimizer.weight_decay=0"], ["optimizer.decay=squared", "optimizer.weight_decay=0"]),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("more", [[], ["optimizer.lr_mul.*up*=2"], ["optimizer.constraint=sphere"], ["schedule.warmup_steps=4"]])
def test_what_is_named_the_same_trains_the_same(workdir, pair, more):
    pair = [[*settings, *more] for settings in pair]
    found = disguise.find(cells(*pair))
    assert [{d.cell, d.same_as} for d in found] == [{"arm0", "arm1"}]
    a, b = map(trained, pair)
    # Adam's first step divides by the gradient's size: what differs by rounding stays small beside the weights.
    assert torch.allclose(a, b, atol=2e-4)
    assert (a - b).norm() < 1e-4 * a.norm()


@pytest.mark.parametrize("name", WITH_DECAY)
def test_update_decay_is_a_learning_rate_in_every_optimizer_that_has_it(workdir, name):
    common = [f"optimizer.name={name}"]
    disguised = [*common, "optimizer.lr=0.02", "optimizer.decay=update", "optimizer.weight_decay=0.5"]
    plain = [*common, "optimizer.lr=0.03", "optimizer.weight_decay=0"]
    assert disguise.find(cells(plain, disguised))[0].same_as == "arm0"
    a, b = trained(disguised), trained(plain)
    assert (a - b).norm() < 1e-4 * a.norm()


@pytest.mark.parametrize(
    "more",
    [
        ["optimizer.wd_mul.*up*=2"],  # the factor differs from matrix to matrix
        ["optimizer.constraint=geodesic"],  # it turns by the learning rate itself
    ],
)
def test_nothing_is_claimed_where_it_is_not_exact(workdir, more):
    pair = [[*settings, *more] for settings in PAIRS[0]]
    assert disguise.find(cells(*pair)) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["optimizer.weight_decay=0.1"], ["optimizer.weight_decay=0.1", "optimizer.decay=param"]),
        (["optimizer.lr=0.02"], ["optimizer.lr=0.021"]),
        (["optimizer.decay=param", "optimizer.weight_decay=-0.4"], ["optimizer.lr=0.012"]),
    ],
)
def test_arms_that_differ_are_not_called_the_same(workdir, a, b):
    assert disguise.find(cells(a, b)) == []
    assert not torch.allclose(trained(a), trained(b), atol=1e-5)


def test_patterns_count_in_their_order(workdir):
    a = ["optimizer.lr_mul.*=2", "optimizer.lr_mul.*up*=3"]
    assert disguise.find(cells(a, a[::-1])) == []
    assert disguise.find(cells(a, a))[0].because == "arm1 and arm0 are the same recipe under different names"


def test_a_disguise_without_its_twin_is_named_too(workdir):
    found = disguise.find(cells(["optimizer.name=muon", "optimizer.decay=update", "optimizer.weight_decay=-0.4"]))
    assert found[0].same_as is None
    assert "only multiplies the learning rate by 1 + weight_decay" in found[0].because
    assert "lr 0.02 with weight_decay -0.4 is lr 0.012 with no decay" in found[0].because


def test_the_plan_names_the_twin(workdir):
    (workdir / "exp.toml").write_text(
        'question = "?"\nbase = "tiny.toml"\nseeds = [1]\n'
        '[arms.shrunk]\noptimizer.decay = "update"\noptimizer.weight_decay = -0.4\n'
        "[arms.matched]\noptimizer.lr = 0.012\n[arms.other]\noptimizer.lr = 0.02\n"
    )
    machine = {"device": "cpu", "threads": 1, "bf16_fast": False}
    found = plan_of(load_experiment("exp.toml"), machine)["cells"]
    assert found[0]["same_as"] == "matched"
    assert "up to rounding" in found[0]["because"]
    assert not any("same_as" in cell for cell in found[1:])
