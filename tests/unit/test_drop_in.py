"""muonlab.Muon in torch.optim.Muon's place: arguments, groups, state dicts, and a bug of torch's that we do not have."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim.drop_in import ADJUSTMENTS, _rule


def parameter(m=6, n=9, seed=0, dtype=torch.float32, device="cpu"):
    p = nn.Parameter(torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).to(device, dtype))
    p.grad = torch.randn(m, n, generator=torch.Generator().manual_seed(seed + 1)).to(device, dtype)
    return p


def test_arguments_and_defaults_are_torchs():
    ours = inspect.signature(muonlab.Muon.__init__).parameters
    theirs = inspect.signature(torch.optim.Muon.__init__).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_momentum_buffer_of_bf16_parameters_is_not_normalized(device):
    """torch.optim.Muon 2.13 with nesterov=False divides the buffer itself by its norm; ours must keep the mean of gradients."""
    p = parameter(dtype=torch.bfloat16, device=device)
    muonlab_optimizer = muonlab.Muon([p], nesterov=False)
    muonlab_optimizer.step()
    torch.testing.assert_close(muonlab_optimizer.state[p]["momentum_buffer"], 0.05 * p.grad.float())


def test_groups_may_differ_in_every_argument(device):
    a, b = parameter(seed=0, device=device), parameter(seed=0, device=device)
    optimizer = muonlab.Muon([{"params": [a], "nesterov": False, "lr": 0.5}, {"params": [b], "ns_steps": 1}], lr=0.1)
    reference = torch.optim.Muon(
        [
            {"params": [c := parameter(seed=0, device=device)], "nesterov": False, "lr": 0.5},
            {"params": [d := parameter(seed=0, device=device)], "ns_steps": 1},
        ],
        lr=0.1,
    )
    optimizer.step()
    reference.step()
    torch.testing.assert_close(a, c, rtol=0, atol=0.01)
    torch.testing.assert_close(b, d, rtol=0, atol=0.01)
    assert not torch.allclose(a, b, atol=0.01)


def test_state_dicts_pass_both_ways(device):
    """A run begun with torch's optimizer goes on with ours, and back."""
    ours, theirs = parameter(device=device), parameter(device=device)
    a, b = muonlab.Muon([ours], lr=0.05), torch.optim.Muon([theirs], lr=0.02)
    b.step()
    ours.data.copy_(theirs.data)
    a.load_state_dict(b.state_dict())
    assert a.param_groups[0]["lr"] == 0.02
    a.step()
    b.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    b.load_state_dict(a.state_dict())
    b.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr >= 0, got -1"),
        ({"lr": float("nan")}, "lr >= 0, got nan"),
        ({"momentum": -0.1}, "momentum >= 0"),
        ({"adjust_lr_fn": "spectral"}, "match_rms_adamw"),
        ({"ns_steps": 100}, "ns_steps < 100"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        muonlab.Muon([parameter()], **options)


def test_vectors_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"expected a matrix, got shape \(4,\): give it to AdamW"):
        muonlab.Muon([nn.Parameter(torch.ones(4))])


def test_tensor_learning_rate(device):
    a, b = parameter(device=device), parameter(device=device)
    muonlab.Muon([a], lr=torch.tensor(0.1, device=device)).step()
    muonlab.Muon([b], lr=0.1).step()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("eps", [1e-20, 1e-30])
def test_a_tiny_eps_leaves_zero_gradients_zero(eps, device):
    w = torch.nn.Parameter(torch.eye(4, device=device))
    w.grad = torch.zeros(4, 4, device=device)
    muonlab.Muon([w], lr=0.1, weight_decay=0.0, eps=eps).step()
    assert torch.equal(w, torch.eye(4, device=device))


def test_the_installed_torch_adjusts_rates_in_no_way_that_we_do_not_know():
    """A newer torch may bring another one: this then says so."""
    source = torch.optim._muon._adjust_lr
    named = set(re.findall(r'== "(\w+)"', inspect.getsource(source)))
    assert named <= set(ADJUSTMENTS)
    for name in named:
        for shape in ((8, 2), (2, 8), (5, 5)):
            assert source(0.1, name, shape) == pytest.approx(0.1 * _rule(True, (1.0, 0.0, 0.0), 1e-7, 5, name).lr_factor(shape))
    assert _rule(True, (1.0, 0.0, 0.0), 1e-7, 5, "spectral_unclamped").lr_factor((2, 8)) == 0.5
