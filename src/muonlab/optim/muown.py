"""Muown: Muon on the directions of the rows, Adam on their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.optim import arithmetic
from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.scaling import shape_scale
from muonlab.optim.step import Step


@dataclass(frozen=True)
class Muown:
    """Each row is W_i = g_i·R_i/‖R_i‖, as in weight normalization (arXiv 2605.10797).

    G_g = ⟨G, R/‖R‖⟩ and G_R = g/‖R‖·(G − G_g·R/‖R‖) for every row; M ← μM + G_R, R ← R − η·scale·orth(G_R + μM); g by Adam at
    the same η; W ← g·R/‖R‖ − η·wd·W. State: g, ‖R‖ and Adam's two moments, one number each a row; M; the count of steps.
    A row that is zero when it is first stepped has no direction: it takes that of its first update.
    """

    orthogonalize: Orthogonalizer
    momentum: float = 0.95
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    scale: str = "match_adamw_rms"
    coupled: bool = False  # wd·W joins the gradient, in place of the decay

    matrices: ClassVar[bool] = True

    def scalars(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "betas": self.betas, "eps": self.eps}

    def init(self, like: Tensor) -> dict[str, Tensor]:
        row = torch.zeros_like(like[..., :1])  # (B, m, 1)
        names = ("length", "radius", "exp_avg", "exp_avg_sq")
        return {
            "momentum_buffer": torch.zeros_like(like),
            **{name: row.clone() for name in names},
            "step": torch.zeros(len(like), dtype=torch.float32, device=like.device),
        }

    def __call__(self, step: Step) -> None:
        state, w = step.state, step.matrices()
        if self.coupled:
            step.grads = step.penalized()
        mu, (beta1, beta2), eps = step.scalars["momentum"], step.scalars["betas"], step.scalars["eps"]
        t = step.count("step").double().reshape(-1, 1, 1)
        norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        started = state["radius"] > 0
        # From the weights, so that what others do to them (QK-Clip, a load by hand) counts; Adam may have turned the sign.
        g = norm.copysign(state["length"])
        r = torch.where(started, state["radius"], norm)
        safe_g, safe_r = torch.where(g == 0, 1.0, g), torch.where(r > 0, r, 1.0)
        unit = w / safe_g  # rows of norm 1, or 0
        grad_g = (step.grads * unit).sum(-1, keepdim=True)
        grad_r = safe_g / safe_r * (step.grads - unit * grad_g)
        m = state["momentum_buffer"].mul_(mu).add_(grad_r)
        o = self.orthogonalize(grad_r + mu * m if self.nesterov else m)
        moved = unit * r - o * (step.lr * shape_scale(self.scale, *w.shape[-2:]))
        radius = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        direction = moved / torch.where(radius > 0, radius, 1.0)
        # a row of length 0 grows along the direction that this step gives it: along none its length would stay 0
        grad_g = torch.where(g == 0, (step.grads * direction).sum(-1, keepdim=True), grad_g)
        first = arithmetic.lerp_(state["exp_avg"], grad_g, 1 - beta1)
        second = arithmetic.add_square_(state["exp_avg_sq"].mul_(beta2), grad_g, 1 - beta2)
        bias1, bias2 = (arithmetic.bias_correction(beta, t).to(w.dtype) for beta in (beta1, beta2))
        g = torch.where(g == 0, 0.0, g) - step.lr * (first / bias1) / ((second / bias2).sqrt() + eps)
        new = g * direction
        still = ((o == 0).all(-1, keepdim=True)) & (first == 0)  # such a row stays as it is, to the bit
        new = torch.where(still, w, new)
        decay = step.lr * step.weight_decay
        if not self.coupled and (isinstance(decay, Tensor) or decay):
            new = new - decay * w
            g = torch.linalg.vector_norm(new, dim=-1, keepdim=True)
        step.write(new)
        step.keep("length", g)
        step.keep("radius", radius)

    def lr_factor(self, shape: tuple[int, ...]) -> float:
        return shape_scale(self.scale, *shape[-2:])

    @property
    def waits(self) -> str:
        return getattr(self.orthogonalize, "waits", "")

    def describe(self) -> str:
        name = "nesterov" if self.nesterov else "momentum"
        return f"row directions: {name}(heavy_ball) -> {self.orthogonalize} -> {self.scale}; row lengths: adam"
