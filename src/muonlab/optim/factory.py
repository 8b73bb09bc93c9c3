"""`muonlab.optimizer(model, name)`: a whole model in one optimizer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from glob import escape
from typing import Any, Unpack

from torch import nn

from muonlab.names import choose
from muonlab.optim import routing
from muonlab.optim.apply import SUBTRACT
from muonlab.optim.apply import constraint as find_constraint
from muonlab.optim.doubts import doubts
from muonlab.optim.elementwise import AdamW
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.options import Aux, Constraint, Nonfinite, OptimizerName, Options
from muonlab.optim.rules import UpdateRule
from muonlab.optim.variants import variant

AUX = ("adamw", "lion", "sgd")
AUX_LR = 3e-3  # AdamW on embeddings, head and vectors beside a Muon: modded-nanogpt and nanochat use 1e-3 … 1e-2


def optimizer(
    model: nn.Module = ...,  # pyright: ignore[reportArgumentType]
    name: OptimizerName | str = "muon",
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    aux: Aux = "adamw",
    aux_lr: float | Mapping[str, float] | None = None,
    aux_weight_decay: float = 0.0,
    aux_betas: tuple[float, float] | None = None,
    aux_eps: float | None = None,
    roles: Mapping[str, str] | None = None,
    specs: Mapping[str, MatrixSpec | Mapping[str, Any]] | None = None,
    constraint: Constraint = "none",
    project_every: int = 1,
    nonfinite: Nonfinite = "skip",
    exact_bf16: bool = False,
    lr_mul: Mapping[str, float] | None = None,
    wd_mul: Mapping[str, float] | None = None,
    **options: Unpack[Options],
) -> Optimizer:
    """Routes every parameter of `model`: hidden matrices to the named optimizer, the rest to AdamW (`aux`: or Lion, or SGD).

    lr, weight_decay: for the matrices (default lr: the variant's own). aux_lr: for embeddings, head and vectors, one number
    or {role: number}; default: AdamW's 3e-3 (Lion's and SGD's own), or `lr` if the optimizer is elementwise itself. roles:
    {pattern: role} overrides, see `muonlab.optim.routing`. specs: {pattern: MatrixSpec, or a mapping of its fields}: which
    matrices a parameter holds. aux_betas, aux_eps: AdamW's, default (0.9, 0.95) and 1e-8. lr_mul, wd_mul: {pattern: factor} on
    the learning rate and decay of single parameters. constraint: "unit_norm" (every `project_every` steps), "geodesic",
    "geodesic_by_norm": along the norm_axis of each spec; "sphere": at a constant Frobenius norm, hidden matrices alone.
    nonfinite, exact_bf16: see `Optimizer`. options: the variant's own (orthogonalizer, momentum, beta2, ...). Print `.plan` of
    the result to see what was decided, and why. Raises ValueError for unknown names, options and roles, and for patterns that
    match nothing.

    Without any argument it returns itself: so does transformers' Trainer call what is no Optimizer class, before it gives the model
    and the options: optimizer_cls_and_kwargs=(muonlab.optimizer, {"name": "muon", "lr": 0.02}).
    """
    if model is ... and _alone(locals()):
        return _under_trainer  # pyright: ignore[reportReturnType]
    _check_kinds(model, roles=roles, specs=specs, lr_mul=lr_mul, wd_mul=wd_mul)
    model = _unwrapped(model)
    chosen = variant(name)
    name = chosen.name  # a string and nothing more: it goes into groups, and checkpoints
    main: UpdateRule = chosen.rule(**options)
    lr = chosen.lr if lr is None else lr
    rest, fallback = aux_rule(main, lr, aux, aux_betas, aux_eps)
    assignments = routing.assign(model, roles, specs)
    if constraint != "none":
        main, rest = _constrained(main, rest, constraint, project_every, assignments)
    elif project_every != 1:
        raise ValueError("project_every goes with constraint 'unit_norm'")
    if main.matrices:
        _look_for_matrices(model, name, assignments)
    ours = {"rule": name, "weight_decay": weight_decay}
    others = {"rule": f"aux_{aux}", "weight_decay": aux_weight_decay}
    groups = _groups(assignments, {"matrix": lr, **_per_role(aux_lr, fallback)}, ours, others)
    spared = undecayed(model, assignments)
    kinds = {a.question: [b.name for b in assignments if b.question == a.question] for a in assignments if a.question}
    _multiply(groups, {"lr_mul": lr_mul or {}, "wd_mul": {**dict.fromkeys(map(escape, spared), 0.0), **(wd_mul or {})}}, kinds)
    rules: dict[str, UpdateRule] = {name: main, f"aux_{aux}": rest}
    return Optimizer(groups, rules, lr=lr, weight_decay=weight_decay, nonfinite=nonfinite, exact_bf16=exact_bf16)


def _check_kinds(model: object, **mappings: object) -> None:
    """Raises TypeError for what is no model, or no mapping."""
    if not isinstance(model, nn.Module):
        got = "none" if model is ... else type(model).__name__
        raise TypeError(f"expected a model (an nn.Module), got {got}; Optimizer takes parameters and groups")
    for what, patterns in mappings.items():
        if patterns is not None and not isinstance(patterns, Mapping):
            raise TypeError(f"expected {what} as a mapping {{pattern: value}}, got {patterns!r}")


def _look_for_matrices(model: nn.Module, name: str, assignments: list[routing.Assignment]) -> None:
    """Warns of what is probably not meant. Raises ValueError where there is nothing for the named optimizer to train."""
    if all(a.role != "matrix" for a in assignments):
        roles_found = ", ".join(sorted({a.role for a in assignments}))
        raise ValueError(f"{type(model).__name__} has no hidden matrix for {name!r} (roles found: {roles_found})")
    for sentence in doubts(name, assignments):
        warnings.warn(f"{type(model).__name__}: {sentence}", UserWarning, stacklevel=3)


def _groups(
    assignments: list[routing.Assignment], rates: Mapping[str, float], ours: dict[str, Any], others: dict[str, Any]
) -> list[dict[str, Any]]:
    """One group for each role (and storage layout), in the order in which they first appear; never in a set's order. Matrices come
    first: trackers show the rate of the first group. ours, others: what groups of matrices, and of the rest, have beside."""
    groups = []
    for role, spec in sorted(dict.fromkeys((a.role, a.spec) for a in assignments), key=lambda kind: kind[0] != "matrix"):
        members = [a for a in assignments if (a.role, a.spec) == (role, spec)]
        side = ours if role == "matrix" else others
        groups.append(
            {
                "params": [(a.name, a.parameter) for a in members],
                "rule": side["rule"],
                "lr": rates[role],
                "weight_decay": side["weight_decay"],
                "spec": spec,
                "role": role,
                "why": [a.why for a in members],
            }
        )
    return groups


def _alone(given: Mapping[str, Any]) -> bool:
    """Whether the function was called without any argument."""
    defaults = inspect.signature(optimizer).parameters.values()
    return all(given[p.name] == ({} if p.kind is p.VAR_KEYWORD else p.default) for p in defaults)


def _under_trainer(model: nn.Module, **options: Any) -> Optimizer:
    """For transformers' Trainer, whose own learning rate does not come along."""
    if options.get("lr") is None:
        lr = variant(options.get("name", "muon")).lr
        remedy = 'give "lr" (and "aux_lr") in optimizer_cls_and_kwargs'
        warnings.warn(f"TrainingArguments.learning_rate is not read: matrices train at {lr:g}; {remedy}", UserWarning, stacklevel=2)
    return optimizer(model, **options)


def undecayed(model: nn.Module, assignments: list[routing.Assignment]) -> list[str]:
    """The parameters that a model exempts from weight decay: by timm's no_weight_decay(), or a mark `_no_weight_decay` on them."""
    ask = routing.own_method(model, "no_weight_decay")
    told = set(ask()) if ask is not None else set()
    return [a.name for a in assignments if a.name in told or getattr(a.parameter, "_no_weight_decay", False)]


def _multiply(groups: list[dict[str, Any]], multipliers: dict[str, Mapping[str, float]], kinds: Mapping[str, list[str]]) -> None:
    """Gives every group its factors: one number, or a list where its parameters differ."""
    names = [name for group in groups for name, _ in group["params"]]
    for key, patterns in multipliers.items():
        factors = {n: f for pattern, f in patterns.items() for n in routing.match_pattern(pattern, names, kinds)}
        for group in groups:
            values = [float(factors.get(n, 1.0)) for n, _ in group["params"]]
            group[key] = values if len(set(values)) > 1 else values[0]


def aux_rule(
    main: UpdateRule, lr: float, aux: str, betas: tuple[float, float] | None, eps: float | None
) -> tuple[UpdateRule, float]:
    """The rule for everything else, and its learning rate where none is given."""
    choose("aux optimizer", aux, AUX)
    if aux != "adamw":
        if betas is not None or eps is not None:
            raise ValueError(f"aux_betas and aux_eps are AdamW's; aux is {aux!r}")
        return variant(aux).rule(), variant(aux).lr
    if not main.matrices and not isinstance(main, AdamW):
        return main, lr  # the whole model goes one way
    # Beside AdamW itself the rest is trained as the matrices are, unless told otherwise.
    base, fallback = (main, lr) if isinstance(main, AdamW) else (AdamW(), AUX_LR)
    betas, eps = base.betas if betas is None else betas, base.eps if eps is None else eps
    return AdamW(betas, eps, coupled=base.coupled), fallback


def _constrained(
    main: UpdateRule, rest: UpdateRule, name: str, every: int, assignments: list[routing.Assignment]
) -> tuple[UpdateRule, UpdateRule]:
    """Both rules with updates applied along the constraint; on the sphere, that of the matrices alone."""
    apply = find_constraint(name, every)
    if getattr(main, "apply", None) != SUBTRACT:
        raise ValueError(f"constraint {name!r} does not go with {main.describe()!r}, which has a way of its own with norms")
    main = replace(main, apply=apply)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if name == "sphere":
        return main, rest
    if all(a.spec.norm_axis is None for a in assignments):
        raise ValueError(
            f"constraint {name!r} needs to know along which axis: none of {len(assignments)} parameters declares one. "
            "Give specs={'*.weight': {'norm_axis': 'input'}}, or let model.specs() say it."
        )
    return main, replace(rest, apply=apply)  # pyright: ignore[reportArgumentType, reportCallIssue]


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
