"""Orthogonalizers against the SVD."""

from __future__ import annotations

import pytest
import torch

from muonlab import orthogonalize
from muonlab.optim import orthogonalizers
from muonlab.optim.coefficients import polar_express
from muonlab.optim.newton_schulz import NewtonSchulz, symmetric_product
from muonlab.optim.polar import orthogonalizer
from tests.reference import orthogonal as reference
from tests.reference.orthogonal import POLAR_EXPRESS5 as POLAR_EXPRESS


def gaussian(*shape, seed=0, dtype=torch.float32, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def polar_factor(x):
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vt


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return (a @ b / (a.norm() * b.norm())).item()


def composed(polynomials, sigma):
    for p in polynomials:
        sigma = sum(c * sigma ** (2 * i + 1) for i, c in enumerate(p))
    return sigma


LISTS = [name for name in orthogonalizers() if isinstance(orthogonalizer(name), NewtonSchulz)]


@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_polar_express_matches_svd_polar_factor(shape, dtype, device):
    g = gaussian(*shape, device=device)
    assert cosine(orthogonalize(g, "polar_express5", dtype=dtype), polar_factor(g)) >= 0.99


@pytest.mark.parametrize("method", orthogonalizers())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_equals_loop(method, dtype, device):
    g = gaussian(2, 3, 24, 40, device=device)
    whole = orthogonalize(g, method, dtype=dtype)
    one_by_one = torch.stack([torch.stack([orthogonalize(g[i, j], method, dtype=dtype) for j in range(3)]) for i in range(2)])
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-5 if device == "cpu" else 1e-4  # other kernels by shape on a GPU
    torch.testing.assert_close(whole, one_by_one, rtol=0, atol=tolerance)


# Where singular values in [0.01, 1] land, in float64: published figures, recomputed on a grid of values.
@pytest.mark.parametrize(
    ("method", "low", "high"), [("polar_express5", 0.859, 1.141), ("you5", 0.978, 1.032), ("keller5", 0.682, 1.134)]
)
def test_singular_values_land_in_the_published_range(method, low, high):
    chosen = orthogonalizer(method)
    sigma = composed(chosen.polynomials, torch.logspace(-2, 0, 4001, dtype=torch.float64) / chosen.safety)
    assert sigma.min().item() == pytest.approx(low, abs=5e-4)
    assert sigma.max().item() == pytest.approx(high, abs=5e-4)


def test_cubic_needs_its_ten_steps(device):
    g = gaussian(256, 512, dtype=torch.float64, device=device)
    spread = {k: torch.linalg.svdvals(orthogonalize(g, "cubic", steps=k)) for k in (5, 10)}
    assert 0.10 < spread[5].min() < 0.2
    assert 0.6 < spread[5].max() < 0.75
    assert 0.75 < spread[10].min() < 0.9
    assert spread[10].max() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("method", LISTS)
def test_float64_composition_matches_the_singular_values(method, device):
    """The iteration with matrix products equals the scalar polynomials on the singular values."""
    chosen = orthogonalizer(method)
    g = gaussian(20, 31, dtype=torch.float64, device=device)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    norm = g.norm() if chosen.norm == "frobenius" else (s**4).sum() ** 0.25
    s = composed(chosen.polynomials, s / (norm * chosen.safety))
    torch.testing.assert_close(orthogonalize(g, method), u @ torch.diag(s) @ vt, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", orthogonalizers())
def test_transposed_input_gives_the_transposed_result(method, device):
    g = gaussian(16, 40, dtype=torch.float64, device=device)
    torch.testing.assert_close(orthogonalize(g.mT, method), orthogonalize(g, method).mT)


def test_size_of_the_gradient_does_not_matter(device):
    g = gaussian(16, 24, device=device)
    for scale in (1e-5, 1e6):
        torch.testing.assert_close(
            orthogonalize(g * scale, dtype=torch.float32), orthogonalize(g, dtype=torch.float32), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("shape", [(4, 6), (1, 5), (5, 1), (1, 1), (0, 4), (3, 0), (0, 2, 2)])
def test_zero_and_empty_matrices_stay_what_they_are(shape, device):
    result = orthogonalize(torch.zeros(shape, device=device))
    assert result.shape == shape
    assert torch.equal(result, torch.zeros(shape, device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_input_left_alone(dtype, device):
    g = gaussian(8, 12, dtype=dtype, device=device)
    before = g.clone()
    assert orthogonalize(g).dtype == dtype
    assert torch.equal(g, before)


def test_a_parameter_is_taken_as_it_is(device):
    p = torch.nn.Parameter(gaussian(8, 12, device=device))
    assert torch.equal(orthogonalize(p), orthogonalize(p.detach()))


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


def test_large_and_tiny_norms_in_bfloat16_do_not_overflow(device):
    g = gaussian(8, 8, device=device) * 1e18
    assert torch.isfinite(orthogonalize(g)).all()
    assert isinstance(orthogonalizer("keller5"), NewtonSchulz)


@pytest.mark.parametrize("method", ["cayley", "svd", "exact"])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16), (1, 7), (7, 1)])
def test_exact_methods_orthogonalize_any_shape(method, shape, device):
    g = gaussian(*shape, dtype=torch.float64, device=device)
    torch.testing.assert_close(orthogonalize(g, method), polar_factor(g), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["cayley", "exact"])
def test_exact_methods_stand_ill_conditioned_matrices(method, device):
    u, _, vt = torch.linalg.svd(gaussian(20, 30, dtype=torch.float64, device=device), full_matrices=False)
    g = u @ torch.diag(torch.logspace(0, -6, 20, dtype=torch.float64, device=device)) @ vt
    torch.testing.assert_close(orthogonalize(g, method), u @ vt, rtol=0, atol=1e-6)


# The list that modded-nanogpt and nanochat print, from arXiv 2505.16932's own code: l = 1e-3, 5 steps, safety 2e-2, cushion 0.02.
def test_the_generator_makes_the_published_list():
    for made, published in zip(polar_express(), POLAR_EXPRESS, strict=True):
        assert made == pytest.approx(published, rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("l", "steps", "safety", "cushion"), [(1e-3, 5, 2e-2, 0.02), (1e-4, 7, 1e-2, 0.02), (0.1, 3, 0.0, 0.0), (0.9, 4, 0, 0)]
)
def test_the_generator_matches_an_independent_one(l, steps, safety, cushion):  # noqa: E741 - the paper's letter
    """The reference finds each quintic from its double roots by bisection, not by exchange."""
    theirs = reference.polar_express(l, steps, safety, cushion)
    for made, other in zip(polar_express(l=l, steps=steps, safety=safety, cushion=cushion), theirs, strict=True):
        assert made == pytest.approx(other, rel=1e-7, abs=1e-7)


def low_rank(kind, rank, m, n, device="cpu"):
    """Matrices of few directions, or of one that dominates: where rounding has nothing to average over."""
    u, v = (torch.linalg.qr(gaussian(3, size, rank, seed=seed, device=device)).Q for seed, size in ((1, m), (2, n)))
    s = {
        "equal": torch.ones(3, 1, rank, device=device),
        "uneven": 0.2 + torch.rand(3, 1, rank, generator=torch.Generator().manual_seed(3)).to(device),
        "one": torch.tensor([1.0] + [0.05] * (rank - 1), device=device),
    }[kind]
    return (u * s) @ v.mT


@pytest.mark.parametrize("method", [name for name in LISTS if name != "polar_express"])
@pytest.mark.parametrize("kind", ["equal", "uneven", "one"])
def test_bfloat16_does_not_blow_up_where_few_directions_dominate(method, kind, device):
    """A Gram iteration without restarts does, by many orders of magnitude."""
    for rank, m, n in [(1, 2, 30), (2, 2, 30), (2, 4, 32), (8, 8, 32), (16, 16, 64), (2, 64, 128), (4, 128, 512), (2, 64, 64)]:
        result = orthogonalize(low_rank(kind, rank, m, n, device=device), method, dtype=torch.bfloat16)
        assert torch.linalg.matrix_norm(result.double(), 2).max() < 1.4


def spectrum(name, m=192, n=768, device="cpu"):
    """The spectra by which "fast" was chosen, at a size that a test can afford."""
    if name == "gaussian":
        return gaussian(m, n, device=device)
    k = torch.arange(1, m + 1, dtype=torch.float64, device=device)
    values = {"power law": 1 / k, "log-uniform 1e-2": 10 ** (-2 * k / m), "log-uniform 1e-3": 10 ** (-3 * k / m)}
    values["log-uniform 1e-6"] = 10 ** (-6 * k / m)
    u, v = (torch.linalg.qr(gaussian(size, m, seed=size, dtype=torch.float64, device=device)).Q for size in (m, n))
    return ((u * values[name]) @ v.mT).float()


@pytest.mark.parametrize("name", ["gaussian", "power law", "log-uniform 1e-2", "log-uniform 1e-3", "log-uniform 1e-6"])
@pytest.mark.parametrize("n", [192, 768])
def test_fast_is_nowhere_less_accurate_than_keller5_in_bfloat16(name, n, device):
    g = spectrum(name, n=n, device=device)
    exact = polar_factor(g)
    fast, keller = ((orthogonalize(g, method, dtype=torch.bfloat16) - exact).norm() for method in ("fast", "keller5"))
    assert fast <= keller


@pytest.mark.parametrize("m", [768, 800, 1000])
def test_products_by_blocks_equal_whole_ones(m):
    a = gaussian(2, m, 40, dtype=torch.float64)
    r = a @ a.mT / m
    torch.testing.assert_close(symmetric_product(a, a.mT), a @ a.mT)
    torch.testing.assert_close(symmetric_product(r, r, add=r, beta=-2.0, alpha=0.5), 0.5 * r @ r - 2 * r)


def test_a_call_in_words_says_everything():
    chosen = orthogonalizer("polar_express(l=1e-4, steps=6, cushion=0.05, dtype='float32')")
    assert chosen.polynomials == polar_express(l=1e-4, steps=6, cushion=0.05)
    assert chosen.dtype == torch.float32
    assert orthogonalizer("keller5", coefficients=(2.0, -1.5, 0.5), steps=3).polynomials == ((2.0, -1.5, 0.5),) * 3
    for wrong, words in [
        ("cubic(steps=)", "as 'cubic"),
        ("cubic(3)", "as 'cubic"),
        ("cubic(stepps=3)", "did you mean 'steps'"),
        ("cubic(steps=0)", "1 to 100"),
        ("svd(steps=3)", "no steps"),
        ("polar_express(l=2)", "0 < l < 1"),
        ("cubic(dtype='int8')", "floating dtype"),
        ("cubic(coefficients='x')", "c0, c1"),
        ("__import__('os')", "orthogonalizer"),
    ]:
        with pytest.raises(ValueError, match=words):
            orthogonalizer(wrong)


def test_a_zero_matrix_stays_zero_in_float16_products(device):
    assert torch.equal(
        orthogonalize(torch.zeros(4, 6, device=device), "keller5", dtype=torch.float16), torch.zeros(4, 6, device=device)
    )


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("cubic(method='you5')", "unknown option 'method'"),
        ("cubic(steps=2.5)", "1 to 100 steps, got 2.5"),
        ("fast(steps='3')", "1 to 100 steps, got '3'"),
        ("cubic(steps=1000)", "1 to 100 steps, got 1000"),
        ("polar_express(l='small')", "expected l to be a number, got 'small'"),
        ("keller5(coefficients=(1e400, 2, 3))", "expected coefficients"),
    ],
)
def test_wrong_options_in_words_are_refused_in_words(written, message):
    with pytest.raises(ValueError, match=message):
        orthogonalizer(written)
