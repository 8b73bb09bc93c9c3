"""Contra-Muon: the orthogonalized update less a little of the momentum itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.precondition import Contra
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def contra_muon(*, coefficient: float = 0.2, rounds: int = 5, **muon: Any) -> MatrixRule:
    """Singular values 1 − c·σ/σ_max in place of 1: small directions are lifted. rounds: of the power iteration for σ_max."""
    base = make_muon(**muon)
    return replace(base, orthogonalize=Contra(base.orthogonalize, coefficient, rounds))


VARIANT = Variant(
    name="contra_muon",
    formula="U = μM + (1−μ)G, O = orth(U), D = O − c·U/σ_max(U); W ← W(1 − η·wd) − η·scale(m,n)·D·‖O‖_F/‖D‖_F",
    source="https://github.com/KellerJordan/modded-nanogpt (optimization benchmark, 2026-05-01, PR 275)",
    lr=0.02,
    factory=contra_muon,
    base=make_muon,
)
