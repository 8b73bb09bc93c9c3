"""What others keep in optimizer.state[p] stays there: over steps, first gradients, saving and loading."""

from __future__ import annotations

import copy

import pytest
import schedulefree
import torch
from torch import nn

import muonlab
from muonlab.optim import Muon


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routed(params):
    net = nn.Module()
    net.ps = nn.ParameterList(params)
    return muonlab.optimizer(net, "normuon", lr=0.02)


MAKERS = {
    "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=0.1),
    "muonlab.Muon": lambda ps: Muon(ps, lr=0.1),
    "normuon": routed,
}


def parameters(seed=0):
    return [nn.Parameter(draw(6, 4, seed=seed + i)) for i in range(2)]


@pytest.mark.parametrize("name", MAKERS)
def test_an_entry_of_somebody_elses_is_kept(name):
    ps = parameters()
    optimizer = MAKERS[name](ps)
    optimizer.state[ps[0]]["mine"] = torch.full((3,), 7.0)
    ps[0].grad = draw(6, 4, seed=5)
    optimizer.step()
    assert optimizer.state[ps[0]]["mine"].tolist() == [7.0] * 3
    optimizer.state[ps[0]]["count"] = 3
    ps[1].grad = draw(6, 4, seed=6)  # another parameter's first gradient
    optimizer.step()
    assert optimizer.state[ps[0]]["mine"].tolist() == [7.0] * 3
    assert optimizer.state[ps[0]]["count"] == 3
    saved = copy.deepcopy(optimizer.state_dict())
    others = [nn.Parameter(p.detach().clone()) for p in ps]
    again = MAKERS[name](others)
    again.load_state_dict(saved)
    assert again.state[others[0]]["mine"].tolist() == [7.0] * 3
    for i in range(2):
        for group in (ps, others):
            for j, p in enumerate(group):
                p.grad = draw(6, 4, seed=10 * i + j)
        optimizer.step()
        again.step()
    for p, q in zip(ps, others, strict=True):
        assert torch.equal(p, q)
    assert again.state[others[0]]["count"] == 3


def test_an_entry_that_comes_before_the_first_step_does_not_stand_for_state():
    ps = parameters()
    optimizer = Muon(ps, lr=0.1)
    for p in ps:
        optimizer.state[p]["z"] = p.detach().clone()
    ps[0].grad = draw(6, 4, seed=5)
    optimizer.step()
    assert set(optimizer.state[ps[0]]) == {"z", "momentum_buffer"}
    assert set(optimizer.state[ps[1]]) == {"z"}
    before = ps[1].detach().clone()
    ps[1].grad = draw(6, 4, seed=6)
    optimizer.step()
    assert not torch.equal(ps[1], before)
    early = Muon(parameters(), lr=0.1)
    early.state[early.param_groups[0]["params"][0]]["z"] = torch.ones(2)
    late = Muon(parameters(), lr=0.1)
    late.load_state_dict(copy.deepcopy(early.state_dict()))
    assert late.state[late.param_groups[0]["params"][0]]["z"].tolist() == [1.0, 1.0]


def test_state_of_another_rule_is_refused_as_ever():
    ps = parameters()
    for p in ps:
        p.grad = torch.ones_like(p)
    adam = torch.optim.AdamW(ps)
    adam.step()
    with pytest.raises(ValueError, match="saved by another rule or for another shape"):
        Muon(parameters(), lr=0.1).load_state_dict(adam.state_dict())


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019 (arXiv 1907.08610), as timm keeps it: slow weights in the wrapped optimizer's own state."""

    def __init__(self, base, k=3, alpha=0.5):
        self.base, self.k, self.alpha, self.t = base, k, alpha, 0
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.base.step(closure)
        self.t += 1
        if self.t % self.k == 0:
            for group in self.base.param_groups:
                for p in group["params"]:
                    state = self.base.state[p]
                    slow = state.setdefault("slow", p.detach().clone())
                    slow.lerp_(p, self.alpha)
                    p.copy_(slow)
        return loss


def trained(make, wrap, steps=60):
    """The loss of a small regression before and after."""
    x, y = draw(64, 8, seed=1), draw(64, 8, seed=2)
    ps = [nn.Parameter(0.1 * draw(8, 8, seed=3)), nn.Parameter(0.1 * draw(8, 8, seed=4))]
    optimizer = wrap(make(ps))
    losses = []
    for _ in range(steps):
        getattr(optimizer, "train", lambda: None)()
        loss = nn.functional.mse_loss(torch.tanh(x @ ps[0]) @ ps[1], y)
        losses.append(loss.item())
        for p in ps:
            p.grad = None
        loss.backward()
        optimizer.step()
    return losses


WRAPPERS = {
    "ScheduleFreeWrapper": lambda o: schedulefree.ScheduleFreeWrapper(o, momentum=0.9, weight_decay_at_y=0.0),
    "Lookahead": Lookahead,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_that_keep_their_own_state_train_as_around_torchs_muon(wrapper):
    theirs = trained(MAKERS["torch.optim.Muon"], WRAPPERS[wrapper])
    ours = trained(MAKERS["muonlab.Muon"], WRAPPERS[wrapper])
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, abs=0.03)
    other = trained(MAKERS["normuon"], WRAPPERS[wrapper])
    assert other[-1] < 0.9 * other[0]
