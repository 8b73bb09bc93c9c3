"""Smoothed Muon: a running mean of the orthogonalized updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.refine import Smoothing
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def smoothed_muon(
    *, smoothing: float = 0.5, lookahead: bool = True, orthogonalizer: str | Orthogonalizer = "you5", **muon: Any
) -> MatrixRule:
    """Muon with S ← βS + (1−β)O after the orthogonalization. `smoothing` (β) is a live key of the group: schedule it."""
    return replace(make_muon(orthogonalizer=orthogonalizer, **muon), refine=(Smoothing(smoothing, lookahead),))


VARIANT = Variant(
    name="smoothed_muon",
    formula="S ← βS + (1−β)·orth(μM + (1−μ)G); W ← W(1 − η·wd) − η·scale(m,n)·(βS + (1−β)O)",
    source="https://github.com/KellerJordan/modded-nanogpt (medium track, record of 2025-09-17: lr 0.03, β 0.5 → 0.2)",
    lr=0.03,
    factory=smoothed_muon,
    base=make_muon,
)
