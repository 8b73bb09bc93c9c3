"""One sample, pairs, many arms and power: against published figures, and scipy and statsmodels called another way."""

from __future__ import annotations

import csv
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from muonlab.lab import stats

# The update-smoothing record's validation losses, as published with it (train times in the same file).
ROWS = list(csv.DictReader((Path(__file__).parents[1] / "data/update_smoothing_160.csv").open()))
LOSSES = [float(row["val_loss"]) for row in ROWS]
MINUTES = [float(row["train_ms"]) / 60_000 for row in ROWS]
RECORD_LOSSES = [3.2766, 3.2794, 3.2770, 3.2776, 3.2760, 3.2802, 3.2757]


def test_published_figures_of_160_runs():
    found = stats.one_sample(LOSSES, 2.92)
    assert (found.n, f"{found.mean:.6f}", f"{found.std:.6f}") == (160, "2.919750", "0.000768")
    assert (found.median, found.minimum, found.maximum) == (2.9197075, 2.917344, 2.921742)
    assert (f"{found.low:.6f}", f"{found.high:.6f}", f"{found.p_less:.6f}") == ("2.919592", "2.919909", "0.000032")
    minutes = stats.summarize(MINUTES, 0.01)
    assert [f"{x:.4f}" for x in (minutes.mean, minutes.std, minutes.low, minutes.high)] == [
        "23.5160",
        "0.1855",
        "23.4778",
        "23.5542",
    ]


@pytest.mark.parametrize(
    ("size", "figures"), [(40, (121, "0.028338", "0.034810", "0.4050")), (80, (81, "0.003372", "0.003911", "0.9012"))]
)
def test_published_sliding_windows(size, figures):
    found = stats.windows(LOSSES, 2.92, size)
    assert (found.count, f"{found.p_mean:.6f}", f"{found.p_std:.6f}", f"{found.fraction_below:.4f}") == figures


def test_published_seven_losses():
    found = stats.one_sample(RECORD_LOSSES, 3.28)
    assert (f"{found.p_less:.4f}", f"{found.mean:.6f}", f"{found.std:.6f}") == ("0.0041", "3.277500", "0.001706")


def test_the_bootstrap_agrees_and_repeats():
    found = stats.one_sample(LOSSES, 2.92)
    width = found.high - found.low
    assert abs(found.bootstrap_low - found.low) < 0.1 * width
    assert abs(found.bootstrap_high - found.high) < 0.1 * width
    assert stats.one_sample(LOSSES, 2.92) == found


def test_too_little_for_a_test():
    for values in ([2.9], [2.9, 2.9, 2.9]):
        found = stats.one_sample(values, 3.0)
        assert math.isnan(found.p_less)
        assert math.isnan(found.bootstrap_low)
    for size in (1, 8):
        with pytest.raises(ValueError, match="window of 2 to 7"):
            stats.windows(RECORD_LOSSES, 3.28, size)
    with pytest.raises(ValueError, match="no spread"):
        stats.windows([1.0, 1.0, 2.0], 3.0, 2)
    assert math.isnan(stats.windows(RECORD_LOSSES, 3.28, 7).p_std)


# --- pairs ---


def correlated(n, r, seed=0):
    random = np.random.default_rng(seed)
    shared = random.normal(size=n)
    return [math.sqrt(r) * shared + math.sqrt(1 - r) * random.normal(size=n) for _ in range(2)]


def test_pairs_that_share_much_help():
    x, y = correlated(12, 0.95)
    found = stats.paired(list(x - 0.5), list(y), margin=2.0)
    test = scipy_stats.ttest_rel(x - 0.5, y)
    assert found.helps
    assert found.test == "paired t"
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, *test.confidence_interval()))
    lower = scipy_stats.ttest_rel(x - 0.5 + 2, y, alternative="greater").pvalue
    upper = scipy_stats.ttest_rel(x - 0.5 - 2, y, alternative="less").pvalue
    assert found.p_equivalence == pytest.approx(max(lower, upper))
    welch = stats.compare(list(x - 0.5), list(y))
    assert found.high - found.low < welch.high - welch.low


def test_pairs_that_share_nothing_do_not_help():
    x, y = correlated(40, 0.0, seed=1)
    assert not stats.paired(list(x), list(y)).helps
    assert not stats.paired(list(x), list(-x)).helps, "a negative correlation makes pairs worse than none"


def test_pairs_that_share_nothing_are_rarely_preferred():
    """Their interval is the shorter one in 32 % of experiments with five seeds: chosen then, false claims rise to 6.8 %."""
    random = np.random.default_rng(0)
    found = [stats.paired(*random.normal(size=(2, 5)).tolist()) for _ in range(1000)]
    assert sum(pairing.helps for pairing in found) / 1000 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 1000)


def test_wilcoxon_by_enumeration():
    """The interval holds the shifts that the exact test does not reject."""
    arm, baseline = [1.0, 2.5, 2.2, 4.9, 0.3, 3.1, 1.7], [1.4, 1.9, 3.3, 4.0, 1.1, 1.5, 3.9]
    found = stats.paired(arm, baseline, alpha=0.1, ranks=True)
    d = np.array(arm) - np.array(baseline)
    assert found.test == "Wilcoxon"
    assert found.p == pytest.approx(scipy_stats.wilcoxon(d, method="exact").pvalue)
    for end, inside in ((found.low, 1e-6), (found.high, -1e-6)):
        assert scipy_stats.wilcoxon(d - (end + inside), method="exact").pvalue > 0.1
        assert scipy_stats.wilcoxon(d - (end - inside), method="exact").pvalue <= 0.1
    chance = [sum(r * s for r, s in zip(range(1, 8), signs, strict=True)) for signs in product((0, 1), repeat=7)]
    rejected = sum(value <= 3 for value in chance) / 2**7
    assert rejected <= 0.05 < sum(value <= 4 for value in chance) / 2**7  # so the fourth smallest average ends the interval
    assert found.low == pytest.approx(sorted((a + b) / 2 for i, a in enumerate(d) for b in d[i:])[3])
    assert stats.paired(arm[:3], baseline[:3], ranks=True).low == -math.inf, "three pairs show nothing at 5 %"


def test_pairs_must_fit():
    with pytest.raises(ValueError, match="expected pairs"):
        stats.paired([1.0], [1.0, 2.0])
    shifted = stats.paired([1.1, 1.2, 1.3], [1.0, 1.1, 1.2])
    assert math.isnan(shifted.p), "a constant shift has no spread but that of rounding"


# --- several arms ---


def test_dunnett_against_its_published_example():
    """Dunnett 1955, blood counts: drug B is shown to differ from the control (p from scipy's manual)."""
    arms = {"control": [7.40, 8.50, 7.20, 8.24, 9.84, 8.32], "A": [9.76, 8.80, 7.68, 9.36], "B": [12.80, 9.68, 12.16, 9.20, 10.55]}
    found = stats.dunnett(arms, "control")
    assert found["A"] == pytest.approx(0.62004941, abs=2e-3)
    assert found["B"] == pytest.approx(0.0058903, abs=5e-4)
    assert stats.dunnett(arms, "control") == found
    alone = stats.dunnett({"control": arms["control"], "B": arms["B"]}, "control")
    assert alone["B"] == pytest.approx(scipy_stats.ttest_ind(arms["B"], arms["control"]).pvalue, rel=0.03), (
        "one claim: Student's t, within quasi-random error"
    )
    assert math.isnan(stats.dunnett({"a": [1.0, 1.0], "b": [2.0, 2.0]}, "a")["b"])
    with pytest.raises(ValueError, match="baseline"):
        stats.dunnett(arms, "C")


def test_benjamini_hochberg_by_hand():
    assert stats.benjamini_hochberg([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)


def test_judge_adjusts_for_all_claims():
    random = np.random.default_rng(5)
    base = list(random.normal(0, 1, 10))
    found = {str(shift): stats.compare(list(random.normal(shift, 1, 10)), base, margin=3.0) for shift in (-1.2, 0.1, 6.0)}
    verdicts = stats.judge(found, alpha=0.05, margin=3.0)
    adjusted = multipletests([c.p_equivalence for c in found.values()], method="holm")[1]
    assert [verdicts[name].word == "equivalent" for name in found] == [p < 0.05 for p in adjusted]
    assert verdicts["6.0"].word == "worse"
    assert "3 claims" in verdicts["6.0"].reason
    assert stats.judge({}, alpha=0.05, margin=None) == {}


# --- power ---


@pytest.mark.parametrize(
    ("arms", "one_sided", "test", "alpha"),
    [
        (2, False, TTestIndPower(), 0.05),
        (2, True, TTestIndPower(), 0.05),
        (1, True, TTestPower(), 0.05),
        (4, False, TTestIndPower(), 0.05 / 3),
    ],
)
def test_runs_needed_is_the_first_number_that_is_enough(arms, one_sided, test, alpha):
    n = stats.runs_needed(0.002, 0.0016, arms=arms, one_sided=one_sided)
    side = "larger" if one_sided else "two-sided"
    assert (
        test.power(0.002 / 0.0016, n, alpha, alternative=side) >= 0.9 > test.power(0.002 / 0.0016, n - 1, alpha, alternative=side)
    )


def test_runs_needed_against_published_tables():
    """Cohen 1988: 17, 64 and 393 a group for d = 1, 0.5, 0.2 at 80 %, two-sided 5 % (394 without rounding of his tables)."""
    assert [stats.runs_needed(d, 1.0, power=0.8) for d in (1.0, 0.5, 0.2)] == [17, 64, 394]


def test_runs_needed_by_simulation():
    n = stats.runs_needed(1.2, 1.0)
    a, b = np.random.default_rng(0).normal([[[1.2]], [[0.0]]], 1, (2, 20_000, n))
    assert (scipy_stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean() > 0.89


def test_the_price_as_a_sentence():
    assert stats.need(0.002, 0.00156) == "you need 14 runs in each arm to see 0.002 at 90 %"
    assert (
        stats.need(-0.002, 0.0017, alpha=0.01, arms=1)
        == f"you need {stats.runs_needed(0.002, 0.0017, alpha=0.01, arms=1)} runs to see 0.002 at 90 %"
    )
    assert stats.runs_needed(10.0, 0.001) == 2
    for wrong in ({"difference": 0.0, "std": 1.0}, {"difference": 1.0, "std": 0.0}, {"difference": 1.0, "std": math.nan}):
        with pytest.raises(ValueError, match="expected a difference"):
            stats.runs_needed(**wrong)
    with pytest.raises(ValueError, match="next to nothing"):
        stats.runs_needed(1e-9, 1.0)


def test_what_rounding_leaves_of_equal_values_is_no_spread():
    """0.1 + 0.2 is not 0.3 for a computer: its p would be 1e-30."""
    values = [0.1 + 0.2, 0.3, 0.3]
    assert math.isnan(stats.one_sample(values, 0.31).p_less)
    assert math.isnan(stats.compare(values, [0.5, 0.5, 0.5]).p)
    assert stats.target_p(values, 0.31) == 1
    assert stats.mean_sequence(values) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="no spread"):
        stats.windows(values, 0.31, 2)
