"""Checkpoints of the programs that people come from: Keller Jordan's MuonWithAuxAdam, and torch of before `step` was a tensor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from muonlab.optim import Optimizer
from muonlab.optim.variants import variant


class MuonWithAuxAdam(torch.optim.Optimizer):
    """What github.com/KellerJordan/Muon has under this name, with the exact polar factor in float64 in place of its five steps."""

    def __init__(self, param_groups):
        for group in param_groups:
            if group["use_muon"]:
                group["params"] = sorted(group["params"], key=lambda x: x.size(), reverse=True)
        super().__init__(param_groups, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if group["use_muon"]:
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    held = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    u, _, v = torch.linalg.svd(p.grad.lerp(held, group["momentum"]), full_matrices=False)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u @ v, alpha=-group["lr"] * max(1, p.size(-2) / p.size(-1)) ** 0.5)
                else:
                    if not state:
                        state["exp_avg"], state["exp_avg_sq"], state["step"] = torch.zeros_like(p), torch.zeros_like(p), 0
                    state["step"] += 1
                    beta1, beta2 = group["betas"]
                    m = state["exp_avg"].lerp_(p.grad, 1 - beta1) / (1 - beta1 ** state["step"])
                    v = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2) / (1 - beta2 ** state["step"])
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(m / (v.sqrt() + group["eps"]), alpha=-group["lr"])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 11)).double()


def groups_of(net, **keys):
    hidden = sorted((net[1].weight, net[3].weight), key=lambda x: x.size(), reverse=True)
    rest = [p for p in net.parameters() if all(p is not h for h in hidden)]
    return [
        {"params": hidden, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, **keys.get("muon", {})},
        {"params": rest, "lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.01, **keys.get("adam", {})},
    ]


def train(net, optimizer, seeds):
    for seed in seeds:
        tokens = torch.randint(11, (16,), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens), (tokens * 3 + 1) % 11).backward()
        optimizer.step()


def test_a_run_of_muon_with_aux_adam_goes_on():
    theirs = model()
    old = MuonWithAuxAdam(groups_of(theirs, muon={"use_muon": True}, adam={"use_muon": False}))
    train(theirs, old, range(3))
    ours = model()
    ours.load_state_dict(theirs.state_dict())
    rules = {"muon": variant("muon").rule(orthogonalizer="svd"), "adamw": variant("adamw").rule()}
    new = Optimizer(groups_of(ours, muon={"rule": "muon"}, adam={"rule": "adamw"}), rules, lr=1.0)
    new.load_state_dict(old.state_dict())
    assert [group["lr"] for group in new.param_groups] == [0.02, 3e-3]
    assert new.state[ours[0].weight]["step"] == 3
    train(theirs, old, range(3, 6))
    train(ours, new, range(3, 6))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", [int, float])
def test_a_checkpoint_of_old_torch_goes_on(number):
    """Before torch 1.12 Adam's step was a number."""
    theirs, ours = model(), model()
    old = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    train(theirs, old, range(3))
    state = copy.deepcopy(old.state_dict())
    for entry in state["state"].values():
        entry["step"] = number(entry["step"])
    ours.load_state_dict(theirs.state_dict())
    new = Optimizer(ours.parameters(), variant("adamw").rule(), lr=1.0)
    new.load_state_dict(state)
    assert isinstance(state["state"][0]["step"], number), "what is loaded is not changed"
    train(theirs, old, range(3, 6))
    train(ours, new, range(3, 6))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_steps_that_were_left_out_are_in_the_checkpoint():
    net = model()
    optimizer = Optimizer(net.parameters(), variant("adamw").rule(), lr=0.01)
    for p in net.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.warns(UserWarning, match="left out"):
        optimizer.step()
    other = Optimizer(net.parameters(), variant("adamw").rule(), lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    assert other.skipped == 1
    other.load_state_dict(torch.optim.AdamW(net.parameters()).state_dict())
    assert other.skipped == 0
