"""The only torch.optim.Optimizer here: parameter groups -> stacks (B, m, n) -> rule -> back to the parameters."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim import graph, loading, scratch
from muonlab.optim.checks import check_dense, check_gradients, check_parameter, check_scalars
from muonlab.optim.elementwise import SGD
from muonlab.optim.live import Live, LiveGroup
from muonlab.optim.matrices import PLAIN, MatrixSpec
from muonlab.optim.plan import Plan, plan_of
from muonlab.optim.rules import UpdateRule
from muonlab.optim.stacks import Stack, apply_rule, build_stacks, fresh_state, has_state_of, state_names

if TYPE_CHECKING:
    from muonlab.optim.audit import Audit

NONFINITE = ("skip", "raise", "ignore")

_MANY = 10  # steps in a row that are left out


class Optimizer(torch.optim.Optimizer):
    """Applies update rules to parameter groups.

    params: tensors, (name, tensor) pairs or group dicts, as for any torch optimizer. A group names its rule by the key
    `rule` (default: the first of `rules`) and holds every scalar live: lr, weight_decay, `lr_mul` and `wd_mul` (one
    number, or one per parameter), and what the rule reads (momentum, beta2, betas, ...). A group's `spec` (a
    MatrixSpec) and `role`/`why` (text for the plan) describe its parameters and stay out of `state_dict`.

    nonfinite: what a NaN or infinite gradient leads to: "skip" leaves this step out, weights and state bit for bit as they
    were, and counts it in `skipped`; "raise" raises FloatingPointError with the parameter's name, as early, and waits for the
    gradients on a GPU; "ignore" looks at nothing, as torch does.
    exact_bf16: bfloat16 parameters train as float32 ones do, bit for bit: the 16 bits that they lack are state.

    State is float32 for half-precision parameters and the parameter's own dtype otherwise. Where parameters have names, a
    state dict is loaded by name, whatever the order and the grouping; else by position, as in torch.

    One graph: `torch.compile(opt.step, fullgraph=True)` and capture in a CUDA graph (after an ordinary step) work, and what is
    assigned to a group afterwards holds; see docs/how-to/gpu.md.

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
        self._left_out = 0  # steps, for a gradient that was not finite, that the host saw
        self._missed: Tensor | None = None  # those that only the device saw
        self._in_a_row = 0
        self._exact = exact_bf16
        self.rules: dict[str, UpdateRule] = {str(k): r for k, r in rules.items()} if isinstance(rules, Mapping) else {"rule": rules}
        self._about: dict[Tensor, tuple[MatrixSpec, str, str]] = {}  # parameter -> spec, role, why
        self._members: list[list[Tensor]] = []  # of each group, when it was last looked at
        self._stacks: list[Stack] | None = None
        self._idle: list[Tensor] = []  # parameters that have no stack yet: they never had a gradient
        self._lives: list[tuple[Live, list[Stack]]] = []  # the groups' scalars on their devices, for graphs
        self._audit: Audit | None = None  # that looks at the next step
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

    # -- groups -------------------------------------------------------------------------------------------------

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

    # -- the step -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every parameter that has a gradient. Gradients are not changed. Returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            graph.prepare(self)
            graph.step(self)
        elif graph.being_made():
            graph.prepare_capture(self)
            graph.step(self)
        elif self._audit is not None:
            audit, self._audit = self._audit, None
            with audit.watching(self):
                self._step_now()
        else:
            self._step_now()
        return loss

    # torch's schedulers wrap a step that does not carry this mark, to learn that it was called (`_opt_called`). Dynamo refuses to
    # go through their wrapper, so with one of them around no step could be compiled.
    step._wrapped_by_lr_sched = True  # pyright: ignore[reportFunctionMemberAccess]

    def _step_now(self) -> None:
        self._opt_called = True
        if self.nonfinite == "skip" and graph.spares_the_wait(self):
            check_dense(self.param_groups)
            graph.make_ready(self)
            graph.step(self)
            return
        if not check_gradients(self.param_groups, self.nonfinite):
            self._leave_out()
            return
        self._in_a_row = 0
        with scratch.active():
            for stack in self.current_stacks():
                group = self.param_groups[stack.group]
                for run in stack.runs(gathered=True):
                    lr = stack.scalar(group["lr"], group["lr_mul"], run)
                    weight_decay = stack.scalar(group["weight_decay"], group["wd_mul"], run)
                    apply_rule(self.rule_of(group), stack, run, stack.rows(run), lr, weight_decay, group)

    def _leave_out(self) -> None:
        """Counts a step that is not taken, and says so: the first, and when they do not end. (On a GPU the device alone knows.)"""
        self._left_out += 1
        self._in_a_row += 1
        if self._left_out == 1:
            warnings.warn("a step was left out: a gradient is not finite; opt.skipped counts them", UserWarning, stacklevel=4)
        if self._in_a_row == _MANY:
            remedy = (
                "lower the learning rate, clip gradients, or look for the loss that is not finite (nonfinite='raise' names one)"
            )
            warnings.warn(f"{_MANY} steps in a row were left out, so nothing is trained: {remedy}", UserWarning, stacklevel=4)

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
        if not self._lives and torch.cuda.is_initialized():
            graph.make_ready(self)  # before a capture, which can make nothing
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

    # -- state --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self) -> None:
        """All state as on the first day, in the memory where it is: what was captured or compiled goes on with it. Live keys stay.

        For steps that were taken to warm up only: put the weights back, reset, and the run is the one without them, bit for bit.
        What others put into `state` is theirs, and stays.
        """
        for stack in self.current_stacks():
            rows = stack.starts[-1] + len(stack.members[-1].which)
            fresh = fresh_state(stack.rule, (rows, *stack.shape), stack.members[0].param, self._exact)
            for name, tensor in stack.state.items():
                tensor.copy_(fresh.get(name, torch.zeros_like(tensor)))  # SGD keeps a buffer that it had
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and `skipped`."""
        found = super().state_dict()
        found.setdefault("skipped", self.skipped)  # a hook may have said otherwise
        return found

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
        if loading.rates_moved(self.param_groups, state_dict["param_groups"]):
            warnings.warn(loading.RATES_MOVED, UserWarning, stacklevel=2)
        self.state.clear()
        self.state.update(state)
        self._stacks, self._lives = None, []
        self.skipped = state_dict.get("skipped") or 0  # torch's, and ours of before, have none
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("rules", "_given", "_about", "_members", "_built", "nonfinite", "_exact")
        kept = {"_stacks": None, "_idle": [], "_lives": [], "_left_out": self.skipped, "_missed": None}
        return super().__getstate__() | kept | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # what a pickle of before these were there lacks
        before = {"_stacks": None, "_idle": [], "_lives": [], "_left_out": state.pop("skipped", 0), "_missed": None}
        before |= {"_members": [], "_built": True, "_in_a_row": 0, "_audit": None}
        super().__setstate__(before | state)
        self.param_groups = [LiveGroup(group) for group in self.param_groups]

    # -- what is known, and what happens ------------------------------------------------------------------------

    def about(self, p: Tensor) -> tuple[MatrixSpec, str, str]:
        """How a parameter is stored, its role, and why."""
        if p not in self._about:
            self._adopt()
        if p not in self._about:
            raise ValueError(f"expected a parameter of this optimizer, got another tensor of shape {tuple(p.shape)}")
        return self._about[p]

    @property
    def plan(self) -> Plan:
        """What happens to each parameter, and why: a table (`print(opt.plan)`), from the groups as they are now."""
        return plan_of(self)

    def audit(self, *, layers: int | None = None) -> Audit:
        """Looks at the next step: what it really does to each parameter, and what is off. See `Audit` for `layers`.

        audit = opt.audit()
        loss.backward()
        opt.step()
        print(audit)
        """
        from muonlab.optim.audit import Audit

        audit = Audit(self, layers=layers)
        if self._audit is not None:
            self._audit.close("another audit has taken its place")
        self._audit = audit
        return audit
