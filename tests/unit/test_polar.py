"""Orthogonalizers against the SVD."""

from __future__ import annotations

import pytest
import torch

from muonlab import orthogonalize
from muonlab.optim import orthogonalizers
from muonlab.optim.polar import NewtonSchulz, orthogonalizer


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def polar_factor(x):
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vt


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_polar_express_matches_svd_polar_factor(shape, dtype):
    g = gaussian(*shape)
    assert cosine(orthogonalize(g, "polar_express5", dtype=dtype), polar_factor(g)) >= 0.99


@pytest.mark.parametrize("method", orthogonalizers())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_equals_loop(method, dtype):
    g = gaussian(2, 3, 24, 40)
    whole = orthogonalize(g, method, dtype=dtype)
    one_by_one = torch.stack([torch.stack([orthogonalize(g[i, j], method, dtype=dtype) for j in range(3)]) for i in range(2)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(whole, one_by_one, rtol=0, atol=tolerance)


# Where singular values in [0.01, 1] land, in float64: published figures, recomputed on a grid of values.
@pytest.mark.parametrize(
    ("method", "low", "high"), [("polar_express5", 0.859, 1.141), ("you5", 0.978, 1.032), ("keller5", 0.682, 1.134)]
)
def test_singular_values_land_in_the_published_range(method, low, high):
    chosen = orthogonalizer(method)
    sigma = torch.logspace(-2, 0, 4001, dtype=torch.float64) / chosen.safety
    for a, b, c in chosen.coefficients:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    assert sigma.min().item() == pytest.approx(low, abs=5e-4)
    assert sigma.max().item() == pytest.approx(high, abs=5e-4)


def test_cubic_needs_its_ten_steps():
    g = gaussian(256, 512, dtype=torch.float64)
    spread = {k: torch.linalg.svdvals(orthogonalize(g, "cubic", steps=k)) for k in (5, 10)}
    assert 0.10 < spread[5].min() < 0.2
    assert 0.6 < spread[5].max() < 0.75
    assert 0.75 < spread[10].min() < 0.9
    assert spread[10].max() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("method", orthogonalizers())
def test_float64_composition_matches_the_singular_values(method):
    """The iteration with matrix products equals the scalar polynomials on the singular values."""
    chosen = orthogonalizer(method)
    g = gaussian(20, 31, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / (g.norm() * chosen.safety)
    for a, b, c in chosen.coefficients:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalize(g, method), u @ torch.diag(s) @ vt, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", orthogonalizers())
def test_transposed_input_gives_the_transposed_result(method):
    g = gaussian(16, 40, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(g.mT, method), orthogonalize(g, method).mT)


def test_size_of_the_gradient_does_not_matter():
    g = gaussian(16, 24)
    for scale in (1e-5, 1e6):
        torch.testing.assert_close(
            orthogonalize(g * scale, dtype=torch.float32), orthogonalize(g, dtype=torch.float32), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("shape", [(4, 6), (1, 5), (5, 1), (1, 1), (0, 4), (3, 0), (0, 2, 2)])
def test_zero_and_empty_matrices_stay_what_they_are(shape):
    result = orthogonalize(torch.zeros(shape))
    assert result.shape == shape
    assert torch.equal(result, torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_input_left_alone(dtype):
    g = gaussian(8, 12, dtype=dtype)
    before = g.clone()
    assert orthogonalize(g).dtype == dtype
    assert torch.equal(g, before)


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="did you mean 'keller5'"):
        orthogonalize(torch.ones(2, 2), "keler5")
    with pytest.raises(ValueError, match=r"expected a matrix .* got shape \(3,\)"):
        orthogonalize(torch.ones(3))
    with pytest.raises(TypeError, match="int64"):
        orthogonalize(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="complex"):
        orthogonalize(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="1 to 5 steps"):
        orthogonalize(torch.ones(2, 2), "you5", steps=6)


def test_large_and_tiny_norms_in_bfloat16_do_not_overflow():
    g = gaussian(8, 8) * 1e18
    assert torch.isfinite(orthogonalize(g)).all()
    assert isinstance(orthogonalizer("keller5"), NewtonSchulz)
