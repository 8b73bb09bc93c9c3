"""AdamW on every parameter: the baseline."""

from __future__ import annotations

from muonlab.optim.checks import pair
from muonlab.optim.elementwise import AdamW
from muonlab.optim.variants import Variant


def adamw(*, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, coupled: bool = False) -> AdamW:
    """W ← W(1 − η·wd) − η·m̂/(√v̂ + eps), elementwise. coupled: Adam, with wd·W in the gradient."""
    return AdamW(pair("betas", betas), eps, coupled=coupled)


VARIANT = Variant(name="adamw", formula="W ← W(1 − η·wd) − η·m̂/(√v̂ + eps)", source="arXiv 1711.05101", lr=1e-3, factory=adamw)
