"""EMA-Nesterov and tail EMA, against their formulas in plain float64."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from muonlab.optim import EMANesterov, Optimizer, TailEMA
from muonlab.optim.variants import variant

TARGET = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def gradient(w):  # of a quadratic whose curvature differs from entry to entry
    return (w - TARGET.to(w.device)) * torch.linspace(0.5, 2.0, 12, dtype=torch.float64, device=w.device).reshape(4, 3)


def parameter(seed=0, device="cpu"):
    return nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device))


def saved(*objects):
    file = io.BytesIO()
    torch.save(objects, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def walk(wrapper, p, steps, scheduler=None):
    for _ in range(steps):
        wrapper.look_ahead()
        p.grad = gradient(p.detach())
        wrapper.step()
        if scheduler:
            scheduler.step()


@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 9), (20, None)])
def test_ema_nesterov_is_its_formula(start, stop, device):
    p = parameter(device=device)
    inner = torch.optim.SGD([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda t: 1 / (1 + 0.3 * t))
    walk(EMANesterov(inner, lookahead=0.7, decay=0.8, start=start, stop=stop), p, 15, scheduler)
    x, m = parameter(device=device).detach(), torch.zeros_like(TARGET, device=device)
    for t in range(15):
        rate = 1 / (1 + 0.3 * t)
        b = 0.7 * rate if start <= t < (15 if stop is None else stop) else 0.0
        y = x + b * m
        new = y - 0.1 * rate * gradient(y)
        x, m = new, 0.8 * m + 0.2 * (new - x)
    torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-12)


def test_without_lookahead_the_inner_optimizer_is_untouched(device):
    p, q = parameter(device=device), parameter(device=device)
    rule = variant("normuon").rule()
    walk(EMANesterov(Optimizer([p], rule, lr=0.02), lookahead=0.0), p, 10)
    plain = Optimizer([q], rule, lr=0.02)
    for _ in range(10):
        q.grad = gradient(q.detach())
        plain.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_a_warm_up_does_not_change_what_full_lookahead_means(scheduler_first, device):
    """The lookahead goes with the rate over its base, not over what a warm-up from (nearly) zero begins with."""
    p = parameter(device=device)
    inner = torch.optim.SGD([p], lr=0.1)

    def warm():
        return torch.optim.lr_scheduler.LambdaLR(inner, lambda t: min(1.0, t / 4))

    scheduler = warm() if scheduler_first else None
    wrapper = EMANesterov(inner, lookahead=0.5, decay=0.8)
    walk(wrapper, p, 6, scheduler or warm())
    x, m = parameter(device=device).detach(), torch.zeros_like(TARGET, device=device)
    for t in range(6):
        rate = min(1.0, t / 4)
        y = x + 0.5 * rate * m
        new = y - 0.1 * rate * gradient(y)
        x, m = new, 0.8 * m + 0.2 * (new - x)
    torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-12)


def test_ema_nesterov_resumes_exactly(device):
    def build(p):
        return EMANesterov(Optimizer([("w", p)], variant("muon").rule(), lr=0.02), lookahead=0.6, decay=0.9, start=2)

    p = parameter(device=device)
    one = build(p)
    walk(one, p, 5)
    weights, state = saved(p.detach(), one.state_dict())
    q = nn.Parameter(weights)
    two = build(q)
    two.load_state_dict(state)
    for group in two.optimizer.param_groups:
        assert group["lr"] == 0.02
    walk(one, p, 5)
    walk(two, q, 5)
    assert torch.equal(p, q)


def test_ema_nesterov_says_what_it_is_used_for_wrongly(device):
    p = parameter(device=device)
    wrapper = EMANesterov(torch.optim.SGD([p], lr=0.1))
    with pytest.raises(RuntimeError, match="call look_ahead"):
        wrapper.step()
    wrapper.look_ahead()
    with pytest.raises(RuntimeError, match="twice"):
        wrapper.look_ahead()
    with pytest.raises(RuntimeError, match="between look_ahead"):
        wrapper.state_dict()
    p.grad = gradient(p.detach())
    wrapper.step()
    other = EMANesterov(torch.optim.SGD([nn.Parameter(torch.ones(5, device=device))], lr=0.1))
    with pytest.raises(ValueError, match="mean"):
        other.load_state_dict(wrapper.state_dict())
    for bad in ({"lookahead": -1.0}, {"lookahead": float("nan")}, {"decay": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            EMANesterov(torch.optim.SGD([p], lr=0.1), **bad)


def test_ema_nesterov_returns_the_closures_value_at_the_point_ahead(device):
    p = parameter(device=device)
    wrapper = EMANesterov(torch.optim.SGD([p], lr=0.1), lookahead=1.0)
    walk(wrapper, p, 3)
    wrapper.look_ahead()
    ahead = (p.detach() - TARGET.to(device)).square().sum()

    def closure():
        wrapper.zero_grad()
        loss = (p - TARGET.to(device)).square().sum()
        loss.backward()
        return loss

    assert wrapper.step(closure) == ahead


def test_tail_ema_is_its_formula_and_gives_the_weights_back(device):
    p = parameter(device=device)
    tail = TailEMA([p], start=3, tau=4.0, weight=0.6)
    e = None
    for t in range(10):
        p.data.sub_(0.1 * gradient(p.data))
        tail.update()
        e = p.detach().clone() if t == 3 else (None if e is None else e + (p.detach() - e) / 4.0)
        kept = p.detach().clone()
        with tail.applied():
            expected = kept if e is None else 0.4 * kept + 0.6 * e
            torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-14)
        assert torch.equal(p, kept)


def test_the_weights_come_back_when_an_evaluation_fails(device):
    p = parameter(device=device)
    tail = TailEMA([p], start=0)
    tail.update()
    p.data.add_(1.0)
    kept = p.detach().clone()

    def evaluate():
        with tail.applied():
            assert not torch.equal(p, kept)
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert torch.equal(p, kept)


@pytest.mark.parametrize("at", [1, 5])
def test_tail_ema_resumes_exactly(at, device):
    p = parameter(device=device)
    one = TailEMA([p], start=3, tau=5.0)
    for t in range(9):
        if t == at:
            weights, state = saved(p.detach(), one.state_dict())
            q = nn.Parameter(weights)
            two = TailEMA([q], start=3, tau=5.0)
            two.load_state_dict(state)
        for w, tail in ((p, one), *([(q, two)] if t >= at else [])):
            w.data.sub_(0.1 * gradient(w.data))
            tail.update()
    with one.applied(), two.applied():
        assert torch.equal(p, q)


def test_tail_ema_refuses_what_means_nothing(device):
    p = parameter(device=device)
    for bad in ({"tau": 0.5}, {"weight": 1.5}, {"weight": float("nan")}, {"start": -1}, {"start": 2.5}):
        with pytest.raises(ValueError, match="expected"):
            TailEMA([p], **{"start": 0, **bad})
    one, other = TailEMA([p], start=0), TailEMA([nn.Parameter(torch.ones(2, device=device))], start=0)
    one.update()
    with pytest.raises(ValueError, match="mean"):
        other.load_state_dict(one.state_dict())
