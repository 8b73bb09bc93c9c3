"""The Muon family as composable pieces behind one torch.optim.Optimizer. Needs torch alone. Read `rules.py` first."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from muonlab.optim.drop_in import Muon
from muonlab.optim.factory import optimizer
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.polar import orthogonalize, orthogonalizer, orthogonalizers
from muonlab.optim.rules import MatrixRule, Transform, UpdateRule
from muonlab.optim.step import Step
from muonlab.optim.variants import optimizers

if TYPE_CHECKING:
    from muonlab.optim.qk_clip import QKClip
    from muonlab.optim.schedule import ScalarSchedule
    from muonlab.optim.wrappers import EMANesterov, TailEMA

# What few scripts need, imported on first use: `import muonlab.optim` is to cost next to nothing beside torch.
_LATER = {"EMANesterov": "wrappers", "TailEMA": "wrappers", "QKClip": "qk_clip", "ScalarSchedule": "schedule"}

__all__ = [
    "EMANesterov",
    "MatrixRule",
    "MatrixSpec",
    "Muon",
    "Optimizer",
    "QKClip",
    "ScalarSchedule",
    "Step",
    "TailEMA",
    "Transform",
    "UpdateRule",
    "optimizer",
    "optimizers",
    "orthogonalize",
    "orthogonalizer",
    "orthogonalizers",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
