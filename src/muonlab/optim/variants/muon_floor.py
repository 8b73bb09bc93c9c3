"""Muon with a floor under ‖U‖/‖W‖ and a brake on radial growth, in place of weight decay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.adjust import FirstOrderRadius, Floor, RadialBrake
from muonlab.optim.apply import SUBTRACT
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def muon_floor(
    *, floor: float = 0.35, per: str = "matrix", outward: float = 0.5, inward: float = 1.0, radius: bool = True, **muon: Any
) -> MatrixRule:
    """Brake, then floor (per "matrix", "row" or "none"), then the step, with the norm that first order gives it (`radius`)."""
    return replace(
        make_muon(**muon),
        adjust=(RadialBrake(outward, inward), Floor(floor, per)),
        apply=FirstOrderRadius() if radius else SUBTRACT,
    )


VARIANT = Variant(
    name="muon_floor",
    formula="U = brake(scale(m,n)·orth(μM + (1−μ)G)); U ← U·max(1, τ‖W‖/‖U‖); W ← (W − ηU) at norm ‖W‖ − η⟨U,W⟩/‖W‖",
    source="https://github.com/KellerJordan/modded-nanogpt (optimization benchmark, PRs 269, 294 and 328)",
    lr=0.0375,
    factory=muon_floor,
    base=make_muon,
)
