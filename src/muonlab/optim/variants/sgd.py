"""SGD with momentum on every parameter, torch's own."""

from __future__ import annotations

from muonlab.optim.elementwise import SGD
from muonlab.optim.variants import Variant


def sgd(*, momentum: float = 0.0, nesterov: bool = False) -> SGD:
    """W ← W − ηM with M ← μM + (G + wd·W), elementwise."""
    return SGD(momentum, nesterov)


VARIANT = Variant(
    name="sgd",
    formula="M ← μM + (G + wd·W); W ← W − ηM",
    source="Sutskever et al. 2013, http://proceedings.mlr.press/v28/sutskever13.html; as in torch.optim.SGD",
    lr=1e-2,
    factory=sgd,
)
