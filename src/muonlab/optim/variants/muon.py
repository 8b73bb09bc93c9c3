"""Muon: momentum, orthogonalized by Newton–Schulz."""

from __future__ import annotations

from muonlab.optim import decay as decays
from muonlab.optim.momentum import Momentum
from muonlab.optim.polar import Orthogonalizer, chosen
from muonlab.optim.rules import MatrixRule
from muonlab.optim.scaling import scaling_rule
from muonlab.optim.variants import Variant


def muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    momentum_form: str = "ema",
    momentum_dtype: str = "float32",
    orthogonalizer: str | Orthogonalizer = "fast",
    scale: str = "aspect",
    decay: str = "param",
) -> MatrixRule:
    """W ← W(1 − η·wd) − η·scale·orth(μM + (1−μ)G). orthogonalizer: a name, or what `muonlab.optim.orthogonalizer` made."""
    return MatrixRule(
        momentum=Momentum(momentum, nesterov, momentum_form, momentum_dtype),
        orthogonalize=chosen(orthogonalizer),
        scale=scaling_rule(scale),
        decay=decays.decay(decay),
    )


VARIANT = Variant(
    name="muon",
    formula="W ← W(1 − η·wd) − η·scale(m,n)·orth(μM + (1−μ)G)",
    source="Keller Jordan et al., https://kellerjordan.github.io/posts/muon/; arXiv 2502.16982",
    lr=0.02,
    factory=muon,
)
