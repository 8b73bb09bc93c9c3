"""What must not happen: a poisoned step, a mutated gradient, a silent overflow, an option that means nothing."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant, variants

NAMES = list(variants())


def draw(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def model(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4), nn.LayerNorm(4)).to(device)


def give_gradients(params, seed):
    for i, p in enumerate(params):
        p.grad = draw(*p.shape, seed=100 * seed + i, device=p.device)


def snapshot(net, optimizer):
    return copy.deepcopy((list(net.state_dict().values()), optimizer.state_dict()))


def assert_unchanged(before, after):
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1]["param_groups"] == after[1]["param_groups"]
    assert before[1]["state"].keys() == after[1]["state"].keys()
    for i, entry in before[1]["state"].items():
        assert entry.keys() == after[1]["state"][i].keys()
        assert all(torch.equal(value, after[1]["state"][i][key]) for key, value in entry.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_step_with_a_bad_gradient_never_was(name, bad, device):
    """Also when it would have been the first of some parameter."""
    net, twin = model(device=device), model(device=device)
    one, two = (muonlab.optimizer(m, name, weight_decay=0.1) for m in (net, twin))
    for t in range(5):
        for m, optimizer in ((net, one), (twin, two)):
            give_gradients(m.parameters(), t)
            m[4].weight.grad = m[4].weight.grad if t > 2 else None  # no state before the poisoned step
            optimizer.step()
        if t in (0, 2):
            give_gradients(net.parameters(), 50)
            net[5].bias.grad[1] = bad
            before = snapshot(net, one)
            one.step()
            assert_unchanged(before, snapshot(net, one))
    assert (one.skipped, two.skipped) == (2, 0)
    assert_unchanged(snapshot(twin, two), snapshot(net, one))


@pytest.mark.parametrize("name", ["muon", "soap_muon", "adamw"])
def test_raise_names_the_parameter_and_changes_nothing(name, device):
    net = model(device=device)
    optimizer = muonlab.optimizer(net, name, nonfinite="raise")
    give_gradients(net.parameters(), 0)
    net[2].weight.grad[3, 3] = float("nan")
    net[4].bias.grad[0] = float("inf")
    before = snapshot(net, optimizer)
    with pytest.raises(FloatingPointError, match=r"2 of 8 gradients are not finite, first that of 2\.weight"):
        optimizer.step()
    assert_unchanged(before, snapshot(net, optimizer))
    unnamed = Optimizer(
        [nn.Parameter(torch.ones(2, 2, device=device)) for _ in range(2)], variant("muon").rule(), lr=0.1, nonfinite="raise"
    )
    unnamed.param_groups[0]["params"][1].grad = torch.full((2, 2), float("nan"), device=device)
    with pytest.raises(FloatingPointError, match="group 0, parameter 1"):
        unnamed.step()


def test_ignore_does_as_torch_does(device):
    a, b = (nn.Parameter(draw(3, device=device)) for _ in range(2))
    ours = Optimizer([a], variant("adamw").rule(), lr=0.1, nonfinite="ignore")
    theirs = torch.optim.AdamW([b], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for p, optimizer in ((a, ours), (b, theirs)):
        p.grad = torch.tensor([1.0, float("nan"), -1.0], device=device)
        optimizer.step()
    torch.testing.assert_close(a, b, equal_nan=True)
    assert ours.skipped == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_gradients_are_finite_whatever_their_norm_is_in_their_own_dtype(dtype, device):
    """float16 ends at 65504, which the norm of 40,000 entries of 1000 exceeds."""
    p = nn.Parameter(torch.zeros(200, 200, dtype=dtype, device=device))
    optimizer = Optimizer([p], variant("adamw").rule(), lr=0.1, nonfinite="raise")
    p.grad = torch.full((200, 200), 1000.0, dtype=dtype, device=device)
    optimizer.step()
    assert torch.allclose(p, torch.full_like(p, -0.1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e18])
def test_gradients_of_any_size_give_finite_weights_and_stay_as_they_are(name, scale, device):
    net = model(device=device)
    optimizer = muonlab.optimizer(net, name, lr=0.01, weight_decay=0.0)
    for t in range(12):
        give_gradients(net.parameters(), t)
        for p in net.parameters():
            p.grad *= scale / p.grad.norm()
        kept = [p.grad.clone() for p in net.parameters()]
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), kept, strict=True))
        assert all(torch.isfinite(p).all() for p in net.parameters())
        if scale == 0:
            assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
        elif scale > 1 and name != "sgd":  # an update knows no size of the gradient
            assert all((p - w).norm() < 1 for p, w in zip(net.parameters(), before, strict=True))
    assert optimizer.skipped == 0


@pytest.mark.parametrize("name", [n for n in NAMES if variant(n).rule().matrices])
@pytest.mark.parametrize(
    "gradient", [[[1.0, -1.0], [2.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]], [[1.0, -1.0], [-1.0, 1.0]]]
)
def test_the_first_step_goes_downhill(name, gradient, device):
    """Rows that sum to zero come from every layer behind a LayerNorm."""
    p = nn.Parameter(torch.eye(2, device=device) + 0.5)
    g = p.grad = torch.tensor(gradient, device=device)
    before = p.detach().clone()
    Optimizer([p], variant(name).rule(), lr=0.01).step()
    assert ((p - before) * g).sum() < 0


def test_an_identity_rule_is_torchs_sgd_bit_for_bit(device):
    class Identity:
        def __call__(self, x):
            return x

        def flops(self, m, n):
            return 0

        def __str__(self):
            return "identity"

    rule = variant("muon").rule(momentum=0.0, nesterov=False, orthogonalizer=Identity(), scale="none")
    shapes = [(6, 4), (300, 80), (6, 4), (1, 3)]
    a, b = ([nn.Parameter(draw(*s, seed=i, device=device)) for i, s in enumerate(shapes)] for _ in range(2))
    ours, theirs = Optimizer(a, rule, lr=0.037), torch.optim.SGD(b, lr=0.037)
    for t in range(20):
        for params, optimizer in ((a, ours), (b, theirs)):
            give_gradients(params, t)
            optimizer.step()
    for p, q in zip(a, b, strict=True):
        # torch's fused loop on a GPU may round a multiply-add once where two operations round twice
        torch.testing.assert_close(p, q, rtol=0 if device == "cpu" else 1e-6, atol=0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_are_never_touched(name, device):
    net = model(device=device)
    net[2].weight.requires_grad_(False)
    kept = net[2].weight.detach().clone()
    optimizer = muonlab.optimizer(net, name, weight_decay=0.5)

    def closure():
        optimizer.zero_grad()
        loss = net(draw(5, 4, device=device)).square().mean()
        loss.backward()
        return loss

    assert all(torch.is_tensor(optimizer.step(closure)) for _ in range(3))
    assert torch.equal(net[2].weight, kept)
    assert net[2].weight not in optimizer.state


def test_steps_that_are_left_out_are_said_at_the_first_and_where_they_do_not_end():
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = Optimizer([p], variant("muon").rule(), lr=0.1)

    def steps(value, count):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(count):
                p.grad = torch.full((4, 4), value)
                optimizer.step()
        return [str(one.message).partition(":")[0] for one in told]

    assert steps(1.0, 3) == []
    assert steps(math.inf, 1) == ["a step was left out"]
    assert steps(1.0, 1) == []
    assert steps(math.nan, 9) == [], "nine are not ten"
    assert steps(1.0, 1) == []
    assert steps(math.nan, 25) == ["10 steps in a row were left out, so nothing is trained"]
    assert optimizer.skipped == 35
