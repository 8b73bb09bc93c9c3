"""The kernels on a GPU, or in Triton's interpreter on the CPU. Run by test_kernels.py in a process with TRITON_INTERPRET set so."""

from __future__ import annotations

import pytest
import torch

from muonlab.optim import kernels, newton_schulz
from muonlab.optim.kernels import switch, triangle
from muonlab.optim.polar import orthogonalizer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gaussian(*shape, seed=0, dtype=torch.float32, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device).to(dtype)


def symmetric(*shape, seed=0, dtype=torch.float32, device="cpu"):
    x = gaussian(*shape, seed=seed, dtype=dtype, device=device)
    return x + x.mT


def assert_rounded(got, a, b, add=None, beta=1.0, alpha=1.0):
    """got is the lower triangle of the product in float64, mirrored, but for a float32 sum and one rounding."""
    a, b = a.double(), b.double()
    expected, terms = alpha * (a @ b), abs(alpha) * (a.abs() @ b.abs())
    if add is not None:
        expected, terms = expected + beta * add.double(), terms + abs(beta) * add.double().abs()
    expected, terms = (x.tril() + x.tril(-1).mT for x in (expected, terms))
    sums = (a.shape[-1] + 3) * torch.finfo(torch.float32).eps * terms
    assert torch.equal(got, got.mT)
    assert ((got.double() - expected).abs() <= torch.finfo(got.dtype).eps * expected.abs() + sums + 1e-7).all()


@pytest.fixture
def calls(monkeypatch):
    """Switches the kernels on for one test, and lists the sizes m that reached them."""
    seen = []
    launch = triangle.launch

    def spy(a, b, add, beta, alpha, out):
        # Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds to nearest: over an iteration that adds up.
        # So here torch rounds.
        seen.append(a.shape[-2])
        if a.is_cuda:
            launch(a, b, add, beta, alpha, out)
            return
        wide = torch.empty_like(out, dtype=torch.float32)
        launch(a, b, add, beta, alpha, wide)
        out.copy_(wide)

    monkeypatch.setattr(triangle, "launch", spy)
    kernels.enable()
    yield seen
    kernels.enable(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 70, 100), (3, 1, 5), (1, 130, 3), (1, 257, 65)])
def test_gram_matrix(shape, dtype, device):
    x = gaussian(*shape, dtype=dtype, device=device)
    assert_rounded(kernels.symmetric_product(x, x.mT), x, x.mT)
    tall = x.mT.contiguous().mT
    assert_rounded(kernels.symmetric_product(tall, tall.mT), x, x.mT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [64, 100, 193])
def test_polynomial_of_a_symmetric_matrix(m, dtype, device):
    a = symmetric(2, m, m, dtype=dtype, device=device)
    got = kernels.symmetric_product(a, a, add=a, beta=-4.775, alpha=2.0315)
    assert_rounded(got, a, a, a, -4.775, 2.0315)


def test_one_triangle_is_computed_and_mirrored(device):
    a, b, add = (
        gaussian(2, 330, 40, device=device),
        gaussian(2, 40, 330, seed=1, device=device),
        symmetric(2, 330, 330, device=device),
    )
    assert_rounded(kernels.symmetric_product(a, b, add, 0.5), a, b, add, 0.5)  # ab is not symmetric


def test_any_strides(device):
    wide = gaussian(3, 140, 180, device=device)
    a, b = wide[:, ::2, 1::3], wide[:, ::2, 1::3].mT
    assert_rounded(kernels.symmetric_product(a, b), a, b)
    one = gaussian(70, 30, device=device)
    a, add = one.expand(3, 70, 30), torch.ones((), device=device).expand(3, 70, 70)
    assert_rounded(kernels.symmetric_product(a, a.mT, add), a, a.mT, add)


def test_out_is_written_and_nothing_around_it(device):
    x, around = gaussian(2, 70, 40, device=device), torch.full((2, 90, 100), 7.0, device=device)
    out = around[:, 10:80, 20:90].mT
    assert kernels.symmetric_product(x, x.mT, out=out) is out
    assert_rounded(out, x, x.mT)
    out.fill_(7)
    assert (around == 7).all()


def test_empty_and_beta_zero(device):
    assert kernels.symmetric_product(torch.ones(0, 4, 4, device=device), torch.ones(0, 4, 4, device=device)).shape == (0, 4, 4)
    assert kernels.symmetric_product(torch.ones(2, 0, 4, device=device), torch.ones(2, 4, 0, device=device)).shape == (2, 0, 0)
    assert (kernels.symmetric_product(torch.ones(1, 3, 0, device=device), torch.ones(1, 0, 3, device=device)) == 0).all()
    nan = torch.full((1, 3, 3), torch.nan, device=device)
    assert (
        kernels.symmetric_product(torch.ones(1, 3, 2, device=device), torch.ones(1, 2, 3, device=device), nan, beta=0) == 2
    ).all()  # as torch.baddbmm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "shape"), [("fast", (260, 300)), ("polar_express5", (310, 256))])
def test_orthogonalize_as_the_plain_path_does(method, shape, dtype, calls, device):
    x = gaussian(*shape, device=device)
    exact = orthogonalizer(method, steps=3, dtype=torch.float64)(x.double())
    assert not calls  # float64 has no kernel
    fused = orthogonalizer(method, steps=3, dtype=dtype)(x)
    assert calls
    assert set(calls) == {min(shape[-2:])}
    kernels.enable(False)
    plain = orthogonalizer(method, steps=3, dtype=dtype)(x)
    error, usual = (fused - exact).norm(), (plain - exact).norm()
    assert error <= 1.2 * usual
    assert (fused - plain).norm() <= 1.5 * usual


def test_small_matrices_stay_on_the_plain_path(calls, device):
    x = gaussian(1, switch._FROM - 1, 300, device=device)
    newton_schulz.symmetric_product(x, x.mT)
    assert not calls


def test_compiled_code_stays_on_the_plain_path(calls, device):
    x = gaussian(1, 256, 300, device=device)
    compiled = torch.compile(lambda a: newton_schulz.symmetric_product(a, a.mT), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), torch.bmm(x, x.mT))
    assert not calls
