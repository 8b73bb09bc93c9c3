"""How many runs a difference needs: Student's t-test by the noncentral t distribution (statsmodels)."""

from __future__ import annotations

from typing import Any

from statsmodels.stats.power import TTestIndPower, TTestPower

_MOST = 10**7


def runs_needed(
    difference: float, std: float, *, alpha: float = 0.05, power: float = 0.9, arms: int = 2, one_sided: bool = False
) -> int:
    """Runs in each arm, so that a true `difference` is found with probability `power`, at the standard deviation `std`.

    arms: 1 is one sample against a fixed target, 2 an arm against a baseline; with more, each of arms − 1 claims is made at
    alpha / (arms − 1), the first and strictest step of Holm's method. Raises ValueError for figures that make no sense.
    """
    if not difference or not std > 0 or not 0 < alpha < 1 or not alpha < power < 1 or arms < 1:
        raise ValueError("expected a difference, std > 0, 0 < alpha < power < 1 and at least one arm")
    test: Any = TTestPower() if arms == 1 else TTestIndPower()
    effect, level = abs(difference) / std, alpha / max(1, arms - 1)
    side = "larger" if one_sided else "two-sided"

    def enough(n: int) -> bool:
        return test.power(effect, n, level, alternative=side) >= power

    low, high = 1, 2  # a smallest n that is enough lies in (low, high], once high is enough
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST:
            raise ValueError(f"more than {_MOST:,} runs: the difference is next to nothing beside the standard deviation")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def need(difference: float, std: float, *, alpha: float = 0.05, power: float = 0.9, arms: int = 2, one_sided: bool = False) -> str:
    """The same as a sentence."""
    n = runs_needed(difference, std, alpha=alpha, power=power, arms=arms, one_sided=one_sided)
    each = "" if arms == 1 else " in each arm"
    return f"you need {n} runs{each} to see {abs(difference):g} at {100 * power:g} %"
