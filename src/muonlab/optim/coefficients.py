"""Odd polynomials σ ← c₀σ + c₁σ³ + c₂σ⁵ + …, composed so that every singular value ends near 1.

Each list says where it comes from. `polar_express` makes the optimal list for any range of singular values.
"""

from __future__ import annotations

import math

import torch

Polynomial = tuple[float, ...]  # (c₀, c₁, c₂, …): the coefficients of σ, σ³, σ⁵, …

# The textbook Newton–Schulz step. It converges to 1, slowly: five steps leave the singular values of a 256×512
# Gaussian at 0.14–0.68, ten at 0.81–1.00.
CUBIC: Polynomial = (1.5, -0.5)

# Keller Jordan, https://kellerjordan.github.io/posts/muon/ : the slope at zero is as large as it can be while σ stays
# within about 0.68–1.13; it does not converge to 1. torch.optim.Muon's default.
KELLER: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)

# Converges to 1 from anywhere in (0, √3), quadratically once it is near: the closing steps of DeepSeek-V4's list.
CONVERGING: Polynomial = (2.0, -1.5, 0.5)

# YouJiacheng, five different quintics (modded-nanogpt): σ in [0.01, 1] lands in 0.978–1.032.
YOU5: tuple[Polynomial, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Polar Express, arXiv 2505.16932, as modded-nanogpt prints it: `polar_express()` below makes the same list.
POLAR_EXPRESS5: tuple[Polynomial, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Three quintics of Polar Express and a heptic fitted to them, for a matrix normalized by ‖XXᵀ‖_F^(1/2): σ in [0.004, 1.02]
# lands in 0.75–1.25. Fewer products than five quintics, and nearer to the polar factor than KELLER's on every spectrum
# that was tried. benchmarks/fast_coefficients.py makes it; benchmarks/results/polar_accuracy.json has the errors.
FAST: tuple[Polynomial, ...] = (
    (8.2000, -23.0025, 16.3300),
    (4.0284, -2.8720, 0.5182),
    (3.6636, -2.6329, 0.4934),
    (3.3081, -4.1179, 2.0814, -0.3385),
)


def polar_express(
    *,
    l: float = 1e-3,  # noqa: E741 - the paper's letter
    steps: int = 5,
    safety: float = 2e-2,
    cushion: float = 0.02,
) -> tuple[Polynomial, ...]:
    """The composition of `steps` quintics that is optimal for singular values in [l, 1] (arXiv 2505.16932, Algorithm 1).

    Every polynomial but the last is made for values up to 1 + safety, so that rounding cannot push one out of its range.
    cushion: a quintic is never made for a range wider than [cushion, 1]·u, which keeps its slope bounded. Raises ValueError
    for values out of range.
    """
    if not 0 < l < 1 or steps < 1 or safety < 0 or not 0 <= cushion < 1:
        raise ValueError(
            "polar_express: expected 0 < l < 1, steps >= 1, safety >= 0 and 0 <= cushion < 1, "
            f"got l={l}, steps={steps}, safety={safety}, cushion={cushion}"
        )
    low, high = float(l), 1.0
    polynomials = []
    for i in range(steps):
        a, b, c = _optimal_quintic(max(low, cushion * high), high)
        if cushion * high > low:  # made for a narrower range: centre the values at its ends around 1 again
            factor = 2 / (_at((a, b, c), low) + _at((a, b, c), high))
            a, b, c = a * factor, b * factor, c * factor
        if i < steps - 1:
            f = 1 + safety
            a, b, c = a / f, b / f**3, c / f**5
        polynomials.append((a, b, c))
        low = _at((a, b, c), low)
        high = 2 - low
    return tuple(polynomials)


def _at(polynomial: Polynomial, sigma: float) -> float:
    return sum(c * sigma ** (2 * i + 1) for i, c in enumerate(polynomial))


def _optimal_quintic(low: float, high: float) -> Polynomial:
    """The odd quintic p that minimizes max |1 − p| on [low, high]: Remez' exchange, four alternating extrema."""
    if low / high >= 1 - 5e-6:  # the range is a point: the limit, which touches 1 to third order
        return (15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5)
    inner = ((3 * low + high) / 4, (low + 3 * high) / 4)
    error, a, b, c = math.inf, 0.0, 0.0, 0.0
    for _ in range(100):  # converges quadratically: about six rounds
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, new_error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(new_error - error) <= 1e-15:
            break
        error = new_error
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
    return (a, b, c)
