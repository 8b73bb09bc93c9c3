"""Lion on every parameter: the sign of a momentum."""

from __future__ import annotations

from muonlab.optim.checks import pair
from muonlab.optim.elementwise import Lion
from muonlab.optim.variants import Variant


def lion(*, betas: tuple[float, float] = (0.9, 0.99), coupled: bool = False) -> Lion:
    """W ← W(1 − η·wd) − η·sign(β₁M + (1−β₁)G), elementwise. coupled: wd·W in the gradient."""
    return Lion(pair("betas", betas), coupled=coupled)


VARIANT = Variant(
    name="lion",
    formula="W ← W(1 − η·wd) − η·sign(β₁M + (1−β₁)G); M ← β₂M + (1−β₂)G",
    source="arXiv 2302.06675",
    lr=1e-4,
    factory=lion,
)
