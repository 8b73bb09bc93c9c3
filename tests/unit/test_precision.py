"""16-bit parameters and state: bit for bit as float32 where that is promised, right on average where it is not."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from torch import nn

from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.rounding import round_stochastically
from muonlab.optim.shadow import join, split
from muonlab.optim.variants import variant

BF16 = torch.bfloat16
SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-39,
    1.1754942e-38,
    1.1754944e-38,
    1.0,
    -1.0,
    1.00390625,
    3.3e38,
    3.4028235e38,
    -3.4028235e38,
]


def draw(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def nearest(value):
    """float32 -> bfloat16, by its definition: the neighbour at the smaller distance, the outer one of two equally near."""
    low = (value.view(torch.int32) & -0x10000).view(torch.float32)  # towards zero
    high = ((low.view(torch.int32) >> 16) + 1 << 16).view(torch.float32)
    # beyond the largest finite value the next one would be 2^128, were the exponent not at its end
    outer = torch.where(
        high.isinf(), torch.copysign(torch.tensor(2.0**128, dtype=torch.float64, device=low.device), low.double()), high.double()
    )
    up = (outer - value.double()).abs() <= (value.double() - low.double()).abs()
    return torch.where(up, high, low).to(BF16)


def bits(x):
    return x.view(torch.int16 if x.dtype == BF16 else torch.int32)


def test_every_float_is_its_rounded_half_and_a_remainder(device):
    values = torch.cat(
        [
            torch.tensor(SPECIAL, device=device),
            torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
            .to(device, torch.int32)
            .view(torch.float32),
            (torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device) << 16).view(torch.float32),  # every bfloat16
            ((torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device) << 16) + 0x8000).view(torch.float32),  # every tie
        ]
    )
    values = values[values.isfinite()]
    high, low = split(values)
    assert (high.dtype, low.dtype) == (BF16, torch.int16)
    assert torch.equal(bits(join(high, low)), bits(values))
    assert torch.equal(bits(high), bits(nearest(values)))
    tie = (bits(values) & 0xFFFF) == 0x8000
    assert torch.equal(bits(high)[~tie], bits(values.to(BF16))[~tie])


SPECS = {
    "plain": ((8, 5), MatrixSpec()),
    "transposed": ((5, 8), MatrixSpec(transposed=True)),
    "unequal heads of inputs": ((4, 9), MatrixSpec(split=(6, 3), axis="input")),
    "bank": ((3, 4, 5), MatrixSpec(batch_dims=1)),
    "convolution": ((4, 3, 2, 2), MatrixSpec()),
}


def twins(spec="plain", count=2, start=None, device="cpu"):
    shape, spec = SPECS[spec]
    starts = [draw(*shape, seed=i, device=device).to(BF16) if start is None else start for i in range(count)]
    if len(shape) == 4:
        starts = [s.contiguous(memory_format=torch.channels_last) for s in starts]
    return [nn.Parameter(s.clone()) for s in starts], [nn.Parameter(s.float()) for s in starts], spec


def step_both(half, full, exact, plain, seed):
    for i, (p, q) in enumerate(zip(half, full, strict=True)):
        p.grad = draw(*p.shape, seed=1000 * seed + i, device=p.device).to(BF16)
        q.grad = p.grad.float()
    exact.step()
    plain.step()


@pytest.mark.parametrize(
    ("name", "spec"),
    [*itertools.product(["muon", "normuon", "adamw"], SPECS), ("muown", "plain"), ("muonh", "bank"), ("lion", "plain")],
)
def test_exact_bf16_trains_as_float32_does_bit_for_bit(name, spec, device):
    half, full, spec = twins(spec, device=device)
    rule = variant(name).rule()
    group = {"spec": spec, "lr_mul": [1.0, 0.5]}
    exact = Optimizer([{"params": half, **group}], rule, lr=1e-3, weight_decay=0.1, exact_bf16=True)
    plain = Optimizer([{"params": full, **group}], rule, lr=1e-3, weight_decay=0.1)
    for t in range(100):
        step_both(half, full, exact, plain, t)
        if t % 10 == 9:
            assert all(torch.equal(p, nearest(q.detach().contiguous())) for p, q in zip(half, full, strict=True))
    for p, q in zip(half, full, strict=True):
        if (spec == MatrixSpec() and p.ndim == 2) or name == "adamw":
            assert torch.equal(join(p.detach().contiguous(), exact.state[p]["mantissa"]), q)
        assert not torch.equal(p.float(), q)


@pytest.mark.parametrize("name", ["muon", "normuon", "adamw"])
def test_exact_bf16_resumes_bit_for_bit(name, device):
    half, full, _ = twins(device=device)
    rule = variant(name).rule()
    exact, plain = Optimizer(half, rule, lr=1e-3, exact_bf16=True), Optimizer(full, rule, lr=1e-3)
    for t in range(10):
        step_both(half, full, exact, plain, t)
    file = io.BytesIO()
    torch.save(([p.detach() for p in half], exact.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    half = [nn.Parameter(w) for w in weights]
    exact = Optimizer(half, rule, lr=9.0, exact_bf16=True)
    exact.load_state_dict(state)
    for t in range(10, 20):
        step_both(half, full, exact, plain, t)
    for p, q in zip(half, full, strict=True):
        assert torch.equal(join(p.detach(), exact.state[p]["mantissa"]), q)
    with pytest.raises(ValueError, match="mantissa"):
        Optimizer(half, rule, lr=9.0).load_state_dict(exact.state_dict())


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_exact_bf16_holds_at_the_ends_of_the_range(lr, device):
    start = torch.tensor(SPECIAL, device=device).to(BF16)[torch.arange(40, device=device) % len(SPECIAL)].reshape(8, 5)
    start = torch.where(start.isinf(), torch.tensor(3.3895e38, dtype=BF16, device=device), start)  # the largest finite bfloat16
    half, full, _ = twins(start=start, count=1, device=device)
    rule = variant("adamw").rule()
    exact, plain = Optimizer(half, rule, lr=lr, exact_bf16=True), Optimizer(full, rule, lr=lr)
    for t in range(5):
        step_both(half, full, exact, plain, t)
        assert torch.equal(bits(join(half[0].detach(), exact.state[half[0]]["mantissa"])), bits(full[0].detach()))


def test_small_steps_are_lost_without_it_and_kept_with_it(device):
    start = torch.ones(4, 4, dtype=BF16, device=device)
    for exact in (False, True):
        p = nn.Parameter(start.clone())
        optimizer = Optimizer([p], variant("adamw").rule(), lr=1e-4, exact_bf16=exact)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        torch.testing.assert_close(p, torch.full_like(p, 0.99 if exact else 1.0), rtol=0, atol=0.004 if exact else 0)


def test_stochastic_rounding_lands_on_a_neighbour_and_is_right_on_average(device):
    x = torch.cat([draw(60, device=device), torch.tensor([0.0, 1.0, 1e-39, -3e30], device=device)])
    n = 8192
    out = torch.empty(n, len(x), dtype=BF16, device=device)
    round_stochastically(x.repeat(n, 1), torch.arange(1, n + 1, device=device).float(), out=out)
    low = (x.view(torch.int32) & -0x10000).view(torch.float32)
    high = torch.where(low == x, low, ((low.view(torch.int32) >> 16) + 1 << 16).view(torch.float32))
    assert ((out == low.to(BF16)) | (out == high.to(BF16))).all()
    gap = (high.double() - low.double()).abs()
    share = (x.double() - low.double()).abs() / gap.clamp(min=1e-300)
    error = (out.double().mean(0) - x.double()).abs()
    assert (error <= 4 * gap * (share * (1 - share) / n).sqrt()).all()
    # and along the places of one matrix, in one step
    flat = torch.full((1, 100, 100), 1.0 + 0.3 * 2**-7, device=device)
    out = torch.empty(flat.shape, dtype=BF16, device=device)
    for count in range(1, 20):
        round_stochastically(flat, torch.tensor([float(count)], device=device), out=out)
        assert abs((out > 1).double().mean() - 0.3) < 4 * (0.3 * 0.7 / 10_000) ** 0.5


def test_successive_roundings_of_an_entry_are_independent(device):
    n = 4000
    out = torch.empty(n, 50, dtype=BF16, device=device)
    round_stochastically(
        torch.full((n, 50), 1.0 + 0.5 * 2**-7, device=device), torch.arange(1, n + 1, device=device).float(), out=out
    )
    up = (out > 1).double() - 0.5
    for lag in (1, 2, 7):
        assert abs((up[lag:] * up[:-lag]).mean() * 4) < 4 / (50 * n) ** 0.5
    assert abs((up[:, 1:] * up[:, :-1]).mean() * 4) < 4 / (50 * n) ** 0.5


def test_bf16_momentum_does_not_lose_a_small_constant_gradient(device):
    """Steps of a thirtieth of the distance between two neighbours: rounding to nearest would never move."""
    p = nn.Parameter(torch.ones(64, 64, device=device))
    optimizer = Optimizer([p], variant("muon").rule(momentum_dtype="bfloat16"), lr=0.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    state["momentum_buffer"].fill_(1.0)
    p.grad = torch.full_like(p, 1.005)
    for _ in range(200):
        optimizer.step()
    assert state["momentum_buffer"].dtype == BF16
    assert state["momentum_buffer"].double().mean() == pytest.approx(1.005, abs=4 * 2**-8 / (1 - 0.95**2) ** 0.5 / 64)


@pytest.mark.parametrize("name", ["muon", "normuon", "soap_muon", "adamuon"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_bf16_momentum_resumes_exactly_and_knows_no_layout(name, dtype, device):
    rule = variant(name).rule(momentum_dtype="bfloat16")
    start = draw(12, 4, device=device).to(dtype)
    fused = nn.Parameter(start.clone())
    parts = [nn.Parameter(w.clone()) for w in start.split(4)]
    one = Optimizer([{"params": [fused], "spec": MatrixSpec(split=3)}], rule, lr=0.01)
    each = Optimizer(parts, rule, lr=0.01)
    for t in range(12):
        if t == 6:
            file = io.BytesIO()
            torch.save(one.state_dict(), file)
            file.seek(0)
            one = Optimizer([{"params": [fused], "spec": MatrixSpec(split=3)}], rule, lr=9.0)
            one.load_state_dict(torch.load(file, weights_only=True))
        fused.grad = draw(12, 4, seed=t, device=device).to(dtype)
        for p, g in zip(parts, fused.grad.split(4), strict=True):
            p.grad = g.clone()
        one.step()
        each.step()
    assert one.state[fused]["momentum_buffer"].dtype == BF16
    assert torch.equal(fused, torch.cat(parts))


@pytest.mark.parametrize("name", ["muon", "adamw", "soap_muon"])
def test_a_model_may_change_its_dtype_between_steps(name, device):
    """model.double() and model.bfloat16() keep the Parameter and change what is in it; the state follows."""
    p, q = (nn.Parameter(draw(4, 4, device=device)) for _ in range(2))
    rule = variant(name).rule()
    one, two = Optimizer([p], rule, lr=0.01), Optimizer([q], rule, lr=0.01)
    for t in range(6):
        if t == 3:
            p.data = p.data.double()
        for w, optimizer in ((p, one), (q, two)):
            w.grad = draw(4, 4, seed=t, device=device).to(w.dtype)
            optimizer.step()
    assert {v.dtype for k, v in one.state[p].items() if k != "step"} == {torch.float64}
    torch.testing.assert_close(p.detach().float(), q.detach(), rtol=0, atol=1e-4)
    p.data = p.data.bfloat16()
    p.grad = draw(4, 4, device=device).bfloat16()
    one.step()
    assert all(v.dtype == torch.float32 for v in one.state[p].values())
