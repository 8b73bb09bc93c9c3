"""How the tables of the zoo are walked: an entry's routing against what is written down, and three training steps of it."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import muonlab
from muonlab.optim.routing import assign

Expected = Mapping[str, tuple[str, str | None]]  # {pattern: (role, matrices)}, the first that matches; None: nobody asks

M, H, V, EMBEDDING = ("matrix", ""), ("head", None), ("vector", None), ("embedding", None)
T = ("matrix", "transposed")
QKV, GATE_UP = ("matrix", "split 3 along output"), ("matrix", "split 2 along output")
BANK, BANK2 = ("matrix", "bank of 1 dim"), ("matrix", "bank of 1 dim, split 2 along output")


class Entry(NamedTuple):
    kind: str  # the model type
    options: dict[str, Any]
    expected: Expected  # for every parameter of two dimensions or more
    task: str = "AutoModelForCausalLM"
    inputs: Mapping[str, tuple[int, ...]] = {"input_ids": (2, 12)}
    idle: tuple[str, ...] = ()  # matrices that may get no gradient from this input
    tied: tuple[str, ...] = ()  # patterns that tying leaves without a parameter


class Image(NamedTuple):
    """A model of images, of timm or torchvision."""

    make: Callable[[Any, Any], nn.Module]  # (timm, torchvision.models) -> the model
    expected: Expected
    size: int = 32  # of the images; 0: routing alone
    narrow: int = 1  # training steps with so many times fewer channels


def check_routing(model: nn.Module, expected: Expected, tied: tuple[str, ...] = ()) -> None:
    """Every parameter has its role and matrices, and everything that is written down is there."""
    used = set()
    for one in assign(model):
        if one.parameter.ndim < 2:
            assert one.role == "vector", one.name
            continue
        pattern = next((p for p in expected if fnmatch.fnmatchcase(one.name, p)), None)
        assert pattern is not None, f"{one.name} {tuple(one.parameter.shape)} is not written down"
        used.add(pattern)
        role, layout = expected[pattern]
        assert (one.role, layout if layout is None else str(one.spec)) == (role, layout), f"{one.name}: {one.why}"
    assert used >= set(expected) - set(tied), "what is written down is there"


def check_steps(model: nn.Module, run: Callable[[nn.Module], Any], idle: tuple[str, ...] = ()) -> None:
    """Three steps: no doubt is raised, the loss stays finite, and every matrix with a gradient moves: all but the idle."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = muonlab.optimizer(model, "muon", lr=0.01)
    matrices = [one for one in assign(model) if one.role == "matrix" and one.parameter.requires_grad]
    assert matrices
    before = {one.name: one.parameter.detach().clone() for one in matrices}
    pulled = {one.name: [False] * len(one.spec.shapes(one.parameter)) for one in matrices}
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(run(model))
        assert torch.isfinite(loss), "the loss is finite"
        loss.backward()
        for one in matrices:
            if one.parameter.grad is not None:
                pulls = [bool(grad.any()) for grad in one.spec.matrices(one.parameter.grad)]
                pulled[one.name] = [a or b for a, b in zip(pulled[one.name], pulls, strict=True)]
        optimizer.step()
    for one in matrices:
        assert any(pulled[one.name]) or any(fnmatch.fnmatchcase(one.name, p) for p in idle), f"{one.name} has no gradient"
        moved = [bool(part.any()) for part in one.spec.matrices(one.parameter.detach() - before[one.name])]
        assert all(m for m, g in zip(moved, pulled[one.name], strict=True) if g), f"{one.name}: {moved} moved"
        assert torch.isfinite(one.parameter).all(), one.name


def loss_of(out: Any) -> Tensor:
    """Of any model: how unlikely the first class of each of its outputs is."""
    losses = [-tensor.log_softmax(-1)[..., 0].mean() for tensor in _tensors(out) if tensor.requires_grad and tensor.ndim]
    return torch.stack(losses).sum()


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping | tuple | list):
        for inner in out.values() if isinstance(out, Mapping) else out:
            yield from _tensors(inner)


def draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random inputs; what is called ids is tokens, a mask is ones."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(2, 90, shape, generator=generator) if name.endswith("ids") else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
