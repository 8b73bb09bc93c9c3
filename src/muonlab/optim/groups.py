"""What an optimizer knows of its parameters: groups, the rule of each, and the stacks (B, m, n) that they make."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.checks import check_parameter, check_scalars
from muonlab.optim.elementwise import SGD
from muonlab.optim.live import Live, LiveGroup
from muonlab.optim.matrices import PLAIN, MatrixSpec
from muonlab.optim.rules import UpdateRule
from muonlab.optim.stacks import Stack, build_stacks, has_state_of, state_names

NONFINITE = ("skip", "raise", "ignore")


class Groups(torch.optim.Optimizer):
    """The parameter groups of an `Optimizer`, and what is stepped together; who takes the step is above."""

    _opt_called: bool  # torch's schedulers ask it, to learn whether a step was taken

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
        self._left_out = 0  # steps, for a gradient that was not finite, that the host saw
        self._missed: Tensor | None = None  # those that only the device saw
        self._exact = exact_bf16
        self.rules: dict[str, UpdateRule] = {str(k): r for k, r in rules.items()} if isinstance(rules, Mapping) else {"rule": rules}
        self._about: dict[Tensor, tuple[MatrixSpec, str, str]] = {}  # parameter -> spec, role, why
        self._members: list[list[Tensor]] = []  # of each group, when it was last looked at
        self._stacks: list[Stack] | None = None
        self._idle: list[Tensor] = []  # parameters that have no stack yet: they never had a gradient
        self._lives: list[tuple[Live, list[Stack]]] = []  # the groups' scalars on their devices, for graphs
        self._given = {"lr": lr, "weight_decay": weight_decay, "lr_mul": 1.0, "wd_mul": 1.0, **scalars}
        self._built = False
        super().__init__(params, dict(self._given))
        self._built = True  # groups that come now were not routed
        # torch's OneCycleLR and CyclicLR look here for the momentum that they are to cycle
        self.defaults = {**next(iter(self.rules.values())).scalars(), **self.defaults}

    @property
    def skipped(self) -> int:
        """How many steps were left out for a gradient that was not finite. On a GPU reading it waits for the device."""
        return self._left_out + (0 if self._missed is None else int(self._missed))

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._left_out = count
        if self._missed is not None:
            self._missed.zero_()

    def rule_of(self, group: dict[str, Any]) -> UpdateRule:
        """The rule that a group's parameters follow."""
        rule = self.rules[choose("rule", group.setdefault("rule", next(iter(self.rules))), self.rules)]
        return rule.fitted(group) if isinstance(rule, SGD) else rule

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group (see the class). Raises before anything has changed if a value or a parameter does not fit.

        A group without a rule, beside others of a routed model, is routed by shape: matrices to the first rule, the rest to the
        second. Parameters without names get some where the others have them.
        """
        before = len(self.param_groups)
        try:
            for one in self._routed(param_group):
                self._add(one)
        except Exception:
            del self.param_groups[before:], self._members[before:]
            raise

    def _routed(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """The group, named, as one for each rule."""
        params = group["params"]
        if not self._built or {"rule", "role", "spec"} & group.keys() or isinstance(params, set):
            return [group]
        params = [params] if isinstance(params, Tensor) else list(params)
        if any(not isinstance(p, Tensor) for p in params):
            return [{**group, "params": params}]
        if "param_names" in self.param_groups[0]:
            params = [(f"group{len(self.param_groups)}.param{j}", p) for j, p in enumerate(params)]
        main, *others = self.rules
        matrices = [t.ndim == 2 and 1 not in t.shape for t in (p[1] if isinstance(p, tuple) else p for p in params)]
        if not others or not self.rules[main].matrices:
            return [{**group, "params": params}]
        sides = {main: matrices, others[0]: [not matrix for matrix in matrices]}
        return [
            {**group, "params": [p for p, here in zip(params, side) if here], "rule": rule, "why": "added later, by its shape"}
            | {"role": "matrix" if rule == main else "vector"}
            for rule, side in sides.items()
            if any(side)
        ]

    def _add(self, param_group: dict[str, Any]) -> None:
        group = LiveGroup(param_group)
        spec, role, why = group.pop("spec", None), group.pop("role", "matrix"), group.pop("why", "given by the caller")
        for name, default in self._given.items():
            group.setdefault(name, default)
        if isinstance(group.get("rule"), str):
            group["rule"] = str(group["rule"])  # a string and nothing more: it goes into checkpoints
        rule = self.rule_of(group)
        for name, initial in rule.scalars().items():
            group.setdefault(name, initial)
        super().add_param_group(group)
        check_scalars(group)
        whys = why if isinstance(why, list) else [why] * len(group["params"])
        about = {p: (spec or PLAIN, role, w) for p, w in zip(group["params"], whys, strict=True)}
        names = group.get("param_names", [f"shape {tuple(p.shape)}" for p in group["params"]])
        for name, p in zip(names, group["params"], strict=True):
            self._check(name, p, rule, spec)
        self._about |= about
        self._members.append(list(group["params"]))
        self._stacks, self._lives = None, []

    def _check(self, name: str, p: Tensor, rule: UpdateRule, spec: MatrixSpec | None) -> None:
        """Raises ValueError for a parameter that its rule cannot train. spec: None where nobody gave one."""
        check_parameter(name, p, rule, spec or PLAIN)

    def current_stacks(self) -> list[Stack]:
        """What is stepped together, with its state: built when a parameter got its first gradient, or somebody replaced a part of
        `self.state`."""
        stacks, state = self._stacks, self.state
        fresh = any(p.grad is not None for p in self._idle) or self._exchanged()
        if stacks is None or fresh or any(self._outgrown(s) for s in stacks) or not all(s.current(state) for s in stacks):
            started = {
                p
                for group in self.param_groups
                for p in group["params"]
                if p.grad is not None or (p in state and has_state_of(self.rule_of(group), state[p]))
            }
            self._adopt()
            self._stacks = stacks = build_stacks(self.param_groups, started, self.rule_of, self._spec, state, self._exact)
            self._idle = [p for group in self.param_groups for p in group["params"] if p not in started]
            self._lives = []
        return stacks

    def _exchanged(self) -> bool:
        """Whether somebody put other tensors into the groups since the stacks were built: float32 masters, shards."""
        groups = self.param_groups
        return len(groups) != len(self._members) or not all(
            len(group["params"]) == len(known) and all(map(operator.is_, group["params"], known))
            for group, known in zip(groups, self._members)
        )

    def _adopt(self) -> None:
        """What is known of a parameter is known of the tensor that stands at its place now."""
        for g, group in enumerate(self.param_groups):
            known = self._members[g] if g < len(self._members) else []
            for j, p in enumerate(group["params"]):
                if p not in self._about:
                    before = self._about.get(known[j]) if j < len(known) else None
                    self._about[p] = before or (PLAIN, "matrix" if self.rule_of(group).matrices else "vector", "put into its group")
        self._members = [list(group["params"]) for group in self.param_groups]

    def _outgrown(self, stack: Stack) -> bool:
        """True once the group's scalars ask for state that the stack lacks: momentum where there was none."""
        rule = self.rule_of(self.param_groups[stack.group])
        return rule != stack.rule and not state_names(rule) <= stack.shared.names

    def _spec(self, p: Tensor) -> MatrixSpec:
        return self._about[p][0]

    def named(self) -> Iterator[tuple[str, Tensor, dict[str, Any], int]]:
        """Every parameter with its name, its group and its place there."""
        for i, group in enumerate(self.param_groups):
            names = group.get("param_names", [f"group{i}.param{j}" for j in range(len(group["params"]))])
            for j, (name, p) in enumerate(zip(names, group["params"], strict=True)):
                yield name, p, group, j

    def about(self, p: Tensor) -> tuple[MatrixSpec, str, str]:
        """How a parameter is stored, its role, and why."""
        if p not in self._about:
            self._adopt()
        if p not in self._about:
            raise ValueError(f"expected a parameter of this optimizer, got another tensor of shape {tuple(p.shape)}")
        return self._about[p]
