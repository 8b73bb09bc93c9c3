"""Wilson's interval and McNemar's test, against formulas written out and scipy's binomial test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from muonlab.evaluate.accuracy import accuracy, compare


def pairs(both, lost, gained, neither):
    a = [True] * both + [True] * lost + [False] * gained + [False] * neither
    b = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return a, b


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1), (7, 12), (812, 1319)])
def test_the_interval_is_wilsons(k, n):
    z = stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = accuracy(k, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    scipys = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)
    assert found.value == p
    assert found.low <= p <= found.high


@pytest.mark.parametrize(("k", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_no_accuracy_of_nothing(k, n):
    with pytest.raises(ValueError, match="expected correct of at least one problem"):
        accuracy(k, n)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (0, 6), (3, 12), (12, 3), (40, 41)])
def test_p_is_that_of_a_fair_coin_over_the_problems_that_changed(lost, gained):
    found = compare(*pairs(30, lost, gained, 27))
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p == pytest.approx(expected)
    assert (found.both, found.lost, found.gained, found.neither, found.n) == (30, lost, gained, 27, 57 + lost + gained)
    assert found.difference == pytest.approx((gained - lost) / found.n)


def test_verdicts_are_about_the_second():
    assert compare(*pairs(30, 0, 6, 64)).verdict == "better"
    assert compare(*pairs(30, 6, 0, 64)).verdict == "worse"
    assert compare(*pairs(30, 0, 5, 65)).verdict == "undecided"  # p = 0.0625
    assert compare(*pairs(30, 0, 5, 65), alpha=0.1).verdict == "better"
    assert compare(*pairs(700, 20, 21, 259)).verdict == "undecided"
    assert compare(*pairs(700, 20, 21, 259), margin=0.02).verdict == "equivalent"
    assert "6 gained and 0 lost of 100 problems, McNemar's exact p = 0.0312" in compare(*pairs(30, 0, 6, 64)).reason


def test_the_interval_holds_what_it_promises():
    """Exact coverage over all tables of 40 problems, for several true differences."""
    n = 40
    table = {(g, k): compare(*pairs(0, k, g, n - g - k)) for g in range(n + 1) for k in range(n + 1 - g)}
    for p_gained, p_lost in ((0.05, 0.05), (0.1, 0.3), (0.3, 0.3), (0.02, 0.2), (0.5, 0.1)):
        inside = sum(
            stats.multinomial.pmf([g, k, n - g - k], n, [p_gained, p_lost, 1 - p_gained - p_lost])
            for (g, k), found in table.items()
            if found.low <= p_gained - p_lost <= found.high
        )
        assert 0.94 < inside < 0.985, (p_gained, p_lost)


def test_a_verdict_never_contradicts_its_interval():
    for n in (6, 20, 60):
        for gained in range(n + 1):
            for lost in range(min(gained, n - gained) + 1):
                found = compare(*pairs(0, lost, gained, n - gained - lost))
                assert found.verdict != "better" or found.low > 0, (gained, lost, n)


def test_false_claims_are_rarer_than_alpha():
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(2000):
        hard = rng.random(50)
        claims += compare(rng.random(50) < hard, rng.random(50) < hard).verdict in ("better", "worse")
    assert claims / 2000 < 0.05


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="expected answers to the same problems, got 2 and 1"):
        compare([True, False], [True])
