"""The Muon family as composable pieces behind one torch.optim.Optimizer. Needs torch alone. Read `rules.py` first."""

from muonlab.optim.drop_in import Muon
from muonlab.optim.factory import optimizer
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.polar import orthogonalize, orthogonalizers
from muonlab.optim.rules import MatrixRule, Step, Transform, UpdateRule
from muonlab.optim.variants import optimizers

__all__ = [
    "MatrixRule",
    "MatrixSpec",
    "Muon",
    "Optimizer",
    "Step",
    "Transform",
    "UpdateRule",
    "optimizer",
    "optimizers",
    "orthogonalize",
    "orthogonalizers",
]
