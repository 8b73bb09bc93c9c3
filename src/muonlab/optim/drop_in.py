"""`muonlab.Muon`: takes torch.optim.Muon's place, argument for argument, and loads its state dicts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, final

from torch import Tensor

from muonlab.optim.coefficients import KELLER
from muonlab.optim.decay import ParamDecay
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.momentum import Momentum
from muonlab.optim.newton_schulz import NewtonSchulz
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.rules import MatrixRule, UpdateRule
from muonlab.optim.scaling import scaling_rule

ADJUSTMENTS = (None, "original", "match_rms_adamw", "spectral_unclamped")
_WHOLE = 'muonlab.optimizer(model, "muon") routes a whole model'
_REMEDY = {
    False: f"give it to AdamW; {_WHOLE}",
    True: "it may be a bank of matrices or a convolution; say which by the group's key spec, "
    f"muonlab.optim.MatrixSpec(batch_dims=1) or muonlab.optim.MatrixSpec(); {_WHOLE}",
}
_RULE_KEYS = ("nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")


@final
class Muon(Optimizer):
    """torch.optim.Muon's function, on stacks.

    params: 2-D parameters, or groups of them; every argument may also be a group's key. The result equals
    torch.optim.Muon's within the rounding of the orthogonalization; where bfloat16 products are slow, they are computed
    in float32. `muonlab.optimizer(model, "muon")` is the way to train a whole model.
    Raises ValueError for values out of range and for parameters that are not 2-D.
    Source: https://kellerjordan.github.io/posts/muon/, arXiv 2502.16982.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = KELLER,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        super().__init__(
            params,
            {"muon": _rule(nesterov, tuple(ns_coefficients), eps, ns_steps, adjust_lr_fn)},
            lr=lr,
            weight_decay=weight_decay,
            nonfinite="ignore",
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )

    def _check(self, name: str, p: Tensor, rule: UpdateRule, spec: MatrixSpec | None) -> None:
        """As torch's: matrices alone. Others need a `spec`, which torch's does not take."""
        if spec is None and p.ndim != 2:
            raise ValueError(f"{name}: expected a matrix, got shape {tuple(p.shape)}: {_REMEDY[p.ndim > 2]}")
        super()._check(name, p, rule, spec)

    def rule_of(self, group: dict[str, Any]) -> MatrixRule:
        nesterov, coefficients, eps, steps, adjust = (group[key] for key in _RULE_KEYS)
        return _rule(nesterov, tuple(coefficients), eps, steps, adjust)


@cache
def _rule(nesterov: bool, coefficients: tuple[float, ...], eps: float, steps: int, adjust: str | None) -> MatrixRule:
    if len(coefficients) != 3:
        raise ValueError(f"expected ns_coefficients (a, b, c), got {len(coefficients)} numbers")
    if not 1 <= steps < 100:
        raise ValueError(f"expected 1 <= ns_steps < 100, got {steps}")
    if adjust not in ADJUSTMENTS:
        raise ValueError(f"expected adjust_lr_fn {', '.join(map(repr, ADJUSTMENTS[:-1]))} or {ADJUSTMENTS[-1]!r}, got {adjust!r}")
    a, b, c = coefficients
    return MatrixRule(
        momentum=Momentum(nesterov=nesterov),
        orthogonalize=NewtonSchulz("newton_schulz", ((a, b, c),) * steps, eps=eps),
        scale=scaling_rule(adjust or "original"),
        decay=ParamDecay(),
    )
