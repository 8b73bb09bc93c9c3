"""Coupled decay: the penalty that torch.optim.Adam and SGD mean by weight_decay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant, variants


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twins(dtype=torch.float64):
    ours, theirs = (nn.Parameter(draw(6, 5, seed=40).to(dtype)) for _ in range(2))
    return ours, theirs


def both(one, ours, two, theirs, steps=12):
    for t in range(steps):
        ours.grad = draw(6, 5, seed=t).to(ours.dtype)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wd", [0.0, 0.3, -0.1])
def test_coupled_adamw_is_torchs_adam(wd):
    ours, theirs = twins()
    one = Optimizer([ours], variant("adamw").rule(coupled=True, betas=(0.9, 0.99)), lr=0.01, weight_decay=wd)
    two = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99)) if wd < 0 else None
    if two is None:
        two = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=wd)
    else:
        two.param_groups[0]["weight_decay"] = wd  # torch refuses it in its constructor only
    both(one, ours, two, theirs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_with_weight_decay(nesterov):
    ours, theirs = twins()
    one = Optimizer([ours], variant("sgd").rule(momentum=0.9, nesterov=nesterov), lr=0.01, weight_decay=0.3)
    both(one, ours, torch.optim.SGD([theirs], lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=0.3), theirs)


COUPLED = {
    name: {"decay": "coupled"} if "decay" in variant(name).options() else {"coupled": True}
    for name in variants()
    if {"decay", "coupled"} & variant(name).options().keys()
}


@pytest.mark.parametrize("name", COUPLED)
def test_it_is_the_same_as_a_penalty_in_the_loss(name):
    """Also where the step is made of tensors, and with multipliers; MuonH and the floored Muon too."""
    ours, theirs = twins(torch.float32)
    one = Optimizer([ours], variant(name).rule(**COUPLED[name]), lr=0.01, weight_decay=0.3, wd_mul=0.5)
    two = Optimizer([theirs], variant(name).rule(), lr=0.01, weight_decay=0.0)
    for t in range(6):
        ours.grad = draw(6, 5, seed=t)
        theirs.grad = draw(6, 5, seed=t).add(theirs.detach(), alpha=0.15)
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_rule_with_a_momentum_has_it():
    assert {name for name in variants() if name != "sgd"} == set(COUPLED)


def test_a_whole_model_and_the_plan():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    before = copy.deepcopy(net.state_dict())
    optimizer = muonlab.optimizer(net, "adamw", lr=0.01, weight_decay=0.1, aux_weight_decay=0.1, coupled=True)
    assert "adam, coupled decay" in str(optimizer.plan)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not torch.equal(net[0].weight, before["0.weight"])  # a penalty is a gradient
    with pytest.raises(ValueError, match="coupled"):
        muonlab.optimizer(net, "adamw", couple=True)


def test_a_recipe_of_before_keeps_its_identity():
    from muonlab.train.recipe import load_recipe

    for name in ("adamw", "lion", "muown"):
        plain = load_recipe(None, [f"optimizer.name={name}"])
        assert "coupled" not in plain.canonical()["optimizer"]
        coupled = load_recipe(None, [f"optimizer.name={name}", "optimizer.coupled=true"])
        assert coupled.canonical()["optimizer"]["coupled"] is True
        assert coupled.run_id(0) != plain.run_id(0)
