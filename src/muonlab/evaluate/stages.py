"""How sure one is of a stage of a roadmap, and of what it adds: over problems, and where it matters over seeds.

A stage has members: each a run (or a vote of runs) that answered every problem. right (M, N) bool: which member is right where.
One seed may be lucky: what another model adds is judged by the spread over seeds, and what a vote adds against the mean of the very
runs that vote, not against one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.evaluate.accuracy import accuracy, compare

Right = NDArray[np.bool_]
Over = Literal["problems", "seeds"]


@dataclass(frozen=True)
class Standing:
    """The share of right answers, and its interval: Wilson's over problems for one member, Student's over seeds for several."""

    value: float
    low: float
    high: float
    over: Over


@dataclass(frozen=True)
class Gain:
    """Of b against a, with interval, p and verdict.

    over: seeds (Welch's test: other runs of both models are meant), or problems (for the runs that there are: McNemar's exact test
    for one member each, a paired t-test of the members' means else).
    """

    difference: float
    low: float
    high: float
    p: float
    over: Over
    equivalent: bool  # the (1 − 2 alpha) interval lies within the margin


def standing(right: Right, *, alpha: float = 0.05) -> Standing:
    """right: (M, N) with at least one of each."""
    if len(right) == 1:
        found = accuracy(int(right.sum()), right.shape[1], alpha=alpha)
        return Standing(found.value, found.low, found.high, "problems")
    each = right.mean(1)
    half = float(stats.t.ppf(1 - alpha / 2, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each)))
    value = float(each.mean())
    return Standing(value, max(0.0, value - half), min(1.0, value + half), "seeds")


def gain(a: Right, b: Right, *, same_runs: bool, alpha: float = 0.05, margin: float | None = None) -> Gain:
    """a (M, N), b (K, N): the same problems. same_runs: both stages are made of the same runs."""
    if not same_runs and min(len(a), len(b)) > 1:
        found: Any = stats.ttest_ind(b.mean(1), a.mean(1), equal_var=False)
        return _gain(float(b.mean() - a.mean()), found, "seeds", alpha, margin)
    if len(a) == len(b) == 1:
        paired = compare(a[0].tolist(), b[0].tolist(), alpha=alpha)
        narrow = compare(a[0].tolist(), b[0].tolist(), alpha=2 * alpha)
        within = margin is not None and max(abs(narrow.low), abs(narrow.high)) < margin
        return Gain(paired.difference, paired.low, paired.high, paired.p, "problems", within)
    each = b.mean(0) - a.mean(0)
    if not each.any():
        return Gain(0.0, 0.0, 0.0, 1.0, "problems", margin is not None)
    return _gain(float(each.mean()), stats.ttest_1samp(each, 0.0), "problems", alpha, margin)


def _gain(difference: float, test: Any, over: Over, alpha: float, margin: float | None) -> Gain:
    low, high = test.confidence_interval(1 - alpha)
    within = margin is not None and max(map(abs, test.confidence_interval(1 - 2 * alpha))) < margin
    return Gain(difference, float(low), float(high), float(test.pvalue), over, within)
