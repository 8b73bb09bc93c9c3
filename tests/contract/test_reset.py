"""reset(): steps that only warmed something up never were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim.variants import variants


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6), nn.LayerNorm(6)).to(dtype)


def train(model, step, seeds):
    for seed in seeds:
        for i, p in enumerate(model.parameters()):
            p.grad = draw(*p.shape, seed=100 * seed + i).to(p.dtype)
        step()


OPTIONS = [(name, {}) for name in variants()] + [("muon", {"exact_bf16": True}), ("muon", {"momentum_dtype": "bfloat16"})]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_after_a_reset_the_run_is_that_of_a_new_optimizer(name, options):
    dtype = torch.bfloat16 if options.get("exact_bf16") else torch.float32
    if name == "sgd":
        options = {"momentum": 0.9}
    model, twin = net(dtype), net(dtype)
    start = copy.deepcopy(model.state_dict())
    one, two = (muonlab.optimizer(m, name, lr=0.02, weight_decay=0.1, **options) for m in (model, twin))
    train(model, one.step, range(4))
    memory = {id(p): {k: v.data_ptr() for k, v in entry.items()} for p, entry in one.state.items()}
    one.param_groups[0]["lr"] = two.param_groups[0]["lr"] = 0.03  # live keys stay
    one.state[next(model.parameters())]["mine"] = 7
    one.reset()
    model.load_state_dict(start)
    assert memory == {id(p): {k: v.data_ptr() for k, v in entry.items() if k != "mine"} for p, entry in one.state.items()}
    assert one.state[next(model.parameters())]["mine"] == 7
    train(model, one.step, range(10, 15))
    train(twin, two.step, range(10, 15))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_compiled_step_goes_on_and_the_count_is_zero():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, twin = net(), net()
    start = copy.deepcopy(model.state_dict())
    one, two = (muonlab.optimizer(m, "normuon") for m in (model, twin))
    step, other = (torch.compile(o.step, fullgraph=True, backend="eager") for o in (one, two))
    train(model, step, range(3))
    model[0].weight.grad[0, 0] = float("nan")
    step()
    assert one.skipped == 1
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    one.reset()
    assert one.skipped == 0
    model.load_state_dict(start)
    train(model, step, range(10, 13))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    train(twin, other, range(10, 13))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_before_the_first_step_there_is_nothing_to_do():
    optimizer = muonlab.optimizer(net(), "muon")
    optimizer.reset()
    assert not optimizer.state
