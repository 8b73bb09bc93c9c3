"""Steps (or tokens, or seconds) to a target. A run that never got there is censored at its last step, never dropped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Times:
    """values: one for each run, None where it never reached the target. censored_at: where those runs ended, in their order.

    Raises ValueError where the two do not fit.
    """

    values: tuple[float | None, ...]
    censored_at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        misses = sum(value is None for value in self.values)
        if not self.values or misses != len(self.censored_at):
            raise ValueError(f"expected runs, and an end for each of the {misses} that missed, got {len(self.censored_at)}")
        if not min([*self.reached, *self.censored_at]) >= 0:
            raise ValueError("expected times of at least 0")

    @property
    def reached(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def last(self) -> float:
        return max([*self.reached, *self.censored_at])

    @property
    def followed(self) -> float:
        """How far the curve of those still on their way is known: without misses it ends at 0 and is known for ever."""
        return self.last if self.censored_at else math.inf

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The earliest and the latest time that each run can have."""
        late = [math.inf] * len(self.censored_at)
        return np.array([*self.reached, *self.censored_at], dtype=float), np.array([*self.reached, *late], dtype=float)

    @property
    def censored(self) -> stats.CensoredData:
        return stats.CensoredData(uncensored=self.reached, right=list(self.censored_at))


@dataclass(frozen=True)
class TimeSummary:
    """median: Kaplan and Meier's, with the interval low … high (log-log bands); None where it lies beyond the last run.
    restricted_mean: the mean of min(time, horizon), with its standard error by Greenwood's variance."""

    n: int
    reached: int
    median: float | None
    low: float | None
    high: float | None
    restricted_mean: float
    restricted_error: float
    horizon: float


def time_to_target(times: Times, *, alpha: float = 0.05, horizon: float | None = None) -> TimeSummary:
    """horizon: of the restricted mean; default the last time that was seen. Arms are comparable only at the same one, which must
    not lie beyond `followed` of any."""
    horizon = times.last if horizon is None else horizon
    mean, error = _restricted_mean(times, horizon)
    median = low = high = None
    if times.reached:
        curve: Any = stats.ecdf(times.censored).sf
        median = _first_at_half(curve.quantiles, curve.probabilities)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # at a survival of 0 the band is nan: not below one half
            band = curve.confidence_interval(1 - alpha, method="log-log")
        low = _first_at_half(curve.quantiles, band.low.probabilities)
        high = _first_at_half(curve.quantiles, band.high.probabilities)
    return TimeSummary(len(times.values), len(times.reached), median, low, high, mean, error, horizon)


def _first_at_half(at: np.ndarray, survival: np.ndarray) -> float | None:
    below = at[np.nan_to_num(survival, nan=1.0) <= 0.5]
    return float(below[0]) if len(below) else None


def median_with_misses(values: Sequence[float | None]) -> float | None:
    """The time by which half of the runs had reached a target; None is a run that never did, later than all others. This is the
    Kaplan–Meier median with misses censored at the end. None if more than half of the runs missed it."""
    ordered = sorted(math.inf if v is None else v for v in values)
    if not ordered:
        return None
    middle = ordered[(len(ordered) + 1) // 2 - 1]
    return middle if math.isfinite(middle) else None


def _restricted_mean(times: Times, horizon: float) -> tuple[float, float]:
    """Area under Kaplan and Meier's curve up to the horizon, and its standard error by Greenwood's variance, × m / (m − 1)
    for m runs that got there (Klein and Moeschberger, Survival Analysis, §4.5). Without misses: the plain mean and its error."""
    if not times.reached:
        return horizon, math.nan
    curve: Any = stats.ecdf(times.censored).sf
    inside = curve.quantiles < horizon
    at, survival = curve.quantiles[inside], curve.probabilities[inside]
    areas = np.diff([*at, horizon]) * survival  # after each time
    mean = float((at[0] if len(at) else horizon) + areas.sum())
    ahead = np.cumsum(areas[::-1])[::-1]
    every = np.array([*times.reached, *times.censored_at])
    at_risk = np.array([(every >= t).sum() for t in at])
    deaths = np.array([times.reached.count(t) for t in at])
    some_left = at_risk > deaths  # after the last one there is no area
    terms = ahead[some_left] ** 2 * deaths[some_left] / (at_risk[some_left] * (at_risk[some_left] - deaths[some_left]))
    events = sum(t <= horizon for t in times.reached)
    return mean, math.sqrt(float(terms.sum()) * events / (events - 1)) if events > 1 else math.nan


def log_rank(arm: Times, baseline: Times) -> float:
    """p of "both reach the target equally fast" (two-sided); nan where no run of either did."""
    if not arm.reached and not baseline.reached:
        return math.nan
    found: Any = stats.logrank(arm.censored, baseline.censored)
    return float(found.pvalue)


@dataclass(frozen=True)
class Ratio:
    """Of the times to the target, arm / baseline: 0.9 is ten per cent faster."""

    ratio: float
    low: float
    high: float
    method: str


def steps_ratio(arm: Times, baseline: Times, *, alpha: float = 0.05) -> Ratio:
    """How much faster in steps. All runs reached it: the ratio of geometric means, by Welch's interval of the logarithms.

    With misses: the median over all pairs of an arm's and a baseline's run (Hodges, Lehmann 1963), with the interval that Mann and
    Whitney's test does not reject. All that is known of a miss is that it comes after its end; what that leaves open about a pair
    widens the interval, if need be to 0 or infinity. The ratio itself is nan where misses leave it open, or a time is 0.
    """
    if min(arm.bounds[0].min(), baseline.bounds[0].min()) <= 0:
        return Ratio(math.nan, math.nan, math.nan, "none: a time is 0")
    if not arm.censored_at and not baseline.censored_at:
        return _ratio_of_geometric_means(np.log(arm.reached), np.log(baseline.reached), alpha)
    (arm_low, arm_high), (base_low, base_high) = arm.bounds, baseline.bounds
    lows, highs = np.sort(np.divide.outer(arm_low, base_high).ravel()), np.sort(np.divide.outer(arm_high, base_low).ravel())
    beyond = _too_small(len(arm.values), len(baseline.values), alpha / 2)
    low, high = (lows[beyond - 1], highs[-beyond]) if beyond else (0.0, math.inf)
    below, above = float(lows[(len(lows) - 1) // 2]), float(highs[len(highs) // 2])  # both are the median if it is known
    ratio = math.sqrt(below * above) if below > 0 and above < math.inf else math.nan
    return Ratio(ratio, float(low), float(high), "median of pairs, Mann-Whitney")


def _too_small(m: int, n: int, level: float) -> int:
    """How many values of Mann and Whitney's U, from 0 up, come out with a chance of at most `level` together."""
    if m * n > 10_000:
        return max(0, math.floor(m * n / 2 + float(stats.norm.ppf(level)) * math.sqrt(m * n * (m + n + 1) / 12)))
    ways = [1] + [0] * (m * n)  # the coefficients of ∏ (1 − q^(n+i)) / (1 − q^i), i = 1 … m
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            ways[u] -= ways[u - n - i]
        for u in range(i, m * n + 1):
            ways[u] += ways[u - i]
    most, total, values = level * math.comb(m + n, n), 0, 0
    while total + ways[values] <= most:
        total += ways[values]
        values += 1
    return values


def _ratio_of_geometric_means(arm: np.ndarray, baseline: np.ndarray, alpha: float) -> Ratio:
    method = "geometric means, Welch on logarithms"
    ratio = math.exp(float(arm.mean() - baseline.mean()))
    if min(len(arm), len(baseline)) < 2 or (np.ptp(arm) == 0 and np.ptp(baseline) == 0):
        return Ratio(ratio, math.nan, math.nan, method)
    test: Any = stats.ttest_ind(arm, baseline, equal_var=False)
    interval = test.confidence_interval(1 - alpha)
    return Ratio(ratio, math.exp(interval.low), math.exp(interval.high), method)


@dataclass(frozen=True)
class Rate:
    """By how much the final loss falls with 100 more steps, from n runs of different length; low and high: its interval."""

    per_100_steps: float
    low: float
    high: float
    n: int


def exchange_rate(points: Sequence[tuple[float, float]], *, groups: Sequence[Hashable] | None = None, alpha: float = 0.05) -> Rate:
    """Least squares over (steps of the run, final loss). groups: the arm of each run; arms share the slope, each at its own level.

    Runs must be whole: a loss half-way through a long run is not what a short run ends at, for its learning rate was still high.
    Raises ValueError unless one group has two lengths, for then nothing tells steps from arms.
    """
    names = [None] * len(points) if groups is None else list(groups)
    x, y = np.array([p[0] for p in points], dtype=float) / 100, np.array([p[1] for p in points], dtype=float)
    for name in set(names):
        members = np.array([other == name for other in names])
        x[members] -= x[members].mean()
        y[members] -= y[members].mean()
    squares = float((x**2).sum())
    if not squares > 1e-12:
        raise ValueError("expected runs of at least two lengths within one arm")
    slope = float((x * y).sum()) / squares
    freedom = len(points) - len(set(names)) - 1
    half = math.nan
    if freedom > 0:
        error = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / squares)
        half = float(stats.t.ppf(1 - alpha / 2, freedom)) * error
    return Rate(-slope, -slope - half, -slope + half, len(points))
