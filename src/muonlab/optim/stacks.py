"""Stacks: matrices of one group with the same shape, their state in one tensor (B, ...)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from muonlab.optim import scratch, shadow
from muonlab.optim.live import PER_PARAMETER, Live, LiveGroup
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.rules import UpdateRule
from muonlab.optim.shadow import MANTISSA
from muonlab.optim.shared import Part, Shared
from muonlab.optim.step import Scalar, Step

HALF = (torch.bfloat16, torch.float16)
_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}

MULTIPLIERS: dict[str, str] = {"lr": "lr_mul", "weight_decay": "wd_mul"}

# A CPU steps a stack in runs of about so many elements: what a run needs beside the state is then small enough to stay in its
# caches, and for the allocator to hand out again (fresh pages cost as much as some products do).
_RUN_ON_CPU = 2**21
_GATHERED = 2**24  # elements that other devices step as copies, where the members of a run do not follow one another


@dataclass
class Member:
    """A parameter in a stack: the logical matrices of it that have the stack's shape, or itself for an elementwise rule."""

    param: Tensor
    place: int  # within its group
    spec: MatrixSpec | None  # None: elementwise
    which: list[int]  # of the parameter's matrices
    suffix: str  # of its keys in optimizer.state[p], where its matrices have several shapes

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The matrices of the parameter, or of a tensor shaped like it (its gradient): views."""
        if self.spec is None:
            return [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor]
        found = self.spec.matrices(tensor)
        return found if len(found) == len(self.which) else [found[i] for i in self.which]


@dataclass
class Stack:
    """What shares one step. `optimizer.state[p]` holds p's rows of each tensor in `state`."""

    group: int  # index into param_groups
    members: list[Member]
    starts: list[int]  # first row of each member
    norm_dim: int | tuple[int, ...] | None  # what a norm constraint runs along
    shared: Shared  # its state
    kind: tuple[torch.dtype, torch.device]  # of its parameters
    rule: UpdateRule  # that of its group when it was built
    shape: tuple[int, ...]  # of a row
    parts: list[list[Part]] = field(default_factory=list)  # what the state of each member has
    factors: dict[tuple[float, ...], Tensor] = field(default_factory=dict)  # lists of multipliers that were needed, on the device
    multipliers: dict[str, Tensor | None] = field(default_factory=dict)  # lr_mul and wd_mul of each row (B,), where they are lists

    @property
    def state(self) -> dict[str, Tensor]:
        """name -> (B, ...)."""
        return self.shared.tensors()

    def runs(self, *, gathered: bool) -> Iterator[list[int]]:
        """The members that have a gradient: all of them, or on a CPU so many at a time. Where some have none, what is left between
        them goes together (gathered: as copies), up to a size, or run by run."""
        if not gathered:
            yield from (run for run, _ in self._consecutive())
            return
        limit = _RUN_ON_CPU if self.kind[1].type == "cpu" else _GATHERED
        together: list[int] = []
        total = 0
        for run, size in self._consecutive():
            if together and total + size > limit:
                yield together
                together, total = [], 0
            together += run
            total += size
        if together:
            yield together

    def _consecutive(self) -> Iterator[tuple[list[int], int]]:
        """Runs of members that follow one another, and their elements."""
        run: list[int] = []
        size = 0
        for i, member in enumerate(self.members):
            absent, numel = member.param.grad is None, member.param.numel()
            if run and (absent or (size + numel > _RUN_ON_CPU and member.param.device.type == "cpu")):
                yield run, size
                run, size = [], 0
            if not absent:
                run.append(i)
                size += numel
        if run:
            yield run, size

    def rows(self, run: list[int]) -> slice | Tensor:
        """Of these members: a slice where they follow one another, else their numbers, on the device."""
        first, last = run[0], run[-1]
        if last - first + 1 == len(run):
            return slice(self.starts[first], self.starts[last] + len(self.members[last].which))
        rows = torch.tensor([self.starts[i] + k for i in run for k in range(len(self.members[i].which))])
        device = self.kind[1]
        return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)

    def gradients(self, run: list[int], taken: Tensor | None = None) -> Tensor:
        """The gradients of these members, (B, m, n), in the state's dtype; zeros where `taken`, a flag on their device, is false.
        One row of the right dtype is not copied."""
        grads: list[Tensor] = []
        for i in run:
            grad = self.members[i].param.grad
            assert grad is not None
            grads += self.members[i].matrices(grad)
        if len(grads) == 1:
            stacked = grads[0].unsqueeze(0)
        else:
            stacked = torch.stack(grads, out=scratch.empty((len(grads), *grads[0].shape), grads[0].dtype, grads[0].device))
        converted = stacked.to(numbers_dtype(self.members[0].param))
        scratch.release(stacked, kept=converted)
        if taken is None:
            return converted
        copied = len(grads) > 1 or converted.dtype != stacked.dtype
        return converted.masked_fill_(~taken, 0) if copied else converted.masked_fill(~taken, 0)

    def scalar(self, value: Scalar, multiplier: float | list[float], run: list[int]) -> Scalar:
        """A group's scalar times its multiplier(s): a number where one serves all rows, else a tensor (B, 1, 1)."""
        if not isinstance(multiplier, list | tuple) and not isinstance(value, Tensor):
            return value * multiplier
        factors = tuple([at(multiplier, place) for place in self._places(run)])
        if len(set(factors)) == 1 and not isinstance(value, Tensor):
            return value * factors[0]
        p = self.members[0].param
        if factors not in self.factors:  # making a tensor waits for a GPU
            if len(self.factors) > 8:  # lists of before
                self.factors.clear()
            self.factors[factors] = torch.tensor(factors, dtype=numbers_dtype(p), device=p.device)
        vector = self.factors[factors]
        return self._per_row(vector * (value.to(vector) if isinstance(value, Tensor) else value))

    def live_scalar(self, name: str, scalars: dict[str, Any], rows: slice | Tensor) -> Tensor:
        """The same from the live scalars: "lr" times "lr_mul", "weight_decay" times "wd_mul"."""
        vector = self.multipliers[MULTIPLIERS[name]]
        if vector is None:
            return scalars[name] * scalars[MULTIPLIERS[name]]
        return self._per_row(vector[rows] * scalars[name])

    def _places(self, run: Iterable[int]) -> list[int]:
        """Within the group, of the parameter behind each row."""
        return [self.members[i].place for i in run for _ in self.members[i].which]

    def _per_row(self, vector: Tensor) -> Tensor:
        p = self.members[0].param
        ndim = 2 if self.members[0].spec is not None else p.ndim + p.is_complex()
        return vector.reshape(-1, *[1] * ndim)

    def current(self, state: dict[Tensor, Any]) -> bool:
        """False once somebody put other tensors into optimizer.state (a device move, a hand-made load), other memory into those, or
        gave the parameters another dtype or device."""
        dtype, device = self.kind
        for member, parts in zip(self.members, self.parts, strict=True):  # for every parameter in every step: kept short
            param = member.param
            held = state.get(param)
            if held is None or param.dtype is not dtype or param.device != device:
                return False
            for name, rows, address in parts:
                found = held.get(name)
                if found is None or found is not rows() or (address is not None and found.data_ptr() != address):
                    return False
        return True


def at(multiplier: float | list[float], j: int) -> float:
    """A multiplier is one number for the group or a list with one per parameter."""
    return multiplier[j] if isinstance(multiplier, list | tuple) else multiplier


def state_dtype(p: Tensor) -> torch.dtype:
    """float32 for half-precision parameters, else the parameter's own."""
    return torch.float32 if p.dtype in HALF else p.dtype


def numbers_dtype(p: Tensor) -> torch.dtype:
    """What a rule computes in: the same, of complex parameters that of their real and imaginary parts."""
    dtype = state_dtype(p)
    return _PARTS.get(dtype, dtype)


def members_of(p: Tensor, place: int, rule: UpdateRule, spec: MatrixSpec) -> list[tuple[tuple[int, ...], Member]]:
    """(shape, member) for every shape among p's logical matrices; one, the parameter itself, for an elementwise rule."""
    if not rule.matrices:
        return [(tuple(p.shape), Member(p, place, None, [0], ""))]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(spec.shapes(p)):
        alike.setdefault(shape, []).append(i)
    return [
        (shape, Member(p, place, spec, which, f".{k}" if len(alike) > 1 else "")) for k, (shape, which) in enumerate(alike.items())
    ]


def state_like(member: Member, shape: tuple[int, ...], rule: UpdateRule, exact: bool, device: Any = None) -> dict[str, Tensor]:
    """What optimizer.state[p] is to hold for a member, as fresh tensors: (m, n), or (k, m, n) where it has several matrices."""
    fresh = fresh_state(rule, (len(member.which), *shape), member.param, exact, device)
    return {k + member.suffix: v[0] if len(member.which) == 1 else v for k, v in fresh.items()}


def fresh_state(rule: UpdateRule, shape: tuple[int, ...], p: Tensor, exact: bool, device: Any = None) -> dict[str, Tensor]:
    device = p.device if device is None else device
    state = rule.init(torch.empty(shape, dtype=state_dtype(p), device=device))
    if exact and p.dtype == torch.bfloat16:
        state[MANTISSA] = torch.zeros(shape, dtype=torch.int16, device=device)
    return state


def state_names(rule: UpdateRule) -> set[str]:
    """What the rule calls its state."""
    return set(rule.init(torch.empty(1, 1, 1, device="meta")))


def has_state_of(rule: UpdateRule, entry: Mapping[str, Any]) -> bool:
    """Whether optimizer.state[p] holds some of the rule's own, and not only what others put there."""
    return bool({key.partition(".")[0] for key in entry} & {*state_names(rule), MANTISSA})


def build_stacks(
    groups: list[dict[str, Any]],
    started: set[Tensor],
    rule_of: Callable[[dict[str, Any]], UpdateRule],
    spec_of: Callable[[Tensor], MatrixSpec],
    state: dict[Tensor, Any],
    exact: bool,
) -> list[Stack]:
    """Stacks of all `started` parameters, in the order of the groups. Takes over what `state` holds for them and puts
    views of the stacked state in its place. What it holds beside, of other people's, stays."""
    stacks = []
    held = {p: state.get(p, {}) for p in started}
    for g, group in enumerate(groups):
        rule = rule_of(group)
        alike: dict[Any, list[Member]] = {}
        for j, p in enumerate(group["params"]):
            if p in started:
                spec = spec_of(p)
                dim = spec.norm_dim if rule.matrices else spec.stored_norm_dim(p.ndim)
                for shape, member in members_of(p, j, rule, spec):
                    alike.setdefault((shape, p.dtype, p.device, dim), []).append(member)
        for (shape, dtype, device, norm_dim), members in alike.items():
            counts = [len(m.which) for m in members]
            shared = Shared(fresh_state(rule, (sum(counts), *shape), members[0].param, exact))
            starts = [0, *accumulate(counts)][:-1]
            stack = Stack(g, members, starts, norm_dim, shared, (dtype, device), rule, shape)
            for member, start, count in zip(members, starts, counts, strict=True):
                of_member = {name + member.suffix: shared.part(name, start, count) for name in shared.tensors()}
                for key, rows in of_member.items():
                    if key in held[member.param]:
                        rows.copy_(held[member.param][key])
                stack.parts.append([Part.of(key, rows) for key, rows in of_member.items()])
                state[member.param] = {**state.get(member.param, {}), **of_member}
            shared.let_go()
            stacks.append(stack)
    return stacks


def apply_rule(
    rule: UpdateRule,
    stack: Stack,
    run: list[int],
    rows: slice | Tensor,
    lr: Scalar,
    weight_decay: Scalar,
    scalars: Mapping[str, Any],
    taken: Tensor | None = None,
) -> None:
    """The rule, on some members of a stack and their rows."""
    members = [stack.members[i] for i in run]
    whole = stack.state
    state = dict(whole) if len(run) == len(stack.members) else {name: tensor[rows] for name, tensor in whole.items()}
    gathered = dict(state) if isinstance(rows, Tensor) else {}  # copies
    if members[0].spec is None and members[0].param.is_complex():
        state = {name: torch.view_as_real(tensor) if tensor.is_complex() else tensor for name, tensor in state.items()}
    # A convolution in channels_last has no view as a matrix, nor have interleaved blocks: they are stepped as copies.
    copied = [m.spec is not None and m.param.ndim != 2 and not m.param.is_contiguous() for m in members]
    stored = [m.param.contiguous() if c else m.param for m, c in zip(members, copied, strict=True)]
    of_each = [m.matrices(p) for m, p in zip(members, stored, strict=True)]
    matrices = [matrix for of_one in of_each for matrix in of_one]
    low = state.pop(MANTISSA, None)
    if low is not None:
        weights = [shadow.join(w, row) for w, row in zip(matrices, low.unbind(0), strict=True)]
    elif matrices[0].dtype in HALF:
        weights = [w.float() for w in matrices]
    else:
        weights = matrices
    grads = stack.gradients(run, taken)
    rule(
        Step(
            weights=weights,
            grads=grads,
            state=state,
            lr=lr,
            weight_decay=weight_decay,
            scalars=scalars,
            taken=taken,
            norm_dim=stack.norm_dim,
        )
    )
    scratch.release(grads)
    if low is not None:
        for matrix, row, weight in zip(matrices, low.unbind(0), weights, strict=True):
            high, remainder = shadow.split(weight)
            matrix.copy_(high)
            row.copy_(remainder)
    elif matrices[0].dtype in HALF:  # decay and update together are rounded once
        torch._foreach_copy_(matrices, weights)  # pyright: ignore[reportPrivateImportUsage]
    for member, copy, own, of_one in zip(members, stored, copied, of_each, strict=True):
        if member.spec is not None and member.spec.groups > 1:
            member.spec.write(copy, member.which, of_one)
        if own:
            member.param.copy_(copy)
    for name, tensor in gathered.items():
        whole[name].index_copy_(0, rows, tensor)  # pyright: ignore[reportArgumentType]


def mirror(stacks: list[Stack], groups: list[dict[str, Any]], watched: Iterable[str]) -> list[tuple[Live, list[Stack]]]:
    """Every group's live scalars on each of its devices, from now on filled by every assignment to the group, and its stacks."""
    found: list[tuple[Live, list[Stack]]] = []
    for g, group in enumerate(groups):
        if not isinstance(group, LiveGroup):  # somebody put a group of their own in its place
            groups[g] = group = LiveGroup(group)
        own = [stack for stack in stacks if stack.group == g]
        group.mirrors = []
        for device in dict.fromkeys(stack.kind[1] for stack in own):
            here = [stack for stack in own if stack.kind[1] == device]
            live = Live(group, (*MULTIPLIERS, *PER_PARAMETER, *here[0].rule.scalars()), watched, device)
            for stack in here:
                places, dtype = stack._places(range(len(stack.members))), numbers_dtype(stack.members[0].param)
                stack.multipliers = {name: live.factors(name, places, dtype) for name in PER_PARAMETER}
            live.group = g
            group.mirrors.append(live)
            found.append((live, here))
    return found
