"""The rules by which public records are judged, from losses as they are printed: decimal arithmetic, no float in between.

Sources: modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt), its README's rules for the speedruns (p < 0.01 for a
mean below the target) and for the optimization benchmark (σ of runs 0.0013, loss a step 0.0045 for 100 steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import Any

from scipy import stats

LEVEL = 0.01  # of the t-test; the confidence intervals of a record are 99 %
THRESHOLD = Fraction("0.004")  # of the z-test: about 3.1 σ, p ≈ 0.001, with σ = 0.0013 over runs
LOSS_PER_100_STEPS = Fraction("0.0045")
RULES = {
    "speedrun": "the mean of the final validation losses is below the target: one-sided one-sample t-test, p < 0.01",
    "optimization-benchmark": "(target - mean) * sqrt(n) >= 0.004 at the declared number of steps: a z-test with sigma = 0.0013",
}
PAIRWISE = "(difference of losses + difference of steps / 100 * 0.0045) / sqrt(1/n1 + 1/n2) >= 0.004 against the earlier record"
_MOST = 100_000  # runs; more is no advice


@dataclass(frozen=True)
class Judged:
    """statistic: p or the left side of the inequality; more_runs: how many more at this mean and scatter would meet the rule,
    None where no number does."""

    met: bool
    statistic: float
    more_runs: int | None


def exact(value: Decimal | float | str) -> Decimal:
    """The decimal digits that are printed for a value."""
    return Decimal(str(value))


def exact_sum(values: Sequence[float]) -> Decimal:
    with localcontext(prec=60):
        return sum((exact(value) for value in values), Decimal(0))


def half_up(value: Decimal | Fraction | float, digits: int) -> Decimal:
    """Rounded as on paper: 0.00005 becomes 0.0001. A float stands for its printed digits."""
    with localcontext(prec=60):
        if isinstance(value, Fraction):
            value = Decimal(value.numerator) / Decimal(value.denominator)
        return exact(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)


def mean_of(values: Sequence[float]) -> Fraction:
    return Fraction(exact_sum(values)) / len(values)


def judge(rule: str, values: Sequence[float], target: float) -> Judged:
    """Two values or more, not all equal for the t-test; see `can_be_judged`."""
    return _speedrun(values, target) if rule == "speedrun" else _benchmark(values, target)


def _speedrun(values: Sequence[float], target: float) -> Judged:
    test: Any = stats.ttest_1samp(values, target, alternative="less")
    p = float(test.pvalue)
    std = math.sqrt(sum((v - float(mean_of(values))) ** 2 for v in values) / (len(values) - 1))
    gap = float(Fraction(exact(target)) - mean_of(values))
    if p < LEVEL or gap <= 0:
        return Judged(p < LEVEL, p, 0 if p < LEVEL else None)
    n = len(values) + 1
    while n < _MOST and stats.t.sf(gap / std * math.sqrt(n), n - 1) >= LEVEL:
        n += 1
    return Judged(False, p, n - len(values) if n < _MOST else None)


def _benchmark(values: Sequence[float], target: float) -> Judged:
    gap, n = Fraction(exact(target)) - mean_of(values), len(values)
    met = gap > 0 and gap * gap * n >= THRESHOLD * THRESHOLD  # without a root: exact
    needed = None if gap <= 0 else math.ceil(THRESHOLD * THRESHOLD / (gap * gap))
    more = None if needed is None or needed > _MOST else max(0, needed - n)
    return Judged(met, float(gap) * math.sqrt(n), more)


def pairwise(mean: Fraction, steps: int, n: int, mean_before: Fraction, steps_before: int, n_before: int) -> Judged:
    """Whether a result beats an earlier one: lower loss and fewer steps both count."""
    gain = (mean_before - mean) + Fraction(steps_before - steps, 100) * LOSS_PER_100_STEPS
    share = Fraction(1, n) + Fraction(1, n_before)
    met = gain > 0 and gain * gain >= THRESHOLD * THRESHOLD * share
    room = gain * gain / (THRESHOLD * THRESHOLD) - Fraction(1, n_before)  # what 1/n must not exceed
    more = None if gain <= 0 or room <= 0 or 1 / room > _MOST else max(0, math.ceil(1 / room) - n)
    return Judged(met, float(gain) / math.sqrt(share), more)
