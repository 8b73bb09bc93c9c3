"""One set of runs: its summary, a test of its mean against a target, and a description by sliding windows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_RESAMPLES = 9999
_MOST_FOR_BOOTSTRAP = 5000  # beyond, it costs minutes and the mean is as good as normal


def has_spread(values: ArrayLike) -> np.ndarray:
    """Do the values (last axis) differ by more than what rounding makes of equal ones? Without that there is no test of them."""
    x = np.asarray(values, dtype=float)
    return np.ptp(x, axis=-1) > 1e-12 * np.abs(x).max(axis=-1)


def estimable(*samples: Sequence[float]) -> bool:
    """Is there an estimate of chance? The one place that decides it, for intervals, tests and verdicts: two values in each sample,
    and a spread in one of them."""
    return all(len(values) > 1 for values in samples) and any(has_spread(values) for values in samples)


@dataclass(frozen=True)
class Summary:
    """Of one sample; low and high are the Student-t confidence interval of the mean (nan for fewer than two values, and for
    equal ones)."""

    n: int
    mean: float
    std: float
    low: float
    high: float
    median: float
    minimum: float
    maximum: float


def summarize(values: Sequence[float], alpha: float = 0.05) -> Summary:
    """Mean, standard deviation (ddof 1), (1 − alpha) interval by Student's t, order statistics. ValueError for no values."""
    if not values:
        raise ValueError("expected at least one value, got none")
    mean, std, half = statistics.fmean(values), math.nan, math.nan
    if len(values) > 1:
        std = statistics.stdev(values)
    if estimable(values):
        half = float(stats.t.ppf(1 - alpha / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Summary(len(values), mean, std, mean - half, mean + half, statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class OneSample:
    """A sample against a target.

    p_less: one-sided t-test of "the mean is below the target". bootstrap_low and bootstrap_high: the BCa bootstrap's interval of
    the mean, a check on Student's (both nan without spread, and for more than 5,000 values).
    """

    n: int
    mean: float
    std: float
    median: float
    minimum: float
    maximum: float
    low: float
    high: float
    p_less: float
    bootstrap_low: float
    bootstrap_high: float


def one_sample(values: Sequence[float], target: float, *, alpha: float = 0.01) -> OneSample:
    """Did the mean get below the target? The level is the speed-run rule's. Raises ValueError for no values."""
    found = summarize(values, alpha)
    p, low, high = math.nan, math.nan, math.nan
    if estimable(values):
        test: Any = stats.ttest_1samp(values, target, alternative="less")
        p = float(test.pvalue)
        low, high = _bootstrap(values, alpha)
    return OneSample(
        n=found.n,
        mean=found.mean,
        std=found.std,
        median=found.median,
        minimum=found.minimum,
        maximum=found.maximum,
        low=found.low,
        high=found.high,
        p_less=p,
        bootstrap_low=low,
        bootstrap_high=high,
    )


def _bootstrap(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """The same interval for the same values: the resampling has a fixed seed."""
    if len(values) > _MOST_FOR_BOOTSTRAP:
        return math.nan, math.nan
    batch = max(1, 1_000_000 // len(values))
    found: Any = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, confidence_level=1 - alpha, batch=batch, rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Windows:
    """p-values (`p_less`) of all runs i … i + size − 1. Overlapping windows share runs: they describe how a test of this size
    tends to come out, they are not evidence. p_std is nan for a single window."""

    size: int
    count: int
    p_mean: float
    p_std: float
    fraction_below: float
    level: float


def windows(values: Sequence[float], target: float, size: int, *, level: float = 0.01) -> Windows:
    """Raises ValueError for a size below 2 or beyond the sample, and for a window without spread."""
    if not 2 <= size <= len(values):
        raise ValueError(f"expected a window of 2 to {len(values)} runs, got {size}")
    view = np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=float), size)
    if not has_spread(view).all():
        raise ValueError(f"a window of {size} runs has no spread: there is no test of it")
    test: Any = stats.ttest_1samp(view, target, axis=1, alternative="less")
    p = np.asarray(test.pvalue)
    spread = float(p.std(ddof=1)) if len(p) > 1 else math.nan
    return Windows(size, len(p), float(p.mean()), spread, float((p < level).mean()), level)
