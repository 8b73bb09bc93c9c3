"""NorMuon: Muon with one adaptive scale per neuron."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.refine import VarianceReduction
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def normuon(*, beta2: float = 0.95, axis: str = "long", decay: str = "cautious", **muon: Any) -> MatrixRule:
    """Muon's update with its rows (or columns) brought to equal size by a running second moment."""
    return replace(make_muon(decay=decay, **muon), refine=(VarianceReduction(beta2, axis),))


VARIANT = Variant(
    name="normuon",
    formula="O = orth(μM + (1−μ)G); W ← W − η·wd·[O⊙W ≥ 0]⊙W − η·scale(m,n)·‖O‖_F·(O·s^(−½))/‖O·s^(−½)‖_F",
    source="arXiv 2510.05491; defaults as in modded-nanogpt (axis 'long', cautious decay; the paper: 'output', 'param')",
    lr=0.02,
    factory=normuon,
    base=make_muon,
)
