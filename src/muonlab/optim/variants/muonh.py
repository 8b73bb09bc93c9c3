"""MuonH, the hyperball optimizer: every matrix keeps its norm, and a step is an angle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.apply import Hyperball
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def muonh(*, scale: str = "none", **muon: Any) -> MatrixRule:
    """The update at a relative length of η, and W back to its initial radius. Weight decay has nothing left to do."""
    return replace(make_muon(scale=scale, **muon), apply=Hyperball())


VARIANT = Variant(
    name="muonh",
    formula="O = orth(μM + (1−μ)G), R = ‖W₀‖_F; W ← R·normalize(W − η·R·O/‖O‖_F)",
    source="https://github.com/KellerJordan/modded-nanogpt (optimization benchmark, 2026-04-30, PR 267)",
    lr=0.018,
    factory=muonh,
    base=make_muon,
)
