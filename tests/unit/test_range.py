"""The size of a gradient is no matter: polar factors and whole steps from 1e-35 to 1e35, in every dtype."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import muonlab
from muonlab.optim import Muon, orthogonalize, orthogonalizers
from muonlab.optim.checks import check_gradients
from muonlab.optim.magnitude import bounded, to_unit_range
from muonlab.optim.variants import variants

EXACT = ("svd", "exact", "cayley")
# Of a singular value: rounding of the products, carried on by the slopes of the polynomials. Polar Express is steep beyond 1.
ROUNDING = {"float32": 2e-3, "bfloat16": 0.5, "float16": 0.15}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def matrices(draw_):
    """Of any rank, also with one side of 1 and at huge aspects."""
    m, n = draw_(st.sampled_from([(1, 1), (1, 40), (40, 1), (3, 700), (700, 3), (65, 96), (80, 64), (130, 66), (17, 23)]))
    rank = draw_(st.integers(1, min(m, n)))
    seed = draw_(st.integers(0, 2**31))
    return draw(m, rank, seed=seed) @ draw(rank, n, seed=seed + 1)


@settings(max_examples=150, deadline=None)
@given(
    g=matrices(),
    exponent=st.floats(-35, 35),
    method=st.sampled_from([m for m in orthogonalizers() if m not in EXACT]),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_the_polar_factor_of_a_multiple_is_that_of_the_matrix(g, exponent, method, dtype):
    g = g / g.abs().max()
    one = orthogonalize(g, method, dtype=dtype)
    other = orthogonalize(g * 10.0**exponent, method, dtype=dtype)
    assert other.isfinite().all()
    # Directions that only rounding made (of a matrix of low rank) point anywhere: the others are compared.
    left, s, right = torch.linalg.svd(g.double(), full_matrices=False)
    real = s > 0.05 * s[0]
    one, other = ((left.mT @ x.double() @ right.mT)[real][:, real] for x in (one, other))
    assert torch.linalg.matrix_norm(one - other, 2) <= ROUNDING[dtype]


@settings(max_examples=60, deadline=None)
@given(
    g=matrices(),
    power=st.integers(-90, 120),
    method=st.sampled_from([m for m in orthogonalizers() if m not in EXACT]),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_a_power_of_two_changes_no_bit(g, power, method, dtype):
    g = g / g.abs().max()
    one, other = (orthogonalize(x, method, dtype=dtype) for x in (g, g * 2.0**power))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("c", [1e-35, 1e-20, 1e20, 1e35])
def test_exact_methods_stand_any_size(method, c):
    g = draw(30, 50)
    torch.testing.assert_close(orthogonalize(g * c, method), orthogonalize(g, method), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("method", [m for m in orthogonalizers() if m not in EXACT])
def test_every_product_dtype_is_near_float64(method, dtype):
    g = 30 * draw(96, 160)  # entries of 30 were NaN in float16 once
    exact = orthogonalize(g.double(), method, dtype="float64")
    error = (orthogonalize(g, method, dtype=dtype).double() - exact).norm() / exact.norm()
    assert error < {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.01}[dtype]


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_bad_matrix_spoils_itself_alone_and_zero_stays_zero(dtype, bad):
    stack = draw(4, 70, 80)
    good = orthogonalize(stack, "keller5", dtype=dtype)
    stack[1] = 0
    stack[2, 3, 4] = bad
    found = orthogonalize(stack, "keller5", dtype=dtype)
    torch.testing.assert_close(found[[0, 3]], good[[0, 3]], rtol=0, atol=0)
    assert (found[1] == 0).all()
    assert not found[2].isfinite().all() or bad == 0.0


def test_powers_of_two_at_the_ends_of_the_range():
    x = torch.tensor([0.0, 1e-45, 1.2e-38, 0.75, 1.0, 1.99, 1e20, 3.4e38]).reshape(-1, 1, 1)
    scaled = (x * to_unit_range(x)).flatten()
    assert scaled[0] == 0
    assert 0 < scaled[1] < 1  # the smallest number there is
    assert ((scaled[2:-1] >= 1) & (scaled[2:-1] < 2)).all()
    assert 1 <= scaled[-1] < 4  # 2¹²⁷ has no inverse in the normal range
    assert (to_unit_range(x).log2() % 1 == 0).all()
    small, large = draw(2, 5, 6), draw(2, 5, 6) * 1e30
    assert torch.equal(bounded(small), small)
    assert bounded(large).abs().max() < 2**51
    one, other = (x / x.abs().amax((-2, -1), keepdim=True) for x in (bounded(large), large))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", list(variants()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("c", [1e-35, 1e-20, 1e-9, 1e9, 1e20, 1e35])
def test_finite_gradients_of_any_size_leave_finite_weights(name, dtype, c):
    net = nn.Sequential(nn.Linear(70, 80), nn.ReLU(), nn.Linear(80, 66), nn.LayerNorm(66)).to(dtype)
    # Plain gradient descent moves as far as the gradient is large: it is to keep its rate away from the overflow.
    optimizer = muonlab.optimizer(net, name, lr=1e-36 if name == "sgd" and c > 1 else 0.02, weight_decay=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    for t in range(12):
        for i, p in enumerate(net.parameters()):
            p.grad = (draw(*p.shape, seed=100 * t + i).double() * c).to(dtype)
        optimizer.step()
    assert optimizer.skipped == 0
    assert all(p.isfinite().all() for p in net.parameters())
    if name != "sgd":
        assert not torch.equal(before[0], net[0].weight)


def trained(scale, name="muon", **options):
    """The loss after 60 steps of a small regression whose loss is multiplied by `scale`, as a fraction of the first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    x, y = draw(64, 16, seed=1), draw(64, 4, seed=2)
    optimizer = muonlab.optimizer(net, name, lr=0.02, aux="lion", **options)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        (loss * scale).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] / losses[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e25])
def test_a_loss_times_a_constant_trains_as_the_loss_does(scale):
    options = {"orthogonalizer": "keller5(dtype='float32')"}
    assert trained(scale, **options) == pytest.approx(trained(1.0, **options), rel=0.02)


@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_the_drop_in_equals_torch_wherever_torch_does_not_overflow(exponent):
    """Its eps, 1e-7, shrinks smaller gradients, as torch's does."""
    ours, theirs = (nn.Parameter(draw(64, 48)) for _ in range(2))
    one, two = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1)
    for t in range(3):
        ours.grad = draw(64, 48, seed=t + 1) * 10.0**exponent
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_the_drop_in_stays_finite_where_torch_overflows():
    ours = nn.Parameter(draw(64, 48))
    before = copy.deepcopy(ours)
    one = Muon([ours], lr=0.1)
    for t in range(3):
        ours.grad = draw(64, 48, seed=t + 1) * 1e30
        one.step()
    assert ours.isfinite().all()
    assert 0.01 < (ours - before).norm() / before.norm() < 1


@pytest.mark.parametrize("value", [1e19, 1e30, 3.4e38])
def test_a_large_finite_gradient_is_finite(value):
    p = nn.Parameter(torch.ones(50, 60))
    p.grad = torch.full_like(p, value)
    groups = [{"params": [p]}]
    assert check_gradients(groups, "skip")
    assert check_gradients(groups, "raise")
    p.grad[3, 4] = float("inf")
    assert not check_gradients(groups, "skip")
    with pytest.raises(FloatingPointError, match="1 of 1 gradients are not finite"):
        check_gradients(groups, "raise")


@pytest.mark.parametrize("method", ["keller5", "fast", "cayley", "svd"])
@pytest.mark.parametrize("c", [1e-250, 1e-200, 1e200, 1e250])
def test_float64_has_its_own_range(method, c):
    g = draw(20, 30).double()
    torch.testing.assert_close(orthogonalize(g * c, method), orthogonalize(g, method), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", EXACT)
def test_a_bad_matrix_spoils_itself_alone_in_exact_methods_too(method):
    stack = draw(3, 8, 9)
    good = orthogonalize(stack, method)
    stack[1, 2, 3] = float("nan")
    found = orthogonalize(stack, method)
    torch.testing.assert_close(found[[0, 2]], good[[0, 2]])
    assert found[1].isnan().any()
