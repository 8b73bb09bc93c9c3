"""Steps (or tokens, or seconds) to a target. A run that never got there is censored at its last step, never dropped."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Times:
    """values: one for each run, None where it never reached the target; censored_at: where each of those runs ended, in their order.

    Raises ValueError where the two do not fit.
    """

    values: tuple[float | None, ...]
    censored_at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        misses = sum(value is None for value in self.values)
        if not self.values or misses != len(self.censored_at):
            raise ValueError(f"expected runs, and an end for each of the {misses} that missed, got {len(self.censored_at)}")

    @property
    def reached(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def last(self) -> float:
        return max([*self.reached, *self.censored_at])

    @property
    def censored(self) -> stats.CensoredData:
        return stats.CensoredData(uncensored=self.reached, right=list(self.censored_at))


@dataclass(frozen=True)
class TimeSummary:
    """median: Kaplan and Meier's, with the interval low … high (log-log bands); None where it lies beyond the last run. restricted_mean:
    the mean of min(time, horizon), with its standard error by Greenwood's variance."""

    n: int
    reached: int
    median: float | None
    low: float | None
    high: float | None
    restricted_mean: float
    restricted_error: float
    horizon: float


def time_to_target(times: Times, *, alpha: float = 0.05, horizon: float | None = None) -> TimeSummary:
    """horizon: of the restricted mean; default the last time that was seen. Arms are comparable only at the same one."""
    horizon = times.last if horizon is None else horizon
    mean, error = _restricted_mean(times, horizon)
    median = low = high = None
    if times.reached:
        curve: Any = stats.ecdf(times.censored).sf
        median = _first_at_half(curve.quantiles, curve.probabilities)
        # a band of zero width (all reached it at once) and bands that are not defined yet come out as nan
        with np.errstate(all="ignore"):
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
    """Area under Kaplan and Meier's curve up to the horizon, and its standard error by Greenwood's variance, × m / (m − 1) for m runs
    that got there (Klein and Moeschberger, Survival Analysis, §4.5). Without misses these are the plain mean and its error."""
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
    events = int(deaths.sum())
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

    With misses: the ratio of restricted means up to the last step that both arms were followed to, by the delta method; misses on one side only
    pull it towards 1, so it is a cautious figure. Nan where there is no spread, fewer than two runs, or fewer than two hits on a side.
    """
    if not arm.censored_at and not baseline.censored_at and min([*arm.reached, *baseline.reached]) > 0:
        return _ratio_of_geometric_means(np.log(arm.reached), np.log(baseline.reached), alpha)
    method = "restricted means, delta method"
    horizon = min(arm.last, baseline.last)
    sides = [time_to_target(side, horizon=horizon) for side in (arm, baseline)]
    (mean, error), (base_mean, base_error) = ((side.restricted_mean, side.restricted_error) for side in sides)
    ratio = mean / base_mean if base_mean > 0 else math.nan
    spread = math.hypot(error / mean, base_error / base_mean) if mean > 0 and base_mean > 0 else math.nan
    if not spread > 0:
        return Ratio(ratio, math.nan, math.nan, method)
    width = float(stats.t.ppf(1 - alpha / 2, max(1, min(side.n for side in sides) - 1))) * spread
    return Ratio(ratio, ratio * math.exp(-width), ratio * math.exp(width), f"{method}, up to {horizon:g}")


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

    Runs must be whole: a loss half-way through a long run is not what a short run ends at, since the learning rate had not come down.
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
