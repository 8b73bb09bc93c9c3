"""Makes the list of polynomials behind orthogonalizer "fast": run it, and compare with FAST in optim/coefficients.py.

Three quintics from the Polar Express generator bring the singular values of X / ‖XXᵀ‖_F^(1/2) near 1; one heptic, fitted to them,
does the rest. The fit makes the largest error relative to five steps of Keller Jordan's quintic as small as it gets, over the
spectra of benchmarks/spectra.py. In the last polynomial's coefficients that is convex: a p-norm with p = 40 stands for the
maximum.

python benchmarks/fast_coefficients.py
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from spectra import spectra

from muonlab.optim.coefficients import FAST, KELLER, polar_express

LOW, CUSHION, SAFETY = 2e-3, 0.01, 0.02  # chosen from a coarse grid of each by the same measure
SHARPNESS = 40


def compose(sigma: np.ndarray, polynomials) -> np.ndarray:
    for p in polynomials:
        sigma = sum(c * sigma ** (2 * i + 1) for i, c in enumerate(p))
    return sigma


def error(sigma: np.ndarray) -> float:
    return float(np.sqrt(np.mean((sigma - 1) ** 2)))


def main() -> None:
    values = {name: s.numpy() for name, s in spectra().items()}
    keller = {name: error(compose(s / np.linalg.norm(s), [KELLER] * 5)) for name, s in values.items()}
    schatten4 = {name: s / np.sum(s**4) ** 0.25 for name, s in values.items()}
    first = polar_express(l=LOW, steps=4, safety=SAFETY, cushion=CUSHION)[:3]
    before = {name: compose(s, first) for name, s in schatten4.items()}

    def worst(last: np.ndarray) -> float:
        ratios = np.array([error(compose(s, [last])) / keller[name] for name, s in before.items()])
        return float(ratios.max() * np.mean((ratios / ratios.max()) ** SHARPNESS) ** (1 / SHARPNESS))

    fitted = minimize(
        worst, [3.3, -4.1, 2.0, -0.3], method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-7, "fatol": 1e-10}
    )
    polynomials = (*first, tuple(fitted.x.tolist()))
    for p, now in zip(polynomials, FAST, strict=True):
        print("(" + ", ".join(f"{c:.4f}" for c in p) + "),   # in the package:", now)
    for name, s in schatten4.items():
        fitted_error, shipped = error(compose(s, polynomials)), error(compose(s, FAST))
        print(f"{name:24} keller5 {keller[name]:.3f}   fast {fitted_error:.3f}   as shipped {shipped:.3f}")
    grid = np.linspace(4e-3, 1.02, 100_000)
    print(f"σ in [0.004, 1.02] lands in {compose(grid, FAST).min():.3f}–{compose(grid, FAST).max():.3f}")


if __name__ == "__main__":
    main()
