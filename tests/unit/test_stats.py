"""Statistics against published figures and against scipy, called another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from muonlab.lab import stats

# Validation losses of the faster-Muon-step record and step times of both sides on one machine, as published with it.
RECORD_LOSSES = [3.2766, 3.2794, 3.2770, 3.2776, 3.2760, 3.2802, 3.2757]
SECONDS_NEW = [138.986, 138.838, 138.877, 138.905, 138.916, 138.846, 138.937]
SECONDS_OLD = [142.379, 142.156, 141.391, 142.374, 142.316]


def test_summary_of_a_published_record():
    found = stats.summarize(RECORD_LOSSES)
    assert found.n == 7
    assert f"{found.mean:.6f}" == "3.277500"
    assert f"{found.std:.6f}" == "0.001706"
    low, high = scipy_stats.t.interval(0.95, 6, loc=3.2775, scale=scipy_stats.sem(RECORD_LOSSES))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_comparison_of_published_step_times():
    found = stats.compare(SECONDS_NEW, SECONDS_OLD)
    assert f"{found.difference:.2f}" == "-3.22"
    # Welch's test written out (Welch 1947, Satterthwaite's degrees of freedom)
    a, b = np.array(SECONDS_NEW), np.array(SECONDS_OLD)
    va, vb = a.var(ddof=1) / 7, b.var(ddof=1) / 5
    freedom = (va + vb) ** 2 / (va**2 / 6 + vb**2 / 4)
    t = (a.mean() - b.mean()) / math.sqrt(va + vb)
    half = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), freedom))
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))


def test_equivalence_is_two_one_sided_tests():
    a, b, margin = [1.00, 1.01, 0.99, 1.005], [1.002, 1.012, 0.995, 1.0], 0.05
    found = stats.compare(a, b, margin=margin)
    upper = scipy_stats.ttest_ind(np.array(a) - margin, b, equal_var=False, alternative="less").pvalue
    lower = scipy_stats.ttest_ind(np.array(a) + margin, b, equal_var=False, alternative="greater").pvalue
    assert found.p_equivalence == pytest.approx(max(upper, lower))


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    with_nan = stats.holm([0.01, math.nan, 0.04])
    assert with_nan[0] == pytest.approx(0.02)
    assert math.isnan(with_nan[1])
    assert stats.holm([]) == []


def verdict(arm, baseline, *, margin=None, alpha=0.05):
    comparison = stats.compare(arm, baseline, alpha=alpha, margin=margin)
    return stats.decide(comparison, 1, comparison.p, comparison.p_equivalence or 0.0, alpha=alpha, margin=margin).word


def test_verdicts():
    base = [2.00, 2.01, 1.99, 2.005]
    shifted = lambda d: [x + d for x in base]  # noqa: E731
    assert verdict(shifted(-0.1), base) == "better"
    assert verdict(shifted(+0.1), base) == "worse"
    assert verdict(shifted(0.001), base) == "undecided"
    assert verdict(shifted(0.001), base, margin=0.05) == "equivalent"
    assert verdict(shifted(-0.03), base, margin=0.1) == "equivalent", "clear, but too small to matter"
    assert verdict(shifted(-0.1), base, margin=0.05) == "better"


def test_too_little_data_is_undecided():
    assert verdict([1.0], [2.0, 2.1]) == "undecided"
    assert verdict([1.0, 1.0], [2.0, 2.0], margin=0.1) == "undecided", "no spread between seeds: no estimate of chance"
    with pytest.raises(ValueError, match="at least one"):
        stats.summarize([])
    assert math.isnan(stats.summarize([1.0]).std)


def test_welch_keeps_its_level():
    """5 % of 2,000 comparisons of equal arms with unequal spread are called different, within three standard errors."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        p = stats.compare(list(random.normal(0, 1, 5)), list(random.normal(0, 3, 9))).p
        wrong += p < 0.05
    assert abs(wrong / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_miss_counts_as_later_than_every_hit():
    assert stats.median_with_misses([100, 200, None]) == 200
    assert stats.median_with_misses([100, None, None]) is None
    assert stats.median_with_misses([100, 300, 400, None]) == 300
    assert stats.median_with_misses([100, 300, None, None]) == 300
    curve = scipy_stats.ecdf(scipy_stats.CensoredData([100, 300], right=[999, 999])).sf
    assert min(q for q, p in zip(curve.quantiles, curve.probabilities, strict=True) if p <= 0.5) == 300
    assert stats.median_with_misses([]) is None
