"""Statistics of seeds: summaries, Welch's comparison, and a verdict in words. Lower is better throughout."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind


@dataclass(frozen=True)
class Summary:
    """Of one sample; low and high are the Student-t confidence interval of the mean (nan for fewer than two values)."""

    n: int
    mean: float
    std: float
    low: float
    high: float


def summarize(values: Sequence[float], alpha: float = 0.05) -> Summary:
    """Mean, standard deviation (ddof 1) and (1 − alpha) interval by Student's t. Raises ValueError for no values."""
    if not values:
        raise ValueError("expected at least one value, got none")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, math.nan, math.nan, math.nan)
    std = statistics.stdev(values)
    half = float(stats.t.ppf(1 - alpha / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Summary(len(values), mean, std, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """Of an arm with the baseline: difference of means (arm − baseline), its Welch interval, and two p-values.

    p: two-sided Welch test of no difference. p_equivalence: TOST, two one-sided Welch tests against ±margin (None without
    a margin). Nan where a sample has fewer than two values or no spread at all.
    """

    difference: float
    low: float
    high: float
    p: float
    p_equivalence: float | None


def compare(arm: Sequence[float], baseline: Sequence[float], *, alpha: float = 0.05, margin: float | None = None) -> Comparison:
    """Welch's comparison of two independent samples. Raises ValueError for an empty one."""
    if not arm or not baseline:
        raise ValueError("expected values on both sides, got none on one")
    difference = statistics.fmean(arm) - statistics.fmean(baseline)
    no_margin = None if margin is None else math.nan
    if min(len(arm), len(baseline)) < 2 or (np.ptp(arm) == 0 and np.ptp(baseline) == 0):
        return Comparison(difference, math.nan, math.nan, math.nan, no_margin)
    test: Any = stats.ttest_ind(arm, baseline, equal_var=False)
    interval = test.confidence_interval(1 - alpha)
    equivalence = None
    if margin is not None:
        equivalence = float(ttost_ind(np.asarray(arm), np.asarray(baseline), -margin, margin, usevar="unequal")[0])
    return Comparison(difference, float(interval.low), float(interval.high), float(test.pvalue), equivalence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several claims against one baseline; nan stays nan and does not count."""
    adjusted = list(p_values)
    real = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    if real:
        corrected: Any = multipletests([p_values[i] for i in real], method="holm")[1]
        for i, p in zip(real, corrected, strict=True):
            adjusted[i] = float(p)
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """word: better, worse, equivalent or undecided; reason: the evidence, in a clause."""

    word: str
    reason: str


def decide(
    comparison: Comparison, claims: int, p_adjusted: float, p_equivalence_adjusted: float, *, alpha: float, margin: float | None
) -> Verdict:
    """The verdict on an arm; the p-values are adjusted for the number of claims. A difference that is shown to lie within the
    margin is `equivalent` even where it is clearly not zero."""
    if math.isnan(comparison.p):
        return Verdict("undecided", "too few runs, or no spread between seeds: there is no estimate of chance")
    difference = f"difference {comparison.difference:+.4f}"
    if margin is not None and p_equivalence_adjusted < alpha:
        return Verdict("equivalent", f"{difference}, shown to lie within ±{margin:g} (TOST, p {_p(p_equivalence_adjusted)})")
    level = f"{100 * (1 - alpha):g} % CI {comparison.low:+.4f} to {comparison.high:+.4f}"
    adjusted = f", adjusted for {claims} claims p {_p(p_adjusted)}" if claims > 1 else ""
    evidence = f"{difference}, {level}, p {_p(comparison.p)}{adjusted}"
    if p_adjusted < alpha:
        return Verdict("better" if comparison.difference < 0 else "worse", evidence)
    return Verdict("undecided", evidence)


def _p(p: float) -> str:
    return f"= {p:.3g}" if p >= 1e-4 else "< 0.0001"


def median_with_misses(values: Sequence[float | None]) -> float | None:
    """The time by which half of the runs had reached a target; None is a run that never did, later than all others. This is the
    Kaplan–Meier median with misses censored at the end. None if more than half of the runs missed it."""
    ordered = sorted(math.inf if v is None else v for v in values)
    if not ordered:
        return None
    middle = ordered[(len(ordered) + 1) // 2 - 1]
    return middle if math.isfinite(middle) else None
