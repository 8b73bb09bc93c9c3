"""Every live key of every optimizer does something: changed in mid-run, the weights go another way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant, variants


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CHANGED = {"betas": (0.5, 0.6), "eps": 1.0, "floor": 3.0}
LIVE = [(name, key) for name in variants() for key in ("lr", "weight_decay", "lr_mul", "wd_mul", *variant(name).rule().scalars())]


def weights_after(name, key, graph_step=None):
    p = nn.Parameter(draw(12, 8))
    optimizer = Optimizer([p], variant(name).rule(), lr=0.05, weight_decay=0.1)
    group = optimizer.param_groups[0]
    for t in range(6):
        if t == 3 and key is not None:
            group[key] = CHANGED.get(key, 0.3)
        p.grad = draw(12, 8, seed=t + 1)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize(("name", "key"), LIVE)
def test_a_live_key_that_changes_in_mid_run_changes_the_run(name, key):
    # MuonH brings W back to its radius: a decay has nothing left to do there, and its docstring says so
    if name == "muonh" and key in ("weight_decay", "wd_mul"):
        pytest.skip("a decay on the sphere does nothing")
    plain, changed = weights_after(name, None), weights_after(name, key)
    assert (plain - changed).abs().max() > 1e-6


def sgd_run(optimizer, p, momenta):
    for t, momentum in enumerate(momenta):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = draw(4, 4, seed=t)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("momenta", [[0, 0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0, 0, 0.9], [0, 0, 0.5, 0, 0.9], [0.9] * 5])
@pytest.mark.parametrize("begun_with", [0.0, 0.9])
def test_sgds_momentum_may_come_and_go_as_torchs_does(momenta, begun_with):
    ours, theirs = (nn.Parameter(draw(4, 4, seed=50)) for _ in range(2))
    rule = variant("sgd").rule(momentum=begun_with)
    one = sgd_run(Optimizer([ours], rule, lr=0.01, weight_decay=0.1), ours, momenta)
    two = sgd_run(torch.optim.SGD([theirs], lr=0.01, weight_decay=0.1, momentum=begun_with), theirs, momenta)
    torch.testing.assert_close(one, two)


def test_momentum_that_begins_under_compile():
    torch._dynamo.reset()
    ours, theirs = (nn.Parameter(draw(4, 4, seed=50)) for _ in range(2))
    one = Optimizer([ours], variant("sgd").rule(), lr=0.01)
    two = torch.optim.SGD([theirs], lr=0.01)
    step = torch.compile(one.step, fullgraph=True, backend="eager")
    for t, momentum in enumerate([0, 0.9, 0.9, 0, 0.5]):
        for optimizer, p in ((one, ours), (two, theirs)):
            optimizer.param_groups[0]["momentum"] = momentum
            p.grad = draw(4, 4, seed=t)
        step()
        two.step()
        torch.testing.assert_close(ours, theirs)


def test_one_cycle_reaches_sgd():
    """1.265 was the error of a momentum that nobody read."""
    found = []
    for make in (lambda m: muonlab.optimizer(m, "sgd", lr=0.01), lambda m: torch.optim.SGD(m.parameters(), lr=0.01)):
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        optimizer = make(net)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, base_momentum=0.5, max_momentum=0.95)
        for t in range(20):
            optimizer.zero_grad()
            net(draw(8, 4, seed=t)).square().mean().backward()
            optimizer.step()
            if t < 19:
                scheduler.step()
        found.append(net.weight.detach())
    torch.testing.assert_close(*found)
