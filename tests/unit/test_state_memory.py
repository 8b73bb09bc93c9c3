"""State in stacks behaves as torch's, a tensor for each parameter: alone it takes its own bytes, offloaded none of the stack's."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant

COUNT, SIZE = 10, 64
BYTES = COUNT * SIZE * SIZE * 4


def made(kind="muon", seed=0):
    draw = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(SIZE, SIZE, generator=draw)) for _ in range(COUNT)]
    return params, Optimizer(params, variant(kind).rule(), lr=0.01)


def step(params, optimizer, seed):
    draw = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()


def alive() -> int:
    """Bytes of the storages of all tensors of this form that Python can find."""
    gc.collect()
    found = {}
    for one in gc.get_objects():
        if issubclass(type(one), Tensor) and one.dtype == torch.float32 and one.shape[-2:] == (SIZE, SIZE):
            found[one.untyped_storage().data_ptr()] = max(
                one.untyped_storage().nbytes(), found.get(one.untyped_storage().data_ptr(), 0)
            )
    return sum(found.values())


def saved(thing) -> int:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.tell()


def replace_entries(optimizer):
    for p in optimizer.state:
        optimizer.state[p] = {k: v.double() for k, v in optimizer.state[p].items()}


def replace_tensors(optimizer):
    for entry in optimizer.state.values():
        for key, value in entry.items():
            entry[key] = value.double()


def replace_data(optimizer):
    for entry in optimizer.state.values():
        for value in entry.values():
            value.data = value.clone()


def test_a_parameters_state_is_as_large_alone_as_it_is():
    params, optimizer = made()
    step(params, optimizer, 1)
    own = optimizer.state[params[3]]
    assert own["momentum_buffer"].untyped_storage().nbytes() == SIZE * SIZE * 4
    assert saved(own) < 2 * SIZE * SIZE * 4
    assert len(pickle.dumps(copy.deepcopy(own))) < 2 * SIZE * SIZE * 4
    assert saved(optimizer.state_dict()) < 1.2 * BYTES


@pytest.mark.parametrize("replace", [replace_entries, replace_tensors])
def test_what_was_offloaded_is_free(replace):
    """The whole stack: no part of it is in `state` any more."""
    params, optimizer = made()
    before = alive()
    step(params, optimizer, 1)
    optimizer.zero_grad()
    assert alive() >= before + BYTES
    replace(optimizer)
    assert alive() <= before


@pytest.mark.parametrize("replace", [replace_entries, replace_tensors, replace_data])
@pytest.mark.parametrize("kind", ["muon", "normuon", "adamw"])
def test_training_goes_on_with_what_is_in_its_place(replace, kind):
    params, optimizer = made(kind)
    alike, plain = made(kind)
    for i in range(4):
        step(params, optimizer, i)
        step(alike, plain, i)
        if i == 1:
            replace(optimizer)
            for entry in optimizer.state.values():
                assert all(isinstance(v, Tensor) for v in entry.values())
    for p, q in zip(params, alike, strict=True):
        assert torch.equal(p, q)


def test_parts_offloaded_one_by_one():
    params, optimizer = made()
    alike, plain = made()
    for i in range(4):
        step(params, optimizer, i)
        step(alike, plain, i)
        optimizer.state[params[i]]["momentum_buffer"] = optimizer.state[params[i]]["momentum_buffer"].clone()
        optimizer.state[params[-1]] = copy.deepcopy(optimizer.state[params[-1]])
    for p, q in zip(params, alike, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", ["muon", "normuon", "adamw", "lion", "sgd", "soap_muon"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_that_come_and_go_are_as_if_each_parameter_had_its_own_optimizer(kind, dtype):
    """Experts without a token have no gradient, others in each step: those that have one go together, as copies."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(6, 4, generator=draw, dtype=torch.float64).to(dtype) for _ in range(9)]
    together, apart = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    options = {"momentum": 0.9} if kind == "sgd" else {}
    multipliers = [1.0 + i / 8 for i in range(9)]
    exact = dtype == torch.bfloat16
    groups = {"params": together, "lr_mul": multipliers}
    optimizer = Optimizer([groups], variant(kind).rule(**options), lr=0.01, weight_decay=0.1, exact_bf16=exact)
    own = [
        Optimizer([p], variant(kind).rule(**options), lr=0.01, weight_decay=0.1, lr_mul=m, exact_bf16=exact)
        for p, m in zip(apart, multipliers, strict=True)
    ]
    for i in range(6):
        for j, (p, q) in enumerate(zip(together, apart, strict=True)):
            present = i == 0 or (j * 7 + i * 5) % 3 != 0
            p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype) if present else None
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        (stack,) = optimizer.current_stacks()
        assert (len(list(stack.runs(gathered=True))), len(list(stack.runs(gathered=False))) > 1) == (1, i > 0)
        for one in own:
            one.step()
    near = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-2}
    for p, q, one in zip(together, apart, own, strict=True):
        torch.testing.assert_close(p, q, **near)
        for key, value in one.state[q].items():
            if key != "mantissa":  # the bits of a rounding
                torch.testing.assert_close(optimizer.state[p][key].float(), value.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_complex_parameters_train_as_torchs(kind):
    theirs = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    shared = {"lr": 0.01, "weight_decay": 0.1, **({"betas": (0.9, 0.95)} if kind == "adamw" else {"momentum": 0.9})}
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw, dtype=torch.complex128) for shape in ((3,), (5, 4), (5, 4), ())]
    ours, others = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    rule = variant(kind).rule(**({"momentum": 0.9} if kind == "sgd" else {}))
    a = Optimizer([{"params": ours, "lr_mul": [1.0, 1.0, 2.0, 1.0]}], rule, lr=0.01, weight_decay=0.1)
    plain = [p for i, p in enumerate(others) if i != 2]
    b = theirs([{"params": plain}, {"params": [others[2]], "lr": 0.02}], **shared)
    for _ in range(3):
        for p, q in zip(ours, others, strict=True):
            p.grad = torch.randn(p.shape, generator=draw, dtype=torch.complex128)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
        for key, value in b.state[q].items():
            torch.testing.assert_close(a.state[p][key], value, check_dtype=False)


def test_complex_parameters_in_one_graph_and_conjugate_gradients():
    p = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))
    optimizer = Optimizer([p], variant("adamw").rule(), lr=0.01)
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    before = p.detach().clone()
    p.grad = torch.ones_like(p)
    step()
    optimizer.zero_grad()
    (p.conj() @ torch.ones(4, dtype=torch.complex64)).abs().sum().backward()
    assert p.grad.is_conj()
    optimizer.step()
    assert not torch.equal(before, p)
    with pytest.raises(ValueError, match="expected complex64 or complex128"):
        Optimizer([nn.Parameter(torch.zeros(2, dtype=torch.complex32))], variant("adamw").rule(), lr=0.1)


def test_a_model_with_complex_matrices_is_routed():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter, self.up = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64)), nn.Linear(8, 8)

        def forward(self, x):
            return self.up(torch.fft.ifft(torch.fft.fft(x) @ self.filter).real)

    model = Spectral()
    optimizer = muonlab.optimizer(model, "muon", lr=0.01)
    before = model.filter.detach().clone()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    assert {row.name: row.role for row in optimizer.plan}["filter"] == "vector"
    assert not torch.equal(before, model.filter)
