"""Tests that hold although one looks after every run, and stops when one likes what one sees.

Model: normal runs; two arms share the standard deviation σ. The effect size δ (difference / σ) is mixed over N(0, τ²) and, where
σ is unknown, the location over dμ and the scale over dσ/σ (right Haar). Every e-value here is a likelihood ratio of that mixture
against "no effect", a nonnegative martingale that starts at 1 in the filtration of what does not depend on location and
scale, so by Ville's inequality the chance that it ever exceeds 1/α is at most α: any rule for stopping is allowed. Which arm runs
next must not depend on the losses.

Sources: Robbins, Annals of Mathematical Statistics 41 (1970), σ known (the mSPRT of Johari et al., Operations Research 70, 2022);
Wang and Ramdas, "Anytime-valid t-tests and confidence sequences", arXiv 2310.03722, σ unknown, one sample. Two samples follow the
same way: N runs are N − 1 orthonormal contrasts, one of which has the mean √k δ σ with k = na nb / N, the others 0.

Values may have leading axes: the last axis holds the runs, and everything is done for each of the others at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from muonlab.lab.stats.comparison import Verdict, decimals
from muonlab.lab.stats.samples import has_spread

TAU = 1.5  # σ: the size of effects that the tests are sharpest for, measured in tests/unit/test_stats_sequential.py

Numbers = Any  # a float, or an array where the values had leading axes


@dataclass(frozen=True)
class _Evidence:
    """What the data say of one effect, as `contrasts` orthonormal contrasts of which one holds the effect.

    k: squared length of the effect in that contrast, for σ = 1. centre: the estimate. within: sum of squares of the others.
    """

    contrasts: int
    k: float
    centre: np.ndarray
    within: np.ndarray

    def log_e(self, effect: float, tau: float, sigma: float | None) -> np.ndarray:
        """log e-value against "the true effect is `effect`". Zero where the data cannot tell: no spread, or too few runs."""
        growth = 1 + self.k * tau**2
        w = (growth - 1) / growth
        between = self.k * (self.centre - effect) ** 2
        if sigma is not None:
            value = -0.5 * math.log(growth) + between * w / (2 * sigma**2)
        else:
            share = np.where(self.usable, between, 0.0) / np.where(self.usable, self.within + between, 1.0)
            value = -0.5 * math.log(growth) - self.contrasts / 2 * np.log1p(-share * w)
        return np.where(self.usable if sigma is None else np.isfinite(self.centre), value, 0.0)

    def sequence(self, alpha: float, tau: float, sigma: float | None) -> tuple[np.ndarray, np.ndarray]:
        """All effects that have an e-value below 1/alpha: an interval. The whole line where the data cannot tell."""
        growth = 1 + self.k * tau**2
        w = (growth - 1) / growth
        if sigma is not None:
            half = np.full(self.centre.shape, sigma * math.sqrt(2 * math.log(math.sqrt(growth) / alpha) / (self.k * w)))
            known = np.isfinite(self.centre)
        else:
            share = -math.expm1(2 / self.contrasts * math.log(alpha / math.sqrt(growth))) / w  # largest between / total
            if share >= 1:  # too few runs to exclude anything
                return np.full(self.centre.shape, -np.inf), np.full(self.centre.shape, np.inf)
            known = self.usable
            half = np.sqrt(share * np.where(known, self.within, 0.0) / (self.k * (1 - share)))
        return np.where(known, self.centre - half, -np.inf), np.where(known, self.centre + half, np.inf)

    def chance_below(self, effect: float, tau: float) -> np.ndarray:
        """Posterior chance of a true effect below `effect`, under the same mixture (σ unknown): Student's t."""
        w = self.k * tau**2 / (1 + self.k * tau**2)
        away = np.where(self.usable, self.centre - effect, 0.0)
        left = np.where(self.usable, self.within + self.k * away**2 * (1 - w), 1.0)
        return stats.t.cdf(-w * away / np.sqrt(w / self.k * left / self.contrasts), self.contrasts)

    @property
    def usable(self) -> np.ndarray:
        return np.isfinite(self.centre) & (self.within > 0)


def _one(values: ArrayLike) -> _Evidence:
    x = np.asarray(values, dtype=float)
    n, mean, within = _moments(x)
    return _Evidence(n, n, mean, within)


def _two(arm: ArrayLike, baseline: ArrayLike) -> _Evidence:
    (na, mean_a, within_a), (nb, mean_b, within_b) = (_moments(np.asarray(side, dtype=float)) for side in (arm, baseline))
    with np.errstate(invalid="ignore"):
        return _Evidence(na + nb - 1, na * nb / (na + nb), mean_a - mean_b, within_a + within_b)


def _moments(x: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, mean and sum of squares around it. A diverged run (nan or inf) makes the mean nan: there is no normal model of it."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError("expected at least one value on each side, got none")
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    held = np.where(finite[..., None], x, 0.0)
    mean = held.mean(axis=-1)
    within = ((held - mean[..., None]) ** 2).sum(axis=-1)
    # runs that all give the same number have no spread, whatever rounding says
    within = np.where(has_spread(held), within, 0.0)
    return x.shape[-1], np.where(finite, mean, np.nan), within


def _checked(alpha: float | None, tau: float, sigma: float | None) -> None:
    if (alpha is not None and not 0 < alpha < 1) or not 0 < tau < math.inf or (sigma is not None and not 0 < sigma < math.inf):
        raise ValueError("expected 0 < alpha < 1, tau > 0 and sigma > 0")


def _plain(value: np.ndarray) -> Numbers:
    return float(value) if np.ndim(value) == 0 else value


def confidence_sequence(
    arm: ArrayLike, baseline: ArrayLike, *, alpha: float = 0.05, tau: float = TAU, sigma: float | None = None
) -> tuple[Numbers, Numbers]:
    """low and high of arm − baseline: with chance 1 − alpha the truth lies within at every look, however many there are.

    sigma: the standard deviation, if it is known. The whole line (−inf, inf) where the data say nothing yet: too few runs, no
    spread, or a diverged run (nan, inf). Raises ValueError for an empty side.
    """
    _checked(alpha, tau, sigma)
    low, high = _two(arm, baseline).sequence(alpha, tau, sigma)
    return _plain(low), _plain(high)


def mean_sequence(
    values: ArrayLike, *, alpha: float = 0.01, tau: float = TAU, sigma: float | None = None
) -> tuple[Numbers, Numbers]:
    """low and high of the mean of one sample, in the same way."""
    _checked(alpha, tau, sigma)
    low, high = _one(values).sequence(alpha, tau, sigma)
    return _plain(low), _plain(high)


def e_value(arm: ArrayLike, baseline: ArrayLike, *, tau: float = TAU, sigma: float | None = None) -> Numbers:
    """Evidence against "no difference": a bet's winnings from 1. 1 / alpha or more at any look is a claim at level alpha."""
    _checked(None, tau, sigma)
    with np.errstate(over="ignore"):
        return _plain(np.exp(_two(arm, baseline).log_e(0.0, tau, sigma)))


def sequential_p(arm: ArrayLike, baseline: ArrayLike, *, tau: float = TAU, sigma: float | None = None) -> Numbers:
    """min(1, 1 / e-value): the smallest of these over all looks may be called p."""
    _checked(None, tau, sigma)
    return _plain(np.exp(-np.maximum(_two(arm, baseline).log_e(0.0, tau, sigma), 0.0)))


def target_e_value(values: ArrayLike, target: float, *, tau: float = TAU) -> Numbers:
    """Evidence against "the mean is at the target or above it", σ unknown: the effect is mixed over the half of N(0, τ²) below.

    That is twice the two-sided e-value times the posterior chance of the lower half. It falls as the losses rise, so it also holds
    for every mean above the target.
    """
    with np.errstate(over="ignore"):
        return _plain(np.exp(_log_target(values, target, tau)))


def target_p(values: ArrayLike, target: float, *, tau: float = TAU) -> Numbers:
    """min(1, 1 / e-value) of `target_e_value`: one-sided, anytime-valid."""
    return _plain(np.exp(-np.maximum(_log_target(values, target, tau), 0.0)))


def _log_target(values: ArrayLike, target: float, tau: float) -> np.ndarray:
    _checked(None, tau, None)
    evidence = _one(values)
    below = evidence.chance_below(target, tau)
    with np.errstate(divide="ignore"):
        return np.where(evidence.usable, evidence.log_e(target, tau, None) + np.log(2 * below), 0.0)


def decide_now(
    arm: Sequence[float],
    baseline: Sequence[float],
    *,
    alpha: float = 0.05,
    margin: float | None = None,
    claims: int = 1,
    tau: float = TAU,
    sigma: float | None = None,
) -> Verdict:
    """The verdict at this look; later looks are free. claims: arms that are compared with this baseline, each at alpha / claims.

    better or worse: the confidence sequence excludes 0; equivalent (asked first): it lies within ±margin.
    """
    level = alpha / claims
    low, high = confidence_sequence(arm, baseline, alpha=level, tau=tau, sigma=sigma)
    if not np.isfinite([*arm, *baseline]).all():
        return Verdict("undecided", "a run diverged")
    if math.isinf(low):
        return Verdict("undecided", "too few runs, or no spread between seeds: there is no estimate of chance")
    difference = fmean(arm) - fmean(baseline)
    d = decimals((high - low) / 2)
    evidence = f"difference {difference:+.{d}f}, {100 * (1 - level):.4g} % confidence sequence {low:+.{d}f} to {high:+.{d}f}"
    return Verdict(str(words(low, high, margin)), evidence)


def words(low: ArrayLike, high: ArrayLike, margin: float | None = None) -> np.ndarray:
    """The verdict that an interval of arm − baseline gives, for each interval."""
    low, high = np.asarray(low), np.asarray(high)
    within = np.zeros(low.shape, bool) if margin is None else (low > -margin) & (high < margin)
    return np.select([within, high < 0, low > 0], ["equivalent", "better", "worse"], "undecided")


def reached_now(values: ArrayLike, target: float, *, alpha: float = 0.01, tau: float = TAU) -> bool:
    """True if it is shown, at this look, that the mean lies below the target; later looks are free."""
    return bool(target_p(values, target, tau=tau) <= alpha)
