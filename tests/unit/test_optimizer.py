"""The optimizer as torch's users know it: groups, schedulers, closures, state dicts, and what stacks must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.variants import variant

MUON = variant("muon").rule()


def tolerance(device, cpu):
    """A GPU makes the products in bfloat16, by another kernel for a stack than for one matrix: a few roundings of 2^-8."""
    return cpu if device == "cpu" else 2e-2


def draw(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def parameters(count=3, m=6, n=4, device="cpu"):
    return [nn.Parameter(draw(m, n, seed=i, device=device)) for i in range(count)]


def give_gradients(params, seed=100):
    for i, p in enumerate(params):
        p.grad = draw(*p.shape, seed=seed + i, device=p.device)


def stepped(params, optimizer, steps=3):
    for t in range(steps):
        give_gradients(params, seed=100 * (t + 1))
        optimizer.step()
    return [p.detach().clone() for p in params]


def test_multipliers_equal_groups_of_their_own(device):
    a, b = parameters(device=device), parameters(device=device)
    together = Optimizer([{"params": a, "lr_mul": [1.0, 2.0, 0.5], "wd_mul": [1.0, 0.0, 3.0]}], MUON, lr=0.1, weight_decay=0.2)
    apart = Optimizer(
        [
            {"params": [b[0]]},
            {"params": [b[1]], "lr": 0.2, "weight_decay": 0.0},
            {"params": [b[2]], "lr": 0.05, "weight_decay": 0.6},
        ],
        MUON,
        lr=0.1,
        weight_decay=0.2,
    )
    for p, q in zip(stepped(a, together), stepped(b, apart), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance(device, 2e-3))


def test_state_holds_views_named_as_torch_names_them(device):
    params = parameters(device=device)
    optimizer = Optimizer(params, MUON, lr=0.1)
    stepped(params, optimizer, 1)
    assert set(optimizer.state[params[1]]) == {"momentum_buffer"}
    before = optimizer.state[params[1]]["momentum_buffer"].clone()
    give_gradients(params)
    optimizer.step()
    assert not torch.equal(optimizer.state[params[1]]["momentum_buffer"], before)


def test_state_dict_does_not_depend_on_the_order_of_parameters(device):
    """Saved from one order and grouping, loaded by name into another, it goes on with equal weights."""
    names = ["a", "b", "c"]
    one, two = parameters(device=device), parameters(device=device)
    first = Optimizer(list(zip(names, one, strict=True)), MUON, lr=0.1, weight_decay=0.1)
    stepped(one, first)
    for p, q in zip(one, two, strict=True):
        q.data.copy_(p.data)
    pairs = dict(zip(names, two, strict=True))
    second = Optimizer([{"params": [("c", pairs["c"]), ("a", pairs["a"])]}, {"params": [("b", pairs["b"])]}], MUON, lr=0.7)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.1]
    for p, q in zip(stepped(one, first), stepped(two, second), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance(device, 2e-3))


def test_per_group_learning_rates_survive_a_round_trip():
    params = [("a", parameters(1)[0]), ("b", parameters(1)[0])]
    optimizer = Optimizer([{"params": [params[0]], "lr": 0.1}, {"params": [params[1]], "lr": 0.3}], MUON, lr=1.0)
    other = Optimizer([{"params": [params[1]]}, {"params": [params[0]]}], MUON, lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.3, 0.1]


def test_a_state_dict_that_does_not_fit_changes_nothing():
    params = parameters(2)
    named = [("a", params[0]), ("b", params[1])]
    optimizer = Optimizer(named, MUON, lr=0.1)
    stepped(params, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    strangers = Optimizer([("a", parameters(1)[0]), ("z", parameters(1)[0])], MUON, lr=9.0)
    with pytest.raises(ValueError, match=r"1 missing \['b'\], 1 unknown \['z'\]"):
        optimizer.load_state_dict(strangers.state_dict())
    other_shape = [nn.Parameter(draw(5, 5)), nn.Parameter(draw(6, 4))]
    wrong = Optimizer(list(zip("ab", other_shape, strict=True)), MUON, lr=9.0)
    stepped(other_shape, wrong, 1)
    with pytest.raises(ValueError, match=r"expected momentum_buffer \(6, 4\), got momentum_buffer \(5, 5\)"):
        optimizer.load_state_dict(wrong.state_dict())
    adam = Optimizer(list(zip("ab", parameters(2), strict=True)), variant("adamw").rule(), lr=9.0)
    stepped(adam.param_groups[0]["params"], adam, 1)
    with pytest.raises(ValueError, match="another rule"):
        optimizer.load_state_dict(adam.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][i]["momentum_buffer"], before["state"][i]["momentum_buffer"]) for i in (0, 1))


def test_parameters_without_a_gradient_are_left_alone_in_that_step(device):
    some, alone = parameters(3, device=device), parameters(3, device=device)
    optimizer = Optimizer(some, MUON, lr=0.1, weight_decay=0.5)
    reference = [Optimizer([p], MUON, lr=0.1, weight_decay=0.5) for p in alone]
    for t, present in enumerate([(0, 1, 2), (0, 2), (1,), (), (0, 1, 2)]):
        for i in range(3):
            some[i].grad = draw(6, 4, seed=10 * t + i, device=device) if i in present else None
            alone[i].grad = draw(6, 4, seed=10 * t + i, device=device) if i in present else None
        optimizer.step()
        for i in present:
            reference[i].step()
    for p, q in zip(some, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance(device, 5e-3))


def test_frozen_parameters_get_no_state(device):
    params = parameters(2, device=device)
    params[1].requires_grad_(False)
    before = params[1].detach().clone()
    optimizer = Optimizer(params, MUON, lr=0.1, weight_decay=0.5)
    (params[0].sum() * 2).backward()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert set(optimizer.state) == {params[0]}


def test_a_parameter_may_be_thawed_later(device):
    params = parameters(2, device=device)
    params[1].requires_grad_(False)
    optimizer = Optimizer(params, MUON, lr=0.1)
    params[0].grad = draw(6, 4, device=device)
    optimizer.step()
    first = optimizer.state[params[0]]["momentum_buffer"].clone()
    params[1].requires_grad_(True)
    params[0].grad, params[1].grad = None, draw(6, 4, seed=1, device=device)
    optimizer.step()
    assert set(optimizer.state) == set(params)
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], first)


def test_add_param_group_after_steps(device):
    params, late = parameters(2, device=device), parameters(1, device=device)
    optimizer = Optimizer(params, MUON, lr=0.1)
    stepped(params, optimizer, 2)
    kept = optimizer.state[params[0]]["momentum_buffer"].clone()
    optimizer.add_param_group({"params": late, "lr": 0.3})
    assert optimizer.param_groups[1]["momentum"] == 0.95
    give_gradients(late)
    for p in params:
        p.grad = None
    before = late[0].detach().clone()
    optimizer.step()
    assert not torch.equal(late[0], before)
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], kept)


def test_a_refused_group_leaves_no_trace():
    optimizer = Optimizer(parameters(1), MUON, lr=0.1)
    for bad in (
        {"params": parameters(1), "lr": -1.0},
        {"params": [nn.Parameter(draw(3))]},
        {"params": parameters(2), "lr_mul": [1.0]},
    ):
        with pytest.raises(ValueError, match="expected"):
            optimizer.add_param_group(bad)
    with pytest.raises(ValueError, match="unknown rule 'moun'"):
        optimizer.add_param_group({"params": parameters(1), "rule": "moun"})
    assert len(optimizer.param_groups) == 1


def test_closure_value_is_returned_and_gradients_are_on(device):
    p = parameters(1, device=device)[0]
    optimizer = Optimizer([p], MUON, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


@pytest.mark.parametrize(
    "build",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.CyclicLR(
            o, base_lr=0.01, max_lr=0.1, step_size_up=3, base_momentum=0.95, max_momentum=0.95
        ),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
        ),
    ],
)
def test_torch_schedulers_drive_every_group(build, device):
    """Under one gradient again and again, each step is as long as the scheduled rate says."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.LayerNorm(4)).to(device)
    optimizer = muonlab.optimizer(model, "muon", orthogonalizer="exact")
    scheduler = build(optimizer)
    rates, lengths = [], []
    for _ in range(6):
        give_gradients(model.parameters())
        before = model[0].weight.detach().clone()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lengths.append((model[0].weight - before).norm().item())
        scheduler.step()
    assert max(rates) > 1.1 * min(rates)
    for rate, length in zip(rates, lengths, strict=True):
        assert length / rate == pytest.approx(lengths[0] / rates[0], rel=0.03)


def test_scheduled_momentum_is_read_live(device):
    p = parameters(1, device=device)[0]
    optimizer = Optimizer([p], MUON, lr=0.1)
    optimizer.param_groups[0]["momentum"] = 0.0
    p.grad = draw(6, 4, device=device)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)


def test_training_a_compiled_model(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).to(device)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = muonlab.optimizer(compiled, "muon", lr=0.05)
    x = draw(16, 4, device=device)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (compiled(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_transposed_storage_gives_the_transposed_update(device):
    """Hugging Face's Conv1D stores (in, out): shape rule and variance axis must follow the meaning, not the storage."""
    plain, stored = nn.Parameter(draw(8, 3, device=device)), nn.Parameter(draw(8, 3, device=device).T.contiguous())
    rule = variant("normuon").rule(axis="output")
    a = Optimizer([plain], rule, lr=0.1, weight_decay=0.1)
    b = Optimizer([{"params": [stored], "spec": MatrixSpec(transposed=True)}], rule, lr=0.1, weight_decay=0.1)
    for t in range(3):
        plain.grad = draw(8, 3, seed=t, device=device)
        stored.grad = plain.grad.T.contiguous()
        a.step()
        b.step()
    torch.testing.assert_close(stored.T, plain, rtol=0, atol=tolerance(device, 1e-6))


def test_a_deep_copy_goes_on_alike(device):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)).to(device)
    optimizer = muonlab.optimizer(model, "normuon", lr=0.1)
    stepped(list(model.parameters()), optimizer)
    other_model, other = copy.deepcopy((model, optimizer))
    stepped(list(model.parameters()), optimizer, 2)
    stepped(list(other_model.parameters()), other, 2)
    for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_replaced_state_is_taken_over(device):
    """Some trainers move optimizer state by hand, putting new tensors into optimizer.state."""
    params = parameters(2, device=device)
    optimizer = Optimizer(params, MUON, lr=0.1)
    stepped(params, optimizer, 1)
    for p in params:
        optimizer.state[p] = {k: torch.zeros_like(v) for k, v in optimizer.state[p].items()}
    give_gradients(params)
    optimizer.step()
    for p in params:
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], 0.05 * p.grad)


def test_sparse_gradients_and_complex_matrices_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = Optimizer(embedding.parameters(), variant("adamw").rule(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"expected a real matrix, got torch\.complex64: an elementwise rule"):
        Optimizer([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], MUON, lr=0.1)


def test_loading_neither_shares_nor_changes_what_is_loaded(device):
    a, b = (Optimizer([("w", p)], MUON, lr=torch.tensor(0.1, device=device)) for p in parameters(2, device=device))
    state = a.state_dict()
    b.load_state_dict(state)
    b.param_groups[0]["lr"].fill_(0.5)
    assert a.param_groups[0]["lr"] == torch.tensor(0.1, device=device)
    theirs = torch.optim.Muon(parameters(1, device=device))
    ours = muonlab.Muon([{"params": parameters(1, device=device), "lr_mul": 3.0}])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr_mul"] == 3.0
    bad = copy.deepcopy(state)
    bad["param_groups"][0]["lr"] = -5.0
    with pytest.raises(ValueError, match="lr >= 0, got -5"):
        b.load_state_dict(bad)


@pytest.mark.parametrize(
    "group",
    [{"weight_decay": float("nan")}, {"lr_mul": -1.0}, {"lr_mul": [1.0, float("nan")]}, {"momentum": 1.5}, {"lr": float("inf")}],
)
def test_scalars_out_of_range_are_refused(group):
    with pytest.raises(ValueError, match="expected"):
        Optimizer([{"params": parameters(2), **group}], MUON, lr=0.1)


def test_half_precision_weights_are_rounded_once_a_step(device):
    start = draw(6, 4, device=device).bfloat16()
    p = nn.Parameter(start.clone())
    optimizer = Optimizer([p], variant("adamw").rule(), lr=0.01, weight_decay=0.5)
    p.grad = draw(6, 4, seed=1, device=device).bfloat16()
    optimizer.step()
    exact = start.double() * (1 - 0.01 * 0.5) - 0.01 * p.grad.double().sign()
    torch.testing.assert_close(p, exact.bfloat16(), rtol=0, atol=0)
