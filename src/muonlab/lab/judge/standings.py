"""Where the arms of a race stand, after every seed that all have run: a function of the runs in the folder.

After each seed the arms are compared with the baseline by a test that allows looking as often as one likes (stats.sequential).
Most of alpha goes to the two samples, some to pairs that share a seed: where the seed makes most of the scatter, pairs are clear at
once, and nothing is chosen by the data. What two arms share may make their losses rise and fall together (the test of two samples
is then the more careful), but not against each other: with a correlation of −0.3 over the seeds it makes 5 % false claims at
alpha = 5 %, with −0.9 it makes 17 %. An arm that is better, worse or equivalent runs no more.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from muonlab.lab import stats
from muonlab.lab.runs.store import RunRecord, Sweep
from muonlab.lab.stats import Comparison, Verdict
from muonlab.lab.stats.comparison import decimals
from muonlab.train.run_folder import ENDED

_PAIRS = 0.2  # the pairs' share of alpha


@dataclass(frozen=True)
class Standing:
    """Of one arm, after `seeds` seeds that it and the baseline have both run. An arm that is not open needs no further runs.

    comparison: over these seeds, with the confidence sequence that the verdict rests on; it has no p.
    """

    seeds: int
    verdict: Verdict
    open: bool
    comparison: Comparison | None = None


def standings(sweep: Sweep) -> dict[str, Standing]:
    """Of each arm but the baseline. Each of m arms is tested at alpha / m. A diverged run closes its arm, undecided."""
    plan = sweep.plan
    ends = {name: ended(sweep, name) for name in names_of(plan)}
    baseline = ends.pop(plan["baseline"])
    level = {"alpha": plan["alpha"], "margin": plan["margin"], "claims": len(ends)}
    return {name: _standing(runs, baseline, plan, level) for name, runs in ends.items()}


def _standing(arm: list[RunRecord], baseline: list[RunRecord], plan: dict[str, Any], level: dict[str, Any]) -> Standing:
    n = min(len(arm), len(baseline))
    left = n < len(plan["seeds"])
    diverged = [run for run in (*arm[:n], *baseline[:n]) if run.status == "diverged"]
    if diverged:
        return Standing(n, Verdict("undecided", f"{diverged[0].cell}, seed {diverged[0].seed}, diverged"), open=False)
    if not n:
        return Standing(n, Verdict("undecided", "no runs yet"), open=left)
    ours, theirs = ([run.value(plan["metric"]) for run in side[:n]] for side in (arm, baseline))
    verdict, comparison = _verdict(ours, theirs, **level)
    return Standing(n, verdict, open=left and verdict.word == "undecided", comparison=comparison)


def _verdict(arm: list[Any], baseline: list[Any], *, alpha: float, margin: float | None, claims: int) -> tuple[Verdict, Comparison]:
    """What the pairs say at their share of alpha, or else the two samples at theirs; and the interval that says so."""
    level = _PAIRS * alpha / claims
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    difference = statistics.fmean(differences)
    low, high = stats.mean_sequence(differences, alpha=level)
    word = str(stats.words(low, high, margin))
    if word != "undecided":
        d = decimals((high - low) / 2)
        found = f"difference {difference:+.{d}f}, {100 * (1 - level):.4g} % confidence sequence of pairs"
        return Verdict(word, f"{found} {low:+.{d}f} to {high:+.{d}f}"), Comparison(difference, low, high, math.nan, None)
    rest = (1 - _PAIRS) * alpha
    low, high = stats.confidence_sequence(arm, baseline, alpha=rest / claims)
    verdict = stats.decide_now(arm, baseline, alpha=rest, margin=margin, claims=claims)
    return verdict, Comparison(difference, low, high, math.nan, None)


def names_of(plan: dict[str, Any]) -> list[str]:
    return [cell["name"] for cell in plan["cells"]]


def ended(sweep: Sweep, cell: str) -> list[RunRecord]:
    """The runs of an arm in the order of the seeds, up to the first that has not ended."""
    found: list[RunRecord] = []
    by_seed = {run.seed: run for run in sweep.of(cell)}
    for seed in sweep.plan["seeds"]:
        run = by_seed.get(seed)
        if run is None or run.status not in ENDED:
            break
        found.append(run)
    return found
