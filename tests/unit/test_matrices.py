"""Logical matrices: however they are stored, fused, stacked, split, transposed or ordered, they train as they would alone."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from muonlab.optim import MatrixSpec, Optimizer, stacks
from muonlab.optim.variants import variant

RULES = {
    **{name: variant(name).rule() for name in ("muon", "adamuon", "muonh", "muon_floor", "contra_muon", "muown", "smoothed_muon")},
    **{f"normuon-{axis}": variant("normuon").rule(axis=axis) for axis in ("long", "output", "input")},
    "soap_muon": variant("soap_muon").rule(every=2),
    "muon-exact-sqrt_max": variant("muon").rule(orthogonalizer="exact", scale="sqrt_max", decay="cautious"),
}


def shaped(*shape, **strides):
    return lambda ms: ms[0].reshape(shape).contiguous(**strides)


# name -> (shapes of the logical matrices, how they are stored as one parameter, the spec that says so)
LAYOUTS = {
    "bank": ([(6, 4)] * 3, torch.stack, MatrixSpec(batch_dims=1)),
    "bank of two dimensions": ([(4, 6)] * 6, lambda ms: torch.stack(ms).reshape(2, 3, 4, 6), MatrixSpec(batch_dims=2)),
    "queries, keys and values": ([(5, 5)] * 3, torch.cat, MatrixSpec(split=3)),
    "bank of fused": (
        [(3, 7)] * 6,
        lambda ms: torch.stack([torch.cat(ms[:3]), torch.cat(ms[3:])]),
        MatrixSpec(batch_dims=1, split=3),
    ),
    "heads of outputs": ([(2, 8)] * 4, torch.cat, MatrixSpec(split=4)),
    "heads of inputs": ([(8, 2)] * 4, lambda ms: torch.cat(ms, 1), MatrixSpec(split=4, axis="input")),
    "pairs of heads": ([(4, 8)] * 2, torch.cat, MatrixSpec(split=2)),
    "grouped queries": ([(8, 6), (2, 6), (2, 6)], torch.cat, MatrixSpec(split=(8, 2, 2))),
    "Mamba's in_proj": ([(9, 6), (9, 6), (4, 6), (4, 6), (3, 6)], torch.cat, MatrixSpec(split=(9, 9, 4, 4, 3))),
    "unequal inputs": ([(5, 3), (5, 6)], lambda ms: torch.cat(ms, 1), MatrixSpec(split=(3, 6), axis="input")),
    "transposed": ([(7, 3)], lambda ms: ms[0].T.contiguous(), MatrixSpec(transposed=True)),
    "a transposed view": ([(7, 3)], lambda ms: ms[0].T.contiguous().T, MatrixSpec()),
    "transposed and fused": ([(4, 6)] * 3, lambda ms: torch.cat(ms).T.contiguous(), MatrixSpec(transposed=True, split=3)),
    "transposed bank, split by inputs": (
        [(5, 2)] * 4,
        lambda ms: torch.stack([torch.cat(ms[:2], 1).T, torch.cat(ms[2:], 1).T]),
        MatrixSpec(transposed=True, batch_dims=1, split=2, axis="input"),
    ),
    "conv1d": ([(5, 12)], shaped(5, 4, 3), MatrixSpec()),
    "conv2d": ([(4, 18)], shaped(4, 2, 3, 3), MatrixSpec()),
    "conv2d of one pixel": ([(5, 7)], shaped(5, 7, 1, 1), MatrixSpec()),
    "conv3d": ([(5, 12)], shaped(5, 3, 1, 2, 2), MatrixSpec()),
    "channels last": ([(4, 12)], shaped(4, 3, 2, 2, memory_format=torch.channels_last), MatrixSpec()),
    "channels last in 3-D": ([(4, 16)], shaped(4, 2, 2, 2, 2, memory_format=torch.channels_last_3d), MatrixSpec()),
    "grouped convolution": ([(3, 8)] * 2, lambda ms: torch.cat(ms).reshape(6, 2, 2, 2), MatrixSpec(split=2)),
    "grouped, unequal and channels last": (
        [(2, 12), (4, 12)],
        lambda ms: torch.cat(ms).reshape(6, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        MatrixSpec(split=(2, 4)),
    ),
    "bank of convolutions": ([(4, 12)] * 2, lambda ms: torch.stack(ms).reshape(2, 4, 3, 2, 2), MatrixSpec(batch_dims=1)),
}


def draw(shapes, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def parameters(shapes, seed=0, device="cpu"):
    return [nn.Parameter(x) for x in draw(shapes, seed, device=device)]


def step(optimizer, params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()


def assert_same(found, expected):
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=1e-10)


def both(layout, rule, steps=5, device="cpu", **group):
    """(the stored parameter, what it should be): one parameter in this layout, and its matrices one by one."""
    shapes, store, spec = LAYOUTS[layout]
    plain = parameters(shapes, device=device)
    stored = nn.Parameter(store([p.detach() for p in plain]).clone())
    before = stored.stride()
    one = Optimizer([{"params": [stored], "spec": spec}], rule, lr=0.05, weight_decay=0.1, **group)
    each = [Optimizer([p], rule, lr=0.05, weight_decay=0.1, **group) for p in plain]
    for t in range(steps):
        grads = draw(shapes, 10 + t, device=device)
        step(one, [stored], [store(grads)])
        for optimizer, p, g in zip(each, plain, grads, strict=True):
            step(optimizer, [p], [g])
    assert stored.stride() == before
    return stored, store([p.detach() for p in plain])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_a_stored_layout_trains_as_its_matrices_do_alone(layout, rule, device):
    assert_same(*both(layout, RULES[rule], device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", ["aspect", "match_adamw_rms", "rms_to_rms", "sqrt_max", "none"])
def test_the_shape_factor_is_that_of_the_logical_matrix(layout, scale, device):
    """One step without momentum, against singular vectors."""
    factor = {
        "aspect": lambda m, n: math.sqrt(max(1, m / n)),
        "match_adamw_rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
        "rms_to_rms": lambda m, n: math.sqrt(m / n),
        "sqrt_max": lambda m, n: math.sqrt(max(m, n)),
        "none": lambda m, n: 1.0,
    }[scale]
    shapes, store, spec = LAYOUTS[layout]
    start, grads = draw(shapes, 0, device=device), draw(shapes, 1, device=device)
    p = nn.Parameter(store(start).clone())
    rule = variant("muon").rule(momentum=0.0, nesterov=False, orthogonalizer="exact", scale=scale)
    step(Optimizer([{"params": [p], "spec": spec}], rule, lr=0.3), [p], [store(grads)])
    polar = [u @ vt for u, _, vt in (torch.linalg.svd(g, full_matrices=False) for g in grads)]
    assert_same(p, store([w - 0.3 * factor(*w.shape) * o for w, o in zip(start, polar, strict=True)]))


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_parameters_changes_nothing(rule, device):
    shapes = [(6, 4), (4, 6), (6, 4), (3, 3), (6, 4), (4, 6)]
    order = [4, 1, 3, 0, 5, 2]
    a, b = parameters(shapes, device=device), parameters(shapes, device=device)
    one, two = (Optimizer(params, RULES[rule], lr=0.05, weight_decay=0.1) for params in (a, [b[i] for i in order]))
    for t in range(4):
        step(one, a, draw(shapes, t, device=device))
        step(two, b, draw(shapes, t, device=device))
    for p, q in zip(a, b, strict=True):
        assert_same(p, q)


@pytest.mark.parametrize("rule", RULES)
def test_matrices_that_are_zero_at_first_train_as_they_would_alone(rule, device):
    """Output projections begin at zero: the single one of its shape must train as the many of another do."""
    alone, pair = (
        nn.Parameter(torch.zeros(4, 6, device=device).double()),
        [nn.Parameter(torch.zeros(4, 6, device=device).double()) for _ in range(2)],
    )
    one, two = Optimizer([alone], RULES[rule], lr=0.1), Optimizer(pair, RULES[rule], lr=0.1)
    for t in range(3):
        grads = draw([(4, 6)] * 2, t, device=device)
        step(one, [alone], grads[:1])
        step(two, pair, grads)
    assert_same(alone, pair[0])
    assert alone.norm() > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_dict_of_every_layout_goes_on_bit_for_bit(layout, device):
    shapes, store, spec = LAYOUTS[layout]
    for rule in (RULES["normuon-output"], RULES["soap_muon"], variant("adamw").rule()):
        p = nn.Parameter(store(draw(shapes, 0, device=device)))
        optimizer = Optimizer([{"params": [("w", p)], "spec": spec}], rule, lr=0.05, weight_decay=0.1)
        for t in range(3):
            step(optimizer, [p], [store(draw(shapes, t, device=device))])
        file = io.BytesIO()
        torch.save((p.detach(), optimizer.state_dict()), file)
        file.seek(0)
        weight, state = torch.load(file, weights_only=True)
        q = nn.Parameter(weight)
        other = Optimizer([{"params": [("w", q)], "spec": spec}], rule, lr=9.0)
        other.load_state_dict(state)
        for t in range(3, 6):
            step(optimizer, [p], [store(draw(shapes, t, device=device))])
            step(other, [q], [store(draw(shapes, t, device=device))])
        assert torch.equal(p, q)


def test_a_state_dict_of_another_layout_is_refused(device):
    p = parameters([(6, 6)], device=device)[0]
    fused = Optimizer([{"params": [p], "spec": MatrixSpec(split=3)}], RULES["muon"], lr=0.1)
    step(fused, [p], draw([(6, 6)], 1, device=device))
    with pytest.raises(ValueError, match=r"expected momentum_buffer \(6, 6\), got momentum_buffer \(3, 2, 6\)"):
        Optimizer([p], RULES["muon"], lr=0.1).load_state_dict(fused.state_dict())


@pytest.mark.parametrize("rule", RULES)
def test_multipliers_reach_every_block_of_a_split_parameter(rule, device):
    shapes, store, spec = LAYOUTS["grouped queries"]
    a, b = ([nn.Parameter(store(draw(shapes, seed, device=device))) for seed in range(3)] for _ in range(2))
    lr_mul, wd_mul = [1.0, 0.5, 2.0], [0.0, 3.0, 1.0]
    one = Optimizer([{"params": a, "spec": spec, "lr_mul": lr_mul, "wd_mul": wd_mul}], RULES[rule], lr=0.05, weight_decay=0.1)
    groups = [
        {"params": [p], "spec": spec, "lr": 0.05 * x, "weight_decay": 0.1 * y} for p, x, y in zip(b, lr_mul, wd_mul, strict=True)
    ]
    apart = Optimizer(groups, RULES[rule], lr=1.0)
    for t in range(4):
        grads = [store(draw(shapes, 10 * t + i, device=device)) for i in range(3)]
        step(one, a, grads)
        step(apart, b, grads)
    for p, q in zip(a, b, strict=True):
        assert_same(p, q)


@pytest.mark.parametrize("rule", ["muon", "normuon-long", "muown", "soap_muon"])
def test_a_gap_in_a_stack_of_split_parameters_is_left_alone(rule, device):
    shapes, store, spec = LAYOUTS["grouped queries"]
    some, alone = ([nn.Parameter(store(draw(shapes, seed, device=device))) for seed in range(4)] for _ in range(2))
    one = Optimizer([{"params": some, "spec": spec}], RULES[rule], lr=0.05, weight_decay=0.1)
    each = [Optimizer([{"params": [p], "spec": spec}], RULES[rule], lr=0.05, weight_decay=0.1) for p in alone]
    for t, present in enumerate([(0, 3), (0, 1, 2, 3), (1,), (), (0, 2, 3), (3,)]):
        grads = [store(draw(shapes, 10 * t + i, device=device)) if i in present else None for i in range(4)]
        step(one, some, grads)
        for i in present:
            step(each[i], [alone[i]], [grads[i]])
    for p, q in zip(some, alone, strict=True):
        assert_same(p, q)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 50, 130])
def test_a_stack_may_be_stepped_in_runs(rule, size, monkeypatch):
    shapes, store, spec = LAYOUTS["grouped queries"]
    a, b = ([nn.Parameter(store(draw(shapes, seed))) for seed in range(5)] for _ in range(2))
    group = {"spec": spec, "lr_mul": [1.0, 2.0, 1.0, 0.5, 1.0]}
    one, two = (Optimizer([{"params": ps, **group}], RULES[rule], lr=0.05, weight_decay=0.1) for ps in (a, b))
    for t in range(4):
        grads = [store(draw(shapes, 10 * t + i)) for i in range(5)]
        step(one, a, grads)
        with monkeypatch.context() as patch:
            patch.setattr(stacks, "_RUN_ON_CPU", size)
            step(two, b, grads)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
