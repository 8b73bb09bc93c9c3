"""Orthogonalization written on the singular values: what the published matrix iterations compute, in float64.

An odd matrix polynomial c0 X + c1 (XXᵀ)X + c2 (XXᵀ)²X + ... keeps the singular vectors of X and acts on each singular
value alone. So the singular values are taken out, acted on, and put back.
"""

from __future__ import annotations

import math

import torch

KELLER = [(3.4445, -4.7750, 2.0315)] * 5  # KellerJordan/Muon
YOU5 = [  # YouJiacheng, in modded-nanogpt
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
POLAR_EXPRESS5 = [  # arXiv 2505.16932 for l = 1e-3, safety 2e-2, cushion 0.02; goes with safety=1.02 in the norm
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
DSV4_10 = [*([(3.4445, -4.7750, 2.0315)] * 8), *([(2.0, -1.5, 0.5)] * 2)]
CONVERGED12 = [(2.0, -1.5, 0.5)] * 12
CUBIC = [(1.5, -0.5, 0.0)] * 10  # Newton-Schulz; the number of steps is free: slice or repeat


def odd_polynomials(x, polynomials, *, norm="frobenius", safety=1.0):
    """σ ← σ / (norm · safety), then for each (c0, c1, c2, ...) in turn σ ← c0 σ + c1 σ³ + c2 σ⁵ + ...

    norm "frobenius": (Σσ²)^(1/2); "schatten4": (Σσ⁴)^(1/4). No epsilon is added to the norm; a zero matrix gives zero.
    Ambiguity: the safety factor multiplies either norm, and is not cancelled by taking one norm after the other.
    """
    x = x.double()
    power = {"frobenius": 2, "schatten4": 4}[norm]
    if not bool(x.any()):
        return torch.zeros_like(x)
    u, sigma, vt = torch.linalg.svd(x, full_matrices=False)
    sigma = sigma / sigma[0]  # no overflow in the powers; the normalization that follows does not see it
    sigma = sigma / ((sigma**power).sum() ** (1 / power) * safety)
    for coefficients in polynomials:
        sigma = sum(c * sigma ** (2 * k + 1) for k, c in enumerate(coefficients))
    return u @ torch.diag(sigma) @ vt


def polar(x):
    """U Vᵀ of the singular value decomposition, without the singular values below 1e-12 of the largest."""
    x = x.double()
    u, sigma, vt = torch.linalg.svd(x, full_matrices=False)
    kept = (sigma > 1e-12 * sigma[0]).double()
    return u @ torch.diag(kept) @ vt


def keller(x):
    """The orthogonalization of the original Muon, the default everywhere here."""
    return odd_polynomials(x, KELLER)


def best_quintic(low, high):
    """The odd quintic p with the least max |1 − p| on [low, high], from its two turning points q < r.

    p'(x) = k (x² − q²)(x² − r²), so p(x) = k (x⁵/5 − (q² + r²) x³/3 + q² r² x). The minimax p equioscillates:
    p(low) = p(r) = 1 − E and p(q) = p(high) = 1 + E. The differences p(high) − p(q) and p(r) − p(low) hold the squares
    (high − q)² and (r − low)²; what is left after division, set to zero, is

        5 r² (high + 2q) = 3 high³ + 6 high² q + 4 high q² + 2 q³    and    5 q² (low + 2r) = 3 low³ + 6 low² r + 4 low r² + 2 r³.

    The first gives r from q; the second is then one equation in q, negative at q = low and positive at q = high: bisection.
    Last, k from p(low) + p(high) = 2. (The published code runs a Remez exchange instead; below a relative width of 5e-6 it
    returns the limit of the interval [high, high], and so does this.)
    """
    if low / high >= 1 - 5e-6:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5

    def right(end, q):
        return 3 * end**3 + 6 * end**2 * q + 4 * end * q**2 + 2 * q**3

    def partner(q):
        return math.sqrt(right(high, q) / (5 * (high + 2 * q)))

    below, above = low, high
    for _ in range(200):
        q = (below + above) / 2
        r = partner(q)
        if 5 * q**2 * (low + 2 * r) - right(low, r) < 0:
            below = q
        else:
            above = q
    q = (below + above) / 2
    r = partner(q)

    def shape(x):
        return x**5 / 5 - (q**2 + r**2) * x**3 / 3 + q**2 * r**2 * x

    k = 2 / (shape(low) + shape(high))
    return k * q**2 * r**2, -k * (q**2 + r**2) / 3, k / 5


def polar_express(l, steps, safety, cushion):  # noqa: E741
    """The coefficients of arXiv 2505.16932 for singular values in [l, 1]: greedy best quintics, composed.

    Each step: the best quintic on [max(l, cushion·u), u]; where the cushion bites, recentred so that 1 − p(l) = p(u) − 1;
    every step but the last divides its argument by 1 + safety; then l ← p(l) with that polynomial, and u ← 2 − l.
    """
    u, found = 1.0, []
    for i in range(steps):
        a, b, c = best_quintic(max(l, cushion * u), u)
        if cushion * u > l:
            k = 2 / ((a * l + b * l**3 + c * l**5) + (a * u + b * u**3 + c * u**5))
            a, b, c = k * a, k * b, k * c
        if i < steps - 1:
            f = 1 + safety
            a, b, c = a / f, b / f**3, c / f**5
        found.append((a, b, c))
        l = a * l + b * l**3 + c * l**5  # noqa: E741
        u = 2 - l
    return found
