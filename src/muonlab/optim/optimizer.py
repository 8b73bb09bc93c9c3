"""The only torch.optim.Optimizer here: parameter groups -> stacks (B, m, n) -> rule -> back to the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import loading, scratch, shadow
from muonlab.optim.checks import check_gradients, check_parameter, check_scalars
from muonlab.optim.matrices import PLAIN, MatrixSpec
from muonlab.optim.plan import Plan, PlanRow
from muonlab.optim.rules import Step, UpdateRule
from muonlab.optim.stacks import HALF, Stack, at, build_stacks, members_of

NONFINITE = ("skip", "raise", "ignore")


class Optimizer(torch.optim.Optimizer):
    """Applies update rules to parameter groups.

    params: tensors, (name, tensor) pairs or group dicts, as for any torch optimizer. A group names its rule by the key
    `rule` (default: the first of `rules`) and holds every scalar live: lr, weight_decay, `lr_mul` and `wd_mul` (one
    number, or one per parameter), and what the rule reads (momentum, beta2, betas, ...). A group's `spec` (a
    MatrixSpec) and `role`/`why` (text for the plan) describe its parameters and stay out of `state_dict`.

    nonfinite: what a NaN or infinite gradient leads to: "skip" leaves this step out, weights and state bit for bit as they
    were, and counts it in `skipped`; "raise" raises FloatingPointError with the parameter's name, as early; "ignore" looks at
    nothing, as torch does (on a GPU the look waits for the gradients).
    exact_bf16: bfloat16 parameters train as float32 ones do, bit for bit: the 16 bits that they lack are state.

    State is float32 for half-precision parameters and the parameter's own dtype otherwise. Where parameters have names, a
    state dict is loaded by name, whatever the order and the grouping; else by position, as in torch.

    Raises ValueError for negative lr, an unknown rule, a parameter that the rule cannot take.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rules: UpdateRule | Mapping[str, UpdateRule],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        nonfinite: str = "skip",
        exact_bf16: bool = False,
        **scalars: Any,
    ) -> None:
        self.nonfinite = choose("nonfinite", nonfinite, NONFINITE)
        self.skipped = 0  # steps left out for a gradient that was not finite
        self._exact = exact_bf16
        self.rules: dict[str, UpdateRule] = dict(rules) if isinstance(rules, Mapping) else {"rule": rules}
        self._about: dict[Tensor, tuple[MatrixSpec, str, str]] = {}  # parameter -> spec, role, why
        self._stacks: list[Stack] | None = None
        self._given = {"lr": lr, "weight_decay": weight_decay, "lr_mul": 1.0, "wd_mul": 1.0, **scalars}
        super().__init__(params, dict(self._given))
        # torch's OneCycleLR and CyclicLR look here for the momentum that they are to cycle
        self.defaults = {**next(iter(self.rules.values())).scalars(), **self.defaults}

    def rule_of(self, group: dict[str, Any]) -> UpdateRule:
        """The rule that a group's parameters follow."""
        return self.rules[choose("rule", group.setdefault("rule", next(iter(self.rules))), self.rules)]

    # -- groups -------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group (see the class). Raises before anything has changed if a value or a parameter does not fit."""
        group = dict(param_group)
        spec, role, why = group.pop("spec", PLAIN), group.pop("role", "matrix"), group.pop("why", "given by the caller")
        for name, default in self._given.items():
            group.setdefault(name, default)
        rule = self.rule_of(group)
        for name, initial in rule.scalars().items():
            group.setdefault(name, initial)
        super().add_param_group(group)
        try:
            check_scalars(group)
            whys = why if isinstance(why, list) else [why] * len(group["params"])
            about = {p: (spec, role, w) for p, w in zip(group["params"], whys, strict=True)}
            names = group.get("param_names", [f"shape {tuple(p.shape)}" for p in group["params"]])
            for name, p in zip(names, group["params"], strict=True):
                check_parameter(name, p, rule, spec)
        except Exception:
            self.param_groups.pop()
            raise
        self._about |= about
        self._stacks = None

    # -- the step -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every parameter that has a gradient. Gradients are not changed. Returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not check_gradients(self.param_groups, self.nonfinite):
            self.skipped += 1
            return loss
        with scratch.active():
            for stack in self.current_stacks():
                for run in stack.runs():
                    self._step_run(stack, run)
        return loss

    def current_stacks(self) -> list[Stack]:
        """What is stepped together, with its state: built when a parameter got its first gradient, or somebody replaced a part of
        `self.state`."""
        stacks, state = self._stacks, self.state
        fresh = any(p.grad is not None and p not in state for group in self.param_groups for p in group["params"])
        if stacks is None or fresh or not all(s.current(state) for s in stacks):
            started = {p for group in self.param_groups for p in group["params"] if p.grad is not None or p in state}
            self._stacks = stacks = build_stacks(self.param_groups, started, self.rule_of, self._spec, state, self._exact)
        return stacks

    def _spec(self, p: Tensor) -> MatrixSpec:
        return self._about[p][0]

    def _step_run(self, stack: Stack, run: list[int]) -> None:
        """The rule, on consecutive members of a stack."""
        group = self.param_groups[stack.group]
        members = [stack.members[i] for i in run]
        rows = stack.rows(run)
        state = {name: tensor[rows] for name, tensor in stack.state.items()}
        # A convolution in channels_last has no view as a matrix: it is stepped as a copy.
        stored = [m.param if m.spec is None or m.param.ndim == 2 else m.param.contiguous() for m in members]
        matrices = [matrix for m, p in zip(members, stored, strict=True) for matrix in m.matrices(p)]
        low = state.pop(shadow.MANTISSA, None)
        if low is not None:
            weights = [shadow.join(w, row) for w, row in zip(matrices, low, strict=True)]
        elif matrices[0].dtype in HALF:
            weights = [w.float() for w in matrices]
        else:
            weights = matrices
        grads = stack.gradients(run)
        self.rule_of(group)(
            Step(
                weights=weights,
                grads=grads,
                state=state,
                lr=stack.scalar(group["lr"], group["lr_mul"], run),
                weight_decay=stack.scalar(group["weight_decay"], group["wd_mul"], run),
                scalars=group,
                norm_dim=stack.norm_dim,
            )
        )
        scratch.release(grads)
        if low is not None:
            for matrix, row, weight in zip(matrices, low, weights, strict=True):
                high, remainder = shadow.split(weight)
                matrix.copy_(high)
                row.copy_(remainder)
        elif weights is not matrices:  # decay and update together are rounded once
            torch._foreach_copy_(matrices, weights)  # pyright: ignore[reportPrivateImportUsage]
        for member, copy in zip(members, stored, strict=True):
            if copy is not member.param:
                member.param.copy_(copy)

    # -- state --------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, by parameter name where both sides have names, else by position.

        Keeps the saved dtype of the state (torch's own loader would round float32 state of bfloat16 parameters). Raises
        ValueError, before anything has changed, where names, shapes, rules or groups do not fit.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        state, groups = loading.match(self, state_dict)
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update(saved)
        self.state.clear()
        self.state.update(state)
        self._stacks = None
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("rules", "_given", "_about", "nonfinite", "skipped", "_exact")
        kept = {"_stacks": None, **{name: getattr(self, name) for name in names}}
        return super().__getstate__() | kept

    # -- the plan -----------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What happens to each parameter, and why: a table (`print(opt.plan)`), from the groups as they are now."""
        rows = []
        for i, group in enumerate(self.param_groups):
            rule = self.rule_of(group)
            names = group.get("param_names", [f"group{i}.param{j}" for j in range(len(group["params"]))])
            for j, (name, p) in enumerate(zip(names, group["params"], strict=True)):
                spec, role, why = self._about[p]
                lr = float(group["lr"]) * at(group["lr_mul"], j)
                decay = lr * float(group["weight_decay"]) * at(group["wd_mul"], j)
                for shape, member in members_of(p, j, rule, spec):
                    seen = "" if member.spec in (None, PLAIN) else f"{len(member.which)} × {shape[0]}×{shape[1]} ({spec})"
                    row = PlanRow(
                        name + member.suffix,
                        tuple(p.shape),
                        role,
                        why,
                        rule.describe(),
                        lr * rule.lr_factor(shape),
                        decay,
                        p.requires_grad,
                        seen,
                    )
                    rows.append(row)
        return Plan(rows)
