"""What every optimizer must do. Variants are found by themselves: a new file in optim/variants is tested from its first day."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.checks import _RANGES
from muonlab.optim.variants import variant, variants

NAMES = list(variants())
ELEMENTWISE = [name for name in NAMES if not variant(name).rule().matrices]


def network(seed=0, dtype=torch.float32, device="cpu"):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    ).to(device, dtype)


def problem(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 12, generator=generator).to(device, dtype)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), x[:, 3]], dim=1)


def train(model, optimizer, steps, dtype=torch.float32, device="cpu"):
    x, y = problem(dtype, device=device)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_converges(name, device):
    """On a small problem, at a rate that suits it: a step of AdaMuon's is 0.2·√(mn) long, one of MuonH's an angle."""
    lr = {"sgd": 0.3, "lion": 0.003, "muonh": 0.05}.get(name, 0.02)
    model = network(device=device)
    losses = train(model, muonlab.optimizer(model, name, lr=lr, aux_lr=lr if name in ELEMENTWISE else 0.01), 150, device=device)
    assert losses[-1] < {"muonh": 0.45}.get(name, 0.15) * losses[0]  # at the norm that it began with


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic(name, device):
    results = []
    for _ in range(2):
        model = network(device=device)
        train(model, muonlab.optimizer(model, name, lr=0.02, weight_decay=0.1), 5, device=device)
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_stack_equals_loop(name, device):
    """Four equal shapes in one stack, or each with an optimizer of its own."""
    tolerance = 1e-12 if device == "cpu" else 1e-10  # a GPU takes another kernel for a stack than for one matrix
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(5, 8, generator=generator, dtype=torch.float64).to(device) for _ in range(4)]
    together, apart = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    rule = variant(name).rule()
    optimizers = [
        Optimizer(together, rule, lr=0.1, weight_decay=0.2),
        *(Optimizer([p], rule, lr=0.1, weight_decay=0.2) for p in apart),
    ]
    for _ in range(5):
        for p, q in zip(together, apart, strict=True):
            p.grad = torch.randn(5, 8, generator=generator, dtype=torch.float64).to(device)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, apart, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_exactly(name, dtype, device):
    """Through torch.save and a weights_only load, into a fresh optimizer of a fresh model."""
    options = {"lr": 0.02, "weight_decay": 0.1, "lr_mul": {"2.weight": 0.5}}
    model = network(dtype=dtype, device=device)
    optimizer = muonlab.optimizer(model, name, **options)
    train(model, optimizer, 4, dtype, device=device)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 4, dtype, device=device)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(seed=99, dtype=dtype, device=device)
    other = muonlab.optimizer(again, name, **options)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(again, other, 4, dtype, device=device)
    assert torch.equal(weights(model), weights(again))


@pytest.mark.parametrize("name", NAMES)
def test_state_is_float32_for_half_precision_parameters(name, device):
    model = network(dtype=torch.bfloat16, device=device)
    optimizer = muonlab.optimizer(model, name)
    train(model, optimizer, 2, torch.bfloat16, device=device)
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    assert tensors or name == "sgd"  # which has none without momentum
    assert all(t.dtype == torch.float32 for t in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_has_a_row_in_the_documentation(name):
    text = (Path(__file__).parents[2] / "docs/how-to/optimizer.md").read_text()
    assert f"| `{name}` |" in text, f"add a row `| `{name}` | …` to the table of docs/how-to/optimizer.md"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELEMENTWISE])
def test_state_is_as_large_as_the_documentation_says(name):
    """Floats of state per weight of a 32×64 matrix."""
    p = nn.Parameter(torch.zeros(32, 64))
    p.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer = Optimizer([p], variant(name).rule(), lr=0.1)
    optimizer.step()
    per_weight = sum(t.numel() for t in optimizer.state[p].values()) / p.numel()
    momentum, row, square = 1.0, 1 / 32, (2 * 32 * 32 + 2 * 64 * 64) / (32 * 64)
    expected = {
        "normuon": momentum + row,  # one number for each of the 64 columns, the longer side
        "adamuon": 2 * momentum,
        "smoothed_muon": 2 * momentum,
        "muown": momentum + 4 / 64,
        "soap_muon": 2 * momentum + square,
    }.get(name, momentum)
    remedy = "enter it in `expected` of this test, and in its column of the table in docs/how-to/optimizer.md"
    assert per_weight == pytest.approx(expected, abs=2 / p.numel()), f"{per_weight:g} numbers of state a weight: {remedy}"


@pytest.mark.parametrize("name", NAMES)
def test_every_live_scalar_has_a_range(name):
    unknown = variant(name).rule().scalars().keys() - _RANGES.keys() - {"dampening", "nesterov"}
    assert not unknown, f"say in `_RANGES` of optim/checks.py what {', '.join(unknown)} may be"


@pytest.mark.parametrize("name", [name for name in NAMES if not getattr(variant(name).rule(), "waits", "")])
def test_a_graph_whose_step_is_not_taken_changes_no_bit(name, device):
    """Only the device knows there that a gradient is not finite: see `Step.taken`, and `_STILL` in optim/live.py."""
    torch._dynamo.reset()
    model = network(device=device)
    optimizer = muonlab.optimizer(model, name)
    train(model, optimizer, 2, device=device)
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    before = copy.deepcopy([*model.parameters(), *(t for held in optimizer.state.values() for t in held.values())])
    step()
    after = [*model.parameters(), *(t for held in optimizer.state.values() for t in held.values())]
    kept = [torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert all(kept), "state that is no mean goes through step.keep, step.count or step.write; a mean's β into `_STILL`"
    assert optimizer.skipped == 1


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_give_a_zero_update(name, device):
    model = network(device=device)
    optimizer = muonlab.optimizer(model, name)
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_left_alone(name, device):
    model = network(device=device)
    optimizer = muonlab.optimizer(model, name)
    train(model, optimizer, 2, device=device)
    grads = copy.deepcopy([p.grad for p in model.parameters()])
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_cites_its_source_and_states_its_formula(name):
    found = variant(name)
    assert "arXiv" in found.source or "http" in found.source
    assert "W ←" in found.formula
    assert found.factory.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_refuses_unknown_options(name):
    with pytest.raises(ValueError, match="unknown option"):
        muonlab.optimizer(network(), name, momentun=0.9)
