"""The step as one graph: captured in a CUDA graph, compiled, or plain on a GPU that nothing should wait for.

Two things tell it from the step on the host's word. Scalars are read from tensors (see `live`), and a gradient that is not finite
is seen by the device alone: a flag, with which the step becomes the ordinary one for gradients and rates of zero (`rules.Step`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muonlab.optim import precision, scratch
from muonlab.optim.checks import check_dense
from muonlab.optim.magnitude import all_finite
from muonlab.optim.stacks import apply_rule, mirror

if TYPE_CHECKING:
    from muonlab.optim.groups import Groups
    from muonlab.optim.live import Live
    from muonlab.optim.stacks import Stack


def being_made() -> bool:
    """True while the step is captured in a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def spares_the_wait(optimizer: Groups) -> bool:
    """True where a look at the gradients would make the host wait for a GPU, and nothing else in the step does."""
    if not torch.cuda.is_initialized():
        return False
    stacks = optimizer.current_stacks()
    on_gpu = bool(stacks) and all(stack.kind[1].type == "cuda" for stack in stacks)
    return on_gpu and not any(_waits(stack) for stack in stacks)


def prepare(optimizer: Groups) -> None:
    """What a graph needs to be there: state, live scalars, what was measured of the device. Raises RuntimeError for what cannot be
    in a graph."""
    if optimizer.nonfinite == "raise":
        raise RuntimeError("nonfinite='raise' has to look at the gradients, and a graph cannot: take 'skip', which needs no look")
    check_dense(optimizer.param_groups)
    optimizer._opt_called = True
    stacks = optimizer.current_stacks()
    make_ready(optimizer)
    for stack in stacks:
        if _waits(stack):
            raise RuntimeError(f"{stack.rule.describe()} cannot be in a graph: {_waits(stack)}")
        precision.settle(stack.kind[1].type)
        stack.shared.pin()
    for live, _ in optimizer._lives:
        live.check()


# Dynamo calls what is marked so in place of tracing it: torch.compiler.assume_constant_result, which would import all of Dynamo.
prepare._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def prepare_capture(optimizer: Groups) -> None:
    """The same while a capture is under way, when nothing new can be made: all of it has to be there."""
    before, lives = optimizer._stacks, optimizer._lives
    fresh = any(p.grad is not None for p in optimizer._idle)
    fresh = fresh or any(optimizer._outgrown(s) or not s.current(optimizer.state) for s in before or [])
    if before is None or not lives or fresh or not _following(optimizer) or optimizer._missed is None:
        raise RuntimeError(
            "expected the optimizer's state to be there before a capture: take an ordinary step first, with every gradient that "
            "the graph is to use (torch asks for such a warm-up too: https://docs.pytorch.org/docs/stable/notes/cuda.html)"
        )
    prepare(optimizer)


def make_ready(optimizer: Groups) -> None:
    """Live scalars, and the count of steps that only the device sees left out, for the stacks as they are."""
    stacks = optimizer._stacks or []
    for stack in stacks:
        stack.rule = optimizer.rule_of(optimizer.param_groups[stack.group])
    if not optimizer._lives or not _following(optimizer):
        optimizer._lives = mirror(stacks, optimizer.param_groups, (*optimizer._given, "rule"))
    device = stacks[0].kind[1] if stacks else torch.device("cpu")
    if optimizer._missed is None or optimizer._missed.device != device:
        optimizer._left_out, optimizer._missed = optimizer.skipped, torch.zeros((), dtype=torch.int64, device=device)


def _following(optimizer: Groups) -> bool:
    """Whether every group still tells its live scalars of what is assigned to it: false once another dict is in its place."""
    groups = optimizer.param_groups
    return all(not live.stale and live in getattr(groups[live.group], "mirrors", ()) for live, _ in optimizer._lives)


def step(optimizer: Groups) -> None:
    """One step, in which no number decides what the host does. Expects `prepare`."""
    for p in optimizer._idle:  # a compiled step looks here: with its first gradient a parameter needs another graph
        assert p.grad is None
    taken = None
    if optimizer.nonfinite == "skip":
        assert optimizer._missed is not None
        taken = _all_finite(optimizer._lives, optimizer._missed.device)
        optimizer._missed.add_(~taken)
    gathered = not torch.compiler.is_compiling() and not being_made()  # who has a gradient is another matter in each step
    with scratch.active():
        for live, stacks in optimizer._lives:
            assert not live.stale
            here = None if taken is None else taken.to(live.values.device)
            scalars = live.read(here)
            for stack in stacks:
                for run in stack.runs(gathered=gathered):
                    rows = stack.rows(run)
                    lr, weight_decay = (stack.live_scalar(name, scalars, rows) for name in ("lr", "weight_decay"))
                    apply_rule(stack.rule, stack, run, rows, lr, weight_decay, scalars, here)


def _all_finite(lives: list[tuple[Live, list[Stack]]], device: torch.device) -> Tensor:
    """Whether all gradients are finite: a flag on the device."""
    found = torch.ones((), dtype=torch.bool, device=device)
    for _, stacks in lives:
        for stack in stacks:
            grads = [m.param.grad for m in stack.members if m.param.grad is not None and m.suffix in ("", ".0")]
            if grads:
                found = found & all_finite(grads).to(device)
    return found


def _waits(stack: Stack) -> str:
    return getattr(stack.rule, "waits", "")
