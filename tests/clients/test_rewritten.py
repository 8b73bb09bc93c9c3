"""Others rewrite an optimizer: put other tensors into its groups, add groups without names. It goes on as torch's do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.variants import variant


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))


def stepped(optimizer, params, steps=3, seed=1):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("before", [0, 2])
def test_other_tensors_in_a_group_are_stepped_as_torch_steps_them(before):
    """Accelerate's switch to shards, float32 masters: state begins anew, what is known of a parameter stays."""

    def run(make):
        own = [p for p in model().parameters() if p.ndim == 2]
        optimizer = make(own)
        if before:
            stepped(optimizer, own, before)
        others = [nn.Parameter(p.detach().clone()) for p in own]
        for p in own:
            p.grad = None
        for group in optimizer.param_groups:
            group["params"] = [others[[id(x) for x in own].index(id(p))] for p in group["params"]]
        return stepped(optimizer, others)

    ours, theirs = run(muonlab.Muon), run(torch.optim.Muon)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)


def test_specs_and_names_go_with_the_place():
    fused = nn.Parameter(torch.randn(12, 4))
    optimizer = Optimizer([{"params": [("qkv", fused)], "spec": MatrixSpec(split=3)}], variant("muon").rule(), lr=0.1)
    optimizer.param_groups[0]["params"][0] = other = nn.Parameter(fused.detach().clone())
    assert [(row.name, row.matrices) for row in optimizer.plan] == [("qkv", "3 × 4×4 (split 3 along output)")]
    stepped(optimizer, [other])
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.plan.rows[0].matrices == "3 × 4×4 (split 3 along output)"
    assert copy.deepcopy(optimizer).plan.rows[0].name == "qkv"


def test_a_group_that_is_added_later_is_named_and_routed():
    """Lightning's BaseFinetuning adds a backbone's parameters, of all shapes, as a group without names."""
    head, backbone = nn.Linear(8, 4), nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    optimizer = muonlab.optimizer(nn.ModuleDict({"up": nn.Linear(8, 8), "head": head}), "muon", lr=0.1, aux_lr=0.01)
    optimizer.add_param_group({"params": list(backbone.parameters()), "lr": 0.05})
    rows = {row.name: row for row in optimizer.plan if "group" in row.name}
    assert [(row.shape, row.role, row.by) for row in rows.values()] == [
        ((8, 6), "matrix", "muon"), ((8,), "vector", "adamw"), ((8,), "vector", "adamw"), ((8,), "vector", "adamw"),
    ]  # fmt: skip
    assert {group["lr"] for group in optimizer.param_groups[-2:]} == {0.05}
    first = [p.detach().clone() for p in backbone.parameters()]
    for mine, old in zip(stepped(optimizer, list(backbone.parameters())), first, strict=True):
        assert not torch.equal(mine, old)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(TypeError, match="ordered"):
        optimizer.add_param_group({"params": {nn.Parameter(torch.zeros(2, 2))}})


def test_what_does_not_fit_leaves_nothing_behind():
    optimizer = muonlab.optimizer(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)), "muon")
    vector = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [vector]})
    before = [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3, 3)), vector]})
    now = [list(group["params"]) for group in optimizer.param_groups]
    assert [list(map(id, params)) for params in now] == [list(map(id, params)) for params in before]


def test_a_group_of_its_own_rule_stays_whole():
    optimizer = muonlab.optimizer(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)), "muon")
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.zeros(3, 3)))], "rule": "aux_adamw"})
    assert optimizer.plan.rows[-1].by == "adamw"
