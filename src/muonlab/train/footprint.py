"""How much memory training needs, without allocating it: a real step on tensors that have shapes and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from muonlab.models.family import Model, ModelConfig
from muonlab.optim.precision import bf16_is_fast
from muonlab.train.recipe import OptimizerConfig
from muonlab.train.trainer import autocast

T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """Bytes at the moment of a training step that needs most. `activations` is what that moment needs beside the other three: what
    the forward pass leaves for the backward pass and what that makes of it, or the optimizer's own scratch memory."""

    weights: int  # and buffers
    gradients: int
    optimizer_state: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer_state + self.activations


class _Memory(TorchDispatchMode):
    """Follows the storages that are made within: `live` bytes now, `peak` bytes at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._count(t for t in tree_iter(out) if isinstance(t, Tensor))
        return out

    def _count(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def reset(self) -> int:
        """The peak begins anew, at what is alive now. Returns that."""
        self.peak = self.live
        return self.live

    def _freed(self, size: int) -> None:
        self.live -= size


def footprints(
    model: ModelConfig,
    optimizers: Mapping[str, OptimizerConfig],
    *,
    batch: int,
    vocab_size: int,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Footprint]:
    """With each optimizer, the memory of a training step on `batch` sequences of the model's context, from the second step on
    (the first one makes the optimizer's state). Nothing is computed and nothing allocated: seconds, whatever the size.

    vocab_size: where the model leaves it open. precision: bf16 is autocast. Counted is what tensors take; the libraries'
    own memory and an allocator's fragmentation come on top. An optimizer that looks at its values (soap_muon) cannot be followed.
    """
    bf16_is_fast(torch.device(device).type)  # it measures, which has to happen on tensors that exist

    def built() -> Model:
        with torch.device(device):
            return model.build(vocab_size)

    passes = _alone(lambda: _passes(built, (batch, model.context), precision))
    found = {}
    for name, config in optimizers.items():
        step = _alone(lambda config=config: _step(built, config))
        # what the optimizer keeps for its next step is there during the passes too
        most = max(passes.beside + step.kept, passes.gradients + step.beside)
        found[name] = Footprint(passes.weights, passes.gradients, step.state, most - passes.gradients)
    return found


@dataclass(frozen=True)
class _Passes:
    weights: int
    gradients: int
    beside: int  # most that forward and backward pass need beside the weights, gradients included as they come


@dataclass(frozen=True)
class _Step:
    state: int
    kept: int  # scratch memory
    beside: int  # most that a step needs beside weights, gradients and state


def _passes(built: Callable[[], Model], shape: tuple[int, int], precision: str) -> _Passes:
    with _Memory() as memory:
        model = built()
        weights = memory.reset()
        tokens = torch.zeros(shape, dtype=torch.int64, device=next(model.parameters()).device)
        with autocast(tokens.device.type, precision):
            loss = model.loss(tokens, tokens)
        loss.backward()
        gradients = sum(p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None)
        return _Passes(weights, gradients, memory.peak - weights)


def _step(built: Callable[[], Model], config: OptimizerConfig) -> _Step:
    with _Memory() as memory:
        model = built()
        stepper = config.model_copy(update={"nonfinite": "ignore"}).build(model)  # there are no values to look at
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        before = memory.live
        stacks = stepper.current_stacks()
        state = memory.live - before
        # Of each stack, what is stepped together first: it needs the most, and the rest would only take its time.
        first = {id(stack.members[i].param) for stack in stacks for i in next(stack.runs(gathered=True))}
        for p in model.parameters():
            p.grad = p.grad if id(p) in first else None
        before = memory.live
        stepper.step()
        kept = memory.reset() - before
        stepper.step()
        return _Step(state, kept, memory.peak - before)


def _alone(work: Callable[[], T]) -> T:
    """In a thread, whose scratch memory ends with it: no tensor without memory is left to a real optimizer."""

    def without_memory() -> T:
        with FakeTensorMode():
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(without_memory).result()
