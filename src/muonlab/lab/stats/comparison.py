"""An arm against the baseline: Welch's test, pairs over shared seeds, several arms at once, and the verdict in words."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from muonlab.lab.stats.samples import estimable


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
    if not estimable(arm, baseline):
        return Comparison(difference, math.nan, math.nan, math.nan, no_margin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread: the test goes by the other's
        test: Any = stats.ttest_ind(arm, baseline, equal_var=False)
        interval = test.confidence_interval(1 - alpha)
    equivalence = None
    if margin is not None:
        equivalence = float(ttost_ind(np.asarray(arm), np.asarray(baseline), -margin, margin, usevar="unequal")[0])
    return Comparison(difference, float(interval.low), float(interval.high), float(test.pvalue), equivalence)


@dataclass(frozen=True)
class Pairing(Comparison):
    """A comparison of runs in pairs that share something, such as the seed.

    correlation: measured between the two sides. helps: it is shown to be positive, and the interval is shorter than Welch's; only
    then is there a reason to prefer the pairs. test: "paired t", or "Wilcoxon" (then the difference is Hodges and Lehmann's).
    """

    n: int
    correlation: float
    helps: bool
    test: str


# Choosing pairs whenever their interval is the shorter one makes 6.8 % false claims at alpha = 5 % with five uncorrelated pairs;
# asking first for a correlation that is shown at this level leaves 5.1 % at most (40,000 experiments each of 3 to 30 pairs).
_SHOWN = 0.01


def paired(
    arm: Sequence[float], baseline: Sequence[float], *, alpha: float = 0.05, margin: float | None = None, ranks: bool = False
) -> Pairing:
    """The i-th runs of both sides are a pair. ranks: Wilcoxon's signed-rank test, for differences with heavy tails.

    Raises ValueError for sides of different length or without values.
    """
    if len(arm) != len(baseline) or not arm:
        raise ValueError(f"expected pairs, got {len(arm)} and {len(baseline)} values")
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    d, n = x - y, len(x)
    test = "Wilcoxon" if ranks else "paired t"
    if n < 2 or np.ptp(d) <= 1e-12 * np.abs([x, y]).max():  # no spread but that of rounding
        no_margin = None if margin is None else math.nan
        return Pairing(float(d.mean()), math.nan, math.nan, math.nan, no_margin, n, math.nan, False, test)
    correlation, shown = math.nan, False
    if n > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        found: Any = stats.pearsonr(x, y, alternative="greater")
        correlation, shown = float(found.statistic), bool(found.pvalue < _SHOWN)
    difference, low, high, p, same = (_wilcoxon if ranks else _paired_t)(d, alpha, margin)
    welch = compare(arm, baseline, alpha=alpha)
    helps = shown and high - low < welch.high - welch.low
    return Pairing(difference, low, high, p, same, n, correlation, helps, test)


_Found = tuple[float, float, float, float, float | None]  # difference, low, high, p, p of equivalence


def _paired_t(d: np.ndarray, alpha: float, margin: float | None) -> _Found:
    test: Any = stats.ttest_1samp(d, 0.0)
    interval = test.confidence_interval(1 - alpha)
    same = None if margin is None else float(ttost_paired(d, np.zeros_like(d), -margin, margin)[0])
    return float(d.mean()), float(interval.low), float(interval.high), float(test.pvalue), same


def _wilcoxon(d: np.ndarray, alpha: float, margin: float | None) -> _Found:
    """With the interval that the exact test does not reject (Hodges and Lehmann 1963), by the distribution without ties."""
    first, second = np.triu_indices(len(d))
    averages = np.sort((d[first] + d[second]) / 2)  # Walsh's
    chance = np.ones(1)  # of each sum of positive ranks
    for rank in range(1, len(d) + 1):
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    beyond = int(np.searchsorted(np.cumsum(chance), alpha / 2, side="right"))  # sums that are too small to be chance
    low, high = (-math.inf, math.inf) if beyond == 0 else (float(averages[beyond - 1]), float(averages[-beyond]))
    test: Any = stats.wilcoxon(d)
    same = None
    if margin is not None:
        sides: list[Any] = [stats.wilcoxon(d + margin, alternative="greater"), stats.wilcoxon(d - margin, alternative="less")]
        same = max(float(side.pvalue) for side in sides)
    return float(np.median(averages)), low, high, float(test.pvalue), same


def dunnett(arms: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """Dunnett's p of each arm but the baseline: many to one, equal variances, adjusted for the number of arms.

    Nan where arm and baseline give no estimate of chance; such an arm does not count for the others. Raises ValueError for an
    unknown baseline or an arm without values.
    """
    others = [name for name in arms if name != baseline]
    if baseline not in arms or not all(len(values) for values in arms.values()):
        raise ValueError("expected the baseline among the arms, and values in all of them")
    found_none = dict.fromkeys(others, math.nan)
    others = [name for name in others if estimable(arms[name], arms[baseline])]
    if not others:
        return found_none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some arms may have no spread: it is pooled
        found: Any = stats.dunnett(*(np.asarray(arms[name]) for name in others), control=np.asarray(arms[baseline]), rng=0)
    return found_none | dict(zip(others, map(float, found.pvalue), strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several claims against one baseline; nan stays nan and does not count."""
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's false-discovery rates, for screening many arms, not for claims; nan stays and does not count."""
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Sequence[float], method: str) -> list[float]:
    adjusted = list(p_values)
    real = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    if real:
        corrected: Any = multipletests([p_values[i] for i in real], method=method)[1]
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
    d = decimals((comparison.high - comparison.low) / 2)
    difference = f"difference {comparison.difference:+.{d}f}"
    if margin is not None and p_equivalence_adjusted < alpha:
        return Verdict("equivalent", f"{difference}, shown to lie within ±{margin:g} (TOST, p {p_text(p_equivalence_adjusted)})")
    level = f"{100 * (1 - alpha):g} % CI {comparison.low:+.{d}f} to {comparison.high:+.{d}f}"
    raw, adjusted = p_text(comparison.p), p_text(p_adjusted)
    p = f"p {raw}"
    if claims > 1:
        p += f", also when adjusted for {claims} claims" if raw == adjusted else f", adjusted for {claims} claims p {adjusted}"
    evidence = f"{difference}, {level}, {p}"
    if p_adjusted < alpha:
        return Verdict("better" if comparison.difference < 0 else "worse", evidence)
    return Verdict("undecided", evidence)


def judge(comparisons: Mapping[str, Comparison], *, alpha: float, margin: float | None) -> dict[str, Verdict]:
    """The verdict on every arm that was compared with the same baseline; both kinds of claims go through Holm's adjustment."""
    p = holm([c.p for c in comparisons.values()])
    same = holm([math.nan if c.p_equivalence is None else c.p_equivalence for c in comparisons.values()])
    return {
        name: decide(comparison, len(comparisons), p[i], same[i], alpha=alpha, margin=margin)
        for i, (name, comparison) in enumerate(comparisons.items())
    }


def decimals(half: float) -> int:
    """Decimals of a difference: four, or as many as show two digits of half its interval."""
    return max(4, 1 - math.floor(math.log10(half))) if 0 < half < math.inf else 4


def p_text(p: float) -> str:
    """ "= 0.0123", or "< 0.0001"."""
    return f"= {p:.3g}" if p >= 1e-4 else "< 0.0001"
