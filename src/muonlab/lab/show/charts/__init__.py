"""Charts: one Vega-Lite definition each, for PNG, SVG and the interactive page alike. Plain rows in, no torch."""

from __future__ import annotations

from altair.utils.schemapi import debug_mode

from muonlab.lab.judge.results import Results
from muonlab.lab.show.charts.arms import differences, finals, ranked, train_times
from muonlab.lab.show.charts.designs import effects, sweep
from muonlab.lab.show.charts.losses import curves, losses_of, multiples
from muonlab.lab.show.charts.style import VEGA_LITE, Chart, theme

__all__ = ["NAMES", "VEGA_LITE", "Chart", "charts", "theme"]

NAMES = (
    "loss-by-step",
    "loss-by-tokens",
    "loss-by-seconds",
    "sweep",
    "effects",
    "final-loss",
    "difference",
    "ranked",
    "train-time",
    "all-curves",
)


def charts(results: Results) -> list[Chart]:
    """The charts that a sweep's figures allow, in the order of NAMES."""
    losses = losses_of(results)
    with debug_mode(False):  # else altair checks all rows anew with each piece; Chart.spec checks the whole once
        found = [curves(results, losses, clock) for clock in ("step", "tokens", "seconds")]
        found += [make(results) for make in (sweep, effects, finals, differences, ranked, train_times)]
        found.append(multiples(results, losses))
    return [chart for chart in found if chart is not None]
