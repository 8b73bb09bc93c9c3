"""How sure an accuracy is, and whether one model is better than another on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Accuracy:
    """correct of n, and Wilson's score interval (1927) of the proportion: it also holds near 0 and 1, and for few problems."""

    correct: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.correct / self.n


def accuracy(correct: int, n: int, *, alpha: float = 0.05) -> Accuracy:
    """Raises ValueError unless 0 ≤ correct ≤ n and n ≥ 1."""
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"expected correct of at least one problem, got {correct} of {n}")
    interval: Any = proportion_confint(correct, n, alpha=alpha, method="wilson")
    low, high = interval
    return Accuracy(correct, n, float(low), float(high))


@dataclass(frozen=True)
class PairedAccuracy:
    """Of b against a, on the same problems. gained: b is right where a is wrong; lost: the other way.

    p: McNemar's exact test (two-sided), which looks at these two alone. difference: of the accuracies, with the interval of Bonett
    and Price (2012), which adds one to each of the two counts. verdict: better, worse, equivalent or undecided; reason: why.
    """

    n: int
    both: int
    gained: int
    lost: int
    neither: int
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    reason: str


def compare(a: Sequence[bool], b: Sequence[bool], *, alpha: float = 0.05, margin: float | None = None) -> PairedAccuracy:
    """The i-th entries are the same problem. equivalent: the (1 − 2 alpha) interval lies within ±margin.

    Raises ValueError for sequences of different length or without problems.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"expected answers to the same problems, got {len(a)} and {len(b)}")
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    n, both, neither = len(x), int((x & y).sum()), int((~x & ~y).sum())
    gained, lost = int((~x & y).sum()), int((x & ~y).sum())
    test: Any = mcnemar([[both, lost], [gained, neither]], exact=True)
    p = float(test.pvalue)
    low, high = _interval(gained, lost, n, alpha)
    difference = (gained - lost) / n
    if p < alpha:
        word = "better" if gained > lost else "worse"
    elif margin is not None and all(abs(bound) < margin for bound in _interval(gained, lost, n, 2 * alpha)):
        word = "equivalent"
    else:
        word = "undecided"
    p_text = f"p = {p:.4f}" if p >= 5e-5 else "p < 0.0001"
    reason = (
        f"difference {100 * difference:+.1f} points, {100 * (1 - alpha):g} % CI {100 * low:+.1f} to {100 * high:+.1f}, "
        f"{gained} gained and {lost} lost of {n} problems, McNemar's exact {p_text}"
    )
    return PairedAccuracy(n, both, gained, lost, neither, difference, low, high, p, word, reason)


def _interval(gained: int, lost: int, n: int, alpha: float) -> tuple[float, float]:
    """Bonett and Price's adjusted Wald interval of a difference of paired proportions (doi 10.3102/1076998611411915)."""
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(stats.norm.ppf(1 - alpha / 2)) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)
