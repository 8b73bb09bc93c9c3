"""Muown: Muon on row directions, Adam on row lengths."""

from __future__ import annotations

from muonlab.optim.checks import pair
from muonlab.optim.muown import Muown
from muonlab.optim.polar import Orthogonalizer, chosen
from muonlab.optim.scaling import scaling_rule
from muonlab.optim.variants import Variant


def muown(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    orthogonalizer: str | Orthogonalizer = "fast",
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    scale: str = "match_adamw_rms",
    coupled: bool = False,
) -> Muown:
    """Rows W_i = g_i·R_i/‖R_i‖: Muon moves R, Adam moves g, at one learning rate."""
    return Muown(chosen(orthogonalizer), momentum, nesterov, pair("betas", betas), eps, scaling_rule(scale), coupled)


VARIANT = Variant(
    name="muown",
    formula="W = g·R/‖R‖ by rows; R ← R − η·scale(m,n)·orth(G_R + μM), g ← g − η·Adam(G_g); W ← g·R/‖R‖ − η·wd·W",
    source="arXiv 2605.10797",
    lr=1e-3,
    factory=muown,
)
