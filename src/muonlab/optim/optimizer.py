"""The only optimizer here: the step over all groups (stacks (B, m, n) -> rule -> back to the parameters), its state, its plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from muonlab.optim import graph, loading, scratch
from muonlab.optim.checks import check_dense, check_gradients
from muonlab.optim.groups import Groups
from muonlab.optim.live import LiveGroup
from muonlab.optim.plan import Plan, plan_of
from muonlab.optim.stacks import Stack, apply_rule, fresh_state

if TYPE_CHECKING:
    from muonlab.optim.audit import Audit

_MANY = 10  # steps in a row that are left out


class Optimizer(Groups):
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

    _in_a_row = 0  # steps that were left out
    _audit: Audit | None = None  # that looks at the next step

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

    def current_stacks(self) -> list[Stack]:
        """What is stepped together, with its state, and with what a graph needs to be there: a capture can make nothing."""
        stacks = super().current_stacks()
        if not self._lives and torch.cuda.is_initialized():
            graph.make_ready(self)
        return stacks

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
        before |= {"_members": [], "_built": True}
        super().__setstate__(before | state)
        self.param_groups = [LiveGroup(group) for group in self.param_groups]

    # -- what is known, and what happens ------------------------------------------------------------------------

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
