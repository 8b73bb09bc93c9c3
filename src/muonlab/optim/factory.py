"""`muonlab.optimizer(model, name)`: a whole model in one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from muonlab.names import choose
from muonlab.optim import routing
from muonlab.optim.adamw import AdamW
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.rules import UpdateRule
from muonlab.optim.variants import variant

AUX_LR = 3e-3  # AdamW on embeddings, head and vectors beside a Muon: modded-nanogpt and nanochat use 1e-3 … 1e-2


def optimizer(
    model: nn.Module,
    name: str = "muon",
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    aux_lr: float | Mapping[str, float] | None = None,
    aux_weight_decay: float = 0.0,
    aux_betas: tuple[float, float] | None = None,
    aux_eps: float | None = None,
    roles: Mapping[str, str] | None = None,
    lr_mul: Mapping[str, float] | None = None,
    wd_mul: Mapping[str, float] | None = None,
    **options: Any,
) -> Optimizer:
    """Routes every parameter of `model`: hidden matrices to the named optimizer, the rest to AdamW.

    lr, weight_decay: for the matrices (default lr: the variant's own). aux_lr: for embeddings, head and vectors, one number
    or {role: number}; default 3e-3, or `lr` if the optimizer is AdamW itself. roles: {pattern: role} overrides, see
    `muonlab.optim.routing`. aux_betas, aux_eps: AdamW's, default (0.9, 0.95) and 1e-8. lr_mul, wd_mul: {pattern: factor} on the
    learning rate and decay of single parameters. options: the variant's own (orthogonalizer, momentum, beta2, ...).
    Print `.plan` of the result to see what was decided, and why.
    Raises ValueError for unknown names, options and roles, and for patterns that match nothing.
    """
    model = _unwrapped(model)
    chosen = variant(name)
    main: UpdateRule = chosen.rule(**options)
    lr = chosen.lr if lr is None else lr
    # Beside AdamW itself the rest is trained as the matrices are, unless told otherwise.
    aux, fallback = (main, lr) if isinstance(main, AdamW) else (AdamW(), AUX_LR)
    aux = AdamW(aux.betas if aux_betas is None else aux_betas, aux.eps if aux_eps is None else aux_eps)
    rules: dict[str, UpdateRule] = {name: main, "aux_adamw": aux}
    assignments = routing.assign(model, roles)
    present = sorted({a.role for a in assignments})
    aux_lrs = _per_role(aux_lr, fallback)
    groups = []
    # One group for each role (and storage layout), in the order in which they first appear; never in a set's order.
    for role, spec in dict.fromkeys((a.role, a.spec) for a in assignments):
        members = [a for a in assignments if (a.role, a.spec) == (role, spec)]
        matrix = role == "matrix"
        groups.append(
            {
                "params": [(a.name, a.parameter) for a in members],
                "rule": name if matrix else "aux_adamw",
                "lr": lr if matrix else aux_lrs[role],
                "weight_decay": weight_decay if matrix else aux_weight_decay,
                "spec": spec,
                "role": role,
                "why": [a.why for a in members],
            }
        )
    if main.matrices and "matrix" not in present:
        raise ValueError(f"{type(model).__name__} has no hidden matrix for {name!r} (roles found: {', '.join(present)})")
    names = [a.name for a in assignments]
    for key, patterns in (("lr_mul", lr_mul or {}), ("wd_mul", wd_mul or {})):
        factors = {n: f for pattern, f in patterns.items() for n in routing.match_pattern(pattern, names)}
        for group in groups:
            values = [float(factors.get(n, 1.0)) for n, _ in group["params"]]
            group[key] = values if len(set(values)) > 1 else values[0]
    return Optimizer(groups, rules, lr=lr, weight_decay=weight_decay)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's or DistributedDataParallel's wrapper, so that names are the model's own."""
    inside = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
    kind = type(model).__name__
    return _unwrapped(getattr(model, inside[kind])) if kind in inside else model


def _per_role(aux_lr: float | Mapping[str, float] | None, fallback: float) -> dict[str, float]:
    others = [role for role in routing.ROLES if role != "matrix"]
    if not isinstance(aux_lr, Mapping):
        return dict.fromkeys(others, fallback if aux_lr is None else float(aux_lr))
    for role in aux_lr:
        choose("role in aux_lr", role, others)
    return {role: float(aux_lr.get(role, fallback)) for role in others}
