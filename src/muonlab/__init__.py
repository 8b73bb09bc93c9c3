"""muonlab: train with the Muon family of optimizers, and know whether a change is better.

    opt = muonlab.optimizer(model, "normuon", lr=0.02)   # a whole model; print(opt.plan)
    opt = muonlab.Muon(matrices, lr=0.02)                # in torch.optim.Muon's place
    u = muonlab.orthogonalize(g)                         # (..., m, n) -> its polar factor
    with muonlab.run("arm", seed=0) as run:              # log from any training script; the lab judges it

The optimizers need torch; `run`, the trainer and the command line need the extra: pip install "muonlab[lab]".
Names are imported on first use, so that `import muonlab` costs nothing and the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muonlab.lab.log.logger import run
    from muonlab.optim import Muon, Optimizer, optimizer, optimizers, orthogonalize

__version__ = "0.1.0"
__all__ = ["Muon", "Optimizer", "optimizer", "optimizers", "orthogonalize", "run"]


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module("muonlab.optim")
    if name == "run":
        return importlib.import_module("muonlab.lab.log.logger").run
    if name in __all__:
        return getattr(importlib.import_module("muonlab.optim"), name)
    raise AttributeError(f"module 'muonlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What can be had: help() and the like look at each of these."""
    from muonlab.extras import has_lab

    return sorted({*globals(), *__all__} - (set() if has_lab() else {"run"}))
