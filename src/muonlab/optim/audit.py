"""What one step did to each parameter, measured on the weights and gradients and not read off the settings."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from muonlab.optim import shadow
from muonlab.optim.audit_report import AuditRow, doubts, summary, table
from muonlab.optim.checks import check_whole
from muonlab.optim.decay import CautiousDecay, ParamDecay, UpdateDecay
from muonlab.optim.groups import Groups
from muonlab.optim.plan import kind_of
from muonlab.optim.shadow import MANTISSA
from muonlab.optim.stacks import HALF, at, members_of

_MATRICES = 4  # of a bank, whose singular values are looked at
_LARGE = 1024  # the shorter side of a matrix whose singular values would take seconds
_FLAT = 0.3  # a singular value of this share of the largest is a direction that the update reaches
_RAISED = 1e-3  # of this share of the largest before, five Newton–Schulz steps bring it there


class Audit:
    """Looks at the next step of an optimizer: `audit = opt.audit()`, backward pass and step, `print(audit)`.

    rows: one for each parameter (`AuditRow`), empty before a step was taken. doubts: what is off, in sentences. summary: one line.
    layers: of parameters that differ in their layer's number, so many are looked at (the first, the last, some between); None:
    every one. Until the step is over it holds a copy of their weights, in the memory of the CPU.
    """

    def __init__(self, optimizer: Groups, *, layers: int | None = None) -> None:
        if layers is not None:
            check_whole("layers", layers, 1)
        self.rows: list[AuditRow] = []
        self.left_out = False  # the step, for a gradient that was not finite
        self.clipped: float | None = None  # the gradients' norm at the step over that after the backward pass
        self._layers = layers
        self._before: dict[Tensor, Tensor] = {}
        self._norms: dict[Tensor, Tensor] = {}  # of gradients, when the backward pass had made them
        self._skipped = 0
        self._why_not = "no step was taken yet; the next one is looked at (a compiled or captured step cannot be)"
        params = [p for group in optimizer.param_groups for p in group["params"]]
        leaves = [p for p in params if p.is_leaf and p.requires_grad]
        me = weakref.ref(self)

        def note(p: Tensor) -> None:
            if (audit := me()) is not None:
                audit._note(p)

        self._handles = [p.register_post_accumulate_grad_hook(note) for p in leaves]
        self._gone = weakref.finalize(self, _remove, self._handles)  # an audit that nobody waits for any more

    @property
    def doubts(self) -> list[str]:
        return doubts(self.rows, self.clipped, self.left_out)

    @property
    def summary(self) -> str:
        """One line."""
        return summary(self.rows, self.clipped, self.left_out)

    def __str__(self) -> str:
        if not self.rows:
            return f"nothing was looked at: {self._why_not}"
        return "\n".join([*table(self.rows), "", self.summary, *self.doubts])

    def close(self, why: str) -> None:
        """Looks at nothing any more, and says why."""
        self._gone()
        self._before, self._norms, self._why_not = {}, {}, why

    @contextmanager
    def watching(self, optimizer: Groups) -> Iterator[None]:
        """Around the step. What goes wrong in here is told by the audit, and does not end the step."""
        why = self._tried(self._begin, optimizer)
        try:
            yield
            why = why or self._tried(self._end, optimizer)
        finally:
            self.close(why)

    def _tried(self, look: Callable[[Groups], None], optimizer: Groups) -> str:
        try:
            look(optimizer)
        except (RuntimeError, MemoryError, NotImplementedError, ArithmeticError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _note(self, p: Tensor) -> None:
        if p.grad is not None and not p.grad.is_sparse:
            self._norms[p] = torch.linalg.vector_norm(p.grad.detach())

    def _begin(self, optimizer: Groups) -> None:
        self._skipped = optimizer.skipped
        chosen = self._chosen(optimizer)
        self._before = {p: _weights(optimizer, p, group) for _, p, group, _ in optimizer.named() if p in chosen}

    def _chosen(self, optimizer: Groups) -> set[Tensor]:
        kinds: dict[Any, list[Tensor]] = {}
        for name, p, group, _ in optimizer.named():
            kinds.setdefault((kind_of(name), p.shape, id(group)), []).append(p)
        return {p for alike in kinds.values() for p in (alike if self._layers is None else _spread(alike, self._layers))}

    def _end(self, optimizer: Groups) -> None:
        self.left_out = optimizer.skipped > self._skipped
        before, now = {}, {}
        for p, norm in self._norms.items():
            if p.grad is not None:
                before[p], now[p] = norm, torch.linalg.vector_norm(p.grad)
        cut = {p: _ratio(float(now[p]), float(before[p])) for p in now}
        whole = _ratio(_norm(now.values()), _norm(before.values()))
        if _is_unscaling(whole, cut.values()):
            cut, whole = {}, None
        self.clipped = None if self.left_out else whole
        self.rows = [
            _row(optimizer, name, p, group, j, self._before[p], cut.get(p), self.left_out)
            for name, p, group, j in optimizer.named()
            if p in self._before
        ]


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _is_unscaling(whole: float | None, cut: Iterable[float | None]) -> bool:
    """Whether all gradients were divided by the same power of two: a loss scale, taken back."""
    if not whole or whole > 0.6 or abs(math.log2(whole) - round(math.log2(whole))) > 1e-4:
        return False
    return all(ratio is None or abs(ratio / whole - 1) < 1e-3 for ratio in cut)


def _weights(optimizer: Groups, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy in the CPU's memory; with exact_bf16 the float32 values that the optimizer trains."""
    stored = p.detach().to("cpu", copy=True).contiguous()
    state = optimizer.state.get(p, {})
    if not any(str(key).partition(".")[0] == MANTISSA for key in state):
        return stored
    value = stored.float()
    for _, member in members_of(p, 0, optimizer.rule_of(group), optimizer.about(p)[0]):
        low = state[MANTISSA + member.suffix].to("cpu")
        lows = [low] if len(member.which) == 1 else low.unbind(0)
        joined = [shadow.join(high.contiguous(), one) for high, one in zip(member.matrices(stored), lows, strict=True)]
        if member.spec is not None and member.spec.groups > 1:
            member.spec.write(value, member.which, joined)
        else:
            for place, one in zip(member.matrices(value), joined, strict=True):
                place.copy_(one)
    return value


def _spread(alike: list[Any], count: int) -> list[Any]:
    """The first, the last, and some between."""
    if len(alike) <= count:
        return alike
    return [alike[round(i * (len(alike) - 1) / max(1, count - 1))] for i in range(count)]


def _row(
    optimizer: Groups, name: str, p: Tensor, group: dict[str, Any], j: int, before: Tensor, cut: float | None, left_out: bool
) -> AuditRow:
    rule, after, grad = optimizer.rule_of(group), _weights(optimizer, p, group), p.grad
    spec, role, _ = optimizer.about(p)
    if after.dtype != before.dtype:  # the first step with exact_bf16: nothing was missing before
        before = before.float()
    moved = _real(before) - _real(after)
    lr = float(group["lr"]) * at(group["lr_mul"], j)
    wd = float(group["weight_decay"]) * at(group["wd_mul"], j)
    row = AuditRow(
        name=name,
        shape=tuple(p.shape),
        role=role,
        by=group.get("rule", next(iter(optimizer.rules))).removeprefix("aux_"),
        what="left out" if left_out else _what(optimizer, p),
        frozen=not p.requires_grad,
        weight=_rms(_real(before)),
        update=_rms(moved),
        finite=bool(torch.isfinite(_real(after)).all()),
        clipped=cut,
        still=_still(before, after) if after.dtype in HALF else None,
    )
    if not rule.matrices or not lr or row.what != "stepped" or not row.finite or not row.update:
        return row
    moved = _without_decay(getattr(rule, "decay", None), _real(before), moved, lr * wd, float(group["lr"]))
    gradients = [] if grad is None else spec.matrices(_real(grad.detach().to("cpu")))
    if not torch.isfinite(moved).all() or not any(bool(g.any()) for g in gradients):
        return row  # a gradient of zeros: what is left is the rounding of the decay
    row.sigma, row.reached = _singular(_spread([u / (lr * rule.lr_factor(u.shape)) for u in spec.matrices(moved)], _MATRICES))
    row.dead = sum(float((g == 0).all(-1).sum()) for g in gradients) / sum(g.shape[0] for g in gradients)
    row.rank = _rank(_spread(gradients, _MATRICES))
    return row


def _still(before: Tensor, after: Tensor) -> float:
    """The share of equal entries."""
    return float((before == after).double().mean()) if before.numel() else 0.0


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).double() if x.is_complex() else x if x.dtype == torch.float64 else x.float()


def _what(optimizer: Groups, p: Tensor) -> str:
    if p.grad is not None:
        return "stepped"
    if not p.requires_grad:
        return "frozen"
    return "no gradient" if p in optimizer.state else "never had a gradient"


def _without_decay(decay: Any, before: Tensor, moved: Tensor, amount: float, lr: float) -> Tensor:
    """The part of what was subtracted that is the update."""
    if isinstance(decay, ParamDecay):
        amount = amount * lr if decay.squared else amount
        # an entry is decayed cautiously where the update shrinks it, and then the whole change does
        return moved - amount * (torch.where(moved * before >= 0, before, 0.0) if isinstance(decay, CautiousDecay) else before)
    return moved - amount * before if isinstance(decay, UpdateDecay) and decay.both else moved


def _singular(updates: list[Tensor]) -> tuple[tuple[float, float], float | None]:
    """(smallest, largest) singular value, and the share of those above _FLAT of their matrix's largest. Of a matrix that is too
    large the smallest is their root mean square, which orthogonal matrices of any size have at the same place."""
    low, high, reached, count = math.inf, 0.0, 0, 0
    for u in updates:
        if min(u.shape) > _LARGE:
            high = max(high, _largest(u))
            low = min(low, float(torch.linalg.vector_norm(u)) / min(u.shape) ** 0.5)
            continue
        values = torch.linalg.svdvals(u)
        low, high = min(low, float(values[-1])), max(high, float(values[0]))
        reached += int((values > _FLAT * values[0]).sum())
        count += len(values)
    return (low, high), reached / count if count else None


def _largest(u: Tensor) -> float:
    """The largest singular value, by the power method."""
    x = torch.randn(u.shape[1], 1, generator=torch.Generator().manual_seed(0), dtype=u.dtype)
    for _ in range(20):
        x = u.mT @ (u @ x)
        x = x / torch.linalg.vector_norm(x)
    return float(torch.linalg.vector_norm(u @ x))


def _rank(gradients: list[Tensor]) -> float | None:
    """The share of the gradient's directions that an orthogonalizer of a few steps can raise."""
    small = [g for g in gradients if min(g.shape) <= _LARGE]
    if not small or not all(torch.isfinite(g).all() for g in small):
        return None
    values = [torch.linalg.svdvals(g) for g in small]
    return sum(int((s > _RAISED * s[0]).sum()) for s in values) / sum(map(len, values))


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / max(1, x.numel()) ** 0.5


def _norm(norms: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(n) ** 2 for n in norms))


def _ratio(a: float, b: float) -> float | None:
    return a / b if b and math.isfinite(a) and math.isfinite(b) else None
