"""The Muon family as composable pieces behind one torch.optim.Optimizer. Needs torch alone. Read `rules.py` first."""

from muonlab.optim.drop_in import Muon
from muonlab.optim.factory import optimizer
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.polar import orthogonalize, orthogonalizer, orthogonalizers
from muonlab.optim.qk_clip import QKClip
from muonlab.optim.rules import MatrixRule, Step, Transform, UpdateRule
from muonlab.optim.schedule import ScalarSchedule
from muonlab.optim.variants import optimizers
from muonlab.optim.wrappers import EMANesterov, TailEMA

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
