"""An optimizer of one's own, made of pieces: Muon whose every row is brought to one length before the step, in a slot of the rule.

pip install muonlab, then: python examples/own_variant.py
In the package it would be a file in src/muonlab/optim/variants/, found by itself, and tested by the contract: CONTRIBUTING.md.
"""

from dataclasses import dataclass, replace

import torch

from muonlab.optim import Optimizer, orthogonalizer
from muonlab.optim.elementwise import AdamW
from muonlab.optim.rules import Stateless
from muonlab.optim.variants import variant


@dataclass(frozen=True)
class EqualRows(Stateless):
    """Rows of one length, the size of the whole as before. A piece maps a stack of matrices to one of the same shape."""

    eps: float = 1e-7

    def __call__(self, x, step):  # (B, m, n) -> (B, m, n); x is left as it was
        rows = x / x.norm(dim=-1, keepdim=True).clamp(min=self.eps)
        return rows * (x.norm(dim=(-2, -1), keepdim=True) / rows.norm(dim=(-2, -1), keepdim=True))


muon = variant("muon").rule(momentum=0.9, orthogonalizer=orthogonalizer("polar_express5", dtype="float32"))
mine = replace(muon, refine=(EqualRows(),))
print(mine.describe())

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 32))
x = torch.randn(256, 32)
y = torch.tanh(x @ torch.randn(32, 32) / 6)

matrices = [p for p in model.parameters() if p.ndim == 2]
vectors = [p for p in model.parameters() if p.ndim < 2]
optimizer = Optimizer(
    [{"params": matrices, "rule": "mine"}, {"params": vectors, "rule": "adamw", "lr": 3e-3}],
    {"mine": mine, "adamw": AdamW()},
    lr=0.02,
)
for step in range(100):
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, 99):
        print(f"step {step}: loss {loss.item():.3f}")
