"""AdaMuon: Muon with Adam's second moment on the orthogonalized update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.precondition import Sign
from muonlab.optim.refine import SecondMoment
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def adamuon(
    *, sign: bool = True, beta2: float | None = None, eps: float = 1e-8, rms: float = 0.2, scale: str = "none", **muon: Any
) -> MatrixRule:
    """O = orth(sign(U)), divided by the root of its running square, at an RMS of 0.2. beta2 None: the momentum."""
    return replace(make_muon(scale=scale, **muon), precondition=(Sign(),) if sign else (), refine=(SecondMoment(beta2, eps, rms),))


VARIANT = Variant(
    name="adamuon",
    formula="O = orth(sign(μM + (1−μ)G)); V ← βV + (1−β)O²; Ô = O/(√V + eps); W ← W(1 − η·wd) − η·0.2√(mn)·Ô/‖Ô‖_F",
    source="arXiv 2507.11005",
    lr=1e-3,
    factory=adamuon,
    base=make_muon,
)
