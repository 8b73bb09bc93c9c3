"""What is done to the momentum before it is orthogonalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from muonlab.optim.bases import eigenvectors, orthogonal_factor
from muonlab.optim.checks import check_range, check_whole
from muonlab.optim.magnitude import bounded, to_unit_range
from muonlab.optim.rules import Stateless

if TYPE_CHECKING:
    from muonlab.optim.polar import Orthogonalizer
    from muonlab.optim.step import Step


@dataclass(frozen=True)
class Sign(Stateless):
    """U ← sign(U): AdaMuon's (arXiv 2507.11005 v2), against single entries that dominate. State: none."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return x.sign()

    def __str__(self) -> str:
        return "sign"


@dataclass(frozen=True)
class Contra:
    """An orthogonalizer that lifts small singular values: O − c·U/σ_max(U), brought back to the norm of O.

    Contra-Muon (modded-nanogpt, optimization benchmark, PR 275): σ ↦ 1 − c·σ/σ_max on the singular values of the momentum U,
    with c = 0.2. σ_max by `rounds` of the power iteration, begun with ones; at least the root mean square of the singular values,
    since rows that sum to zero (as behind a LayerNorm) hide from ones.
    """

    orthogonalize: Orthogonalizer
    coefficient: float = 0.2
    rounds: int = 5

    def __post_init__(self) -> None:
        check_range("coefficient", self.coefficient, 0.0, float("inf"))
        check_whole("rounds", self.rounds, 1)

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        o = self.orthogonalize(x)
        x = (x * to_unit_range(x)).to(o.dtype)
        mixed = o - self.coefficient * x / self._largest_singular_value(x)
        return mixed * (_norm(o) / _norm(mixed).clamp(min=1e-10))

    def _largest_singular_value(self, x: Tensor) -> Tensor:  # (..., m, n) -> (..., 1, 1)
        v = torch.ones_like(x[..., :1, :]).mT
        v = v / _norm(v)
        for _ in range(self.rounds):
            u = x @ v
            u = u / _norm(u).clamp(min=1e-10)
            v = x.mT @ u
            v = v / _norm(v).clamp(min=1e-10)
        return torch.maximum(_norm(x @ v), _norm(x) / min(x.shape[-2:]) ** 0.5).clamp(min=1e-10)

    @property
    def waits(self) -> str:
        return getattr(self.orthogonalize, "waits", "")

    def flops(self, m: int, n: int) -> int:
        return self.orthogonalize.flops(m, n) + (4 * self.rounds + 2) * m * n

    def __str__(self) -> str:
        return f"{self.orthogonalize} - {self.coefficient:g}·momentum"


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


@dataclass(frozen=True)
class SOAPBasis:
    """Adam's normalization in Shampoo's eigenbasis, before the orthogonalization (SOAP, arXiv 2409.11321).

    U ← Q_L (Z/(√V + eps)) Q_Rᵀ with Z = Q_Lᵀ U Q_R and V ← βV + (1−β)Z², at U's own norm. After that L ← βL + (1−β)GGᵀ and
    R ← βR + (1−β)GᵀG. Their eigenvectors Q are found after the first step, which goes without, and brought up to date by one
    step of the QR iteration after every `every`-th (modded-nanogpt, optimization benchmark, PR 278). State: two matrices for
    each side and one for V, in the state's dtype. Where a side has more rows than the statistics have rank (a rectangular matrix's
    long side, at first), eigenvectors of the eigenvalue 0 are anybody's, and U depends on them: ours do not depend on the machine
    (bases.py). Finding out which matrices are due waits for the device.
    """

    beta: float = 0.9
    eps: float = 1e-8
    every: int = 10

    waits: ClassVar[str] = "soap_muon finds its bases (eigh, QR) where the host says that they are due"

    def __post_init__(self) -> None:
        check_range("eps", self.eps, 0.0, float("inf"))
        check_whole("every", self.every, 1)

    def scalars(self) -> dict[str, Any]:
        return {"shampoo_beta": self.beta}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        b, m, n = like.shape
        return {
            "soap_steps": like.new_zeros(b),
            "second_moment": torch.zeros_like(like),
            "left": like.new_zeros(b, m, m),
            "right": like.new_zeros(b, n, n),
            "left_basis": like.new_zeros(b, m, m),
            "right_basis": like.new_zeros(b, n, n),
        }

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        state, beta = step.state, step.scalars["shampoo_beta"]
        count, v = state["soap_steps"], state["second_moment"]
        begun = (count > 0).reshape(-1, 1, 1)
        x = bounded(x)  # the update is orthogonalized: its size is no matter
        left, right = state["left_basis"], state["right_basis"]
        z = left.mT @ x @ right
        v.copy_(torch.where(begun, v * beta + (1 - beta) * z.square(), v))
        turned = left @ (z / (v.sqrt() + self.eps)) @ right.mT
        turned = turned * (_norm(x) / _norm(turned).clamp(min=1e-8))
        out = torch.where(begun, turned, x)
        self._learn(step.grads, state, beta)
        return out

    def _learn(self, g: Tensor, state: dict[str, Tensor], beta: float) -> None:
        """The statistics, and the bases that are due."""
        g = bounded(g)
        count, v = state["soap_steps"], state["second_moment"]
        for side, product in (("left", g @ g.mT), ("right", g.mT @ g)):
            state[side].lerp_(product, 1 - beta)
        first = (count == 0).nonzero().flatten().tolist()
        due = ((count > 0) & (count % self.every == 0)).nonzero().flatten().tolist()
        for dim, side in ((-2, "left"), (-1, "right")):
            basis = f"{side}_basis"
            for i in first:
                state[basis][i] = eigenvectors(state[side][i])
            for i in due:
                statistic, old = state[side][i], state[basis][i]
                order = (old * (statistic @ old)).sum(0).argsort(descending=True)
                state[basis][i] = orthogonal_factor(statistic @ old[:, order])
                v[i] = v[i].index_select(dim, order)
        count.add_(1)

    def __str__(self) -> str:
        return f"soap_basis(every {self.every})"
