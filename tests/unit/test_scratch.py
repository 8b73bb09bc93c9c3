"""Memory that is used again within a step: nothing that is still read may lie in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import muonlab
from muonlab.optim import MatrixRule, Optimizer, Step, orthogonalizer, scratch
from muonlab.optim.rules import Stateless
from muonlab.optim.variants import variant

SIZE = 256  # large enough for memory to be reused


def trained(rule: MatrixRule, steps: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(SIZE, n, generator=generator)) for n in (SIZE, 2 * SIZE)]
    opt = Optimizer(weights, rule, lr=0.1)
    for _ in range(steps):
        for w in weights:
            w.grad = torch.randn(w.shape, generator=generator)
        opt.step()
    return [w.detach() for w in weights]


@dataclass
class Watched:
    """An orthogonalizer around another, which looks at what it was given and at what it got before."""

    dtype: torch.dtype
    intact: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        before = x.clone()
        result = orthogonalizer("keller5", dtype=self.dtype)(x)
        self.intact &= torch.equal(x, before)
        return result

    def flops(self, m: int, n: int) -> int:
        return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_orthogonalizer_within_a_step_leaves_its_input_as_it_was(dtype: torch.dtype) -> None:
    watched = Watched(dtype)
    trained(replace(variant("muon").rule(), orthogonalize=watched))
    assert watched.intact


class View(Stateless):
    """Changes nothing, and returns another tensor on the same memory."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return x[:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_that_return_views_change_nothing(dtype: str) -> None:
    muon: Any = variant("normuon").rule(orthogonalizer=f"keller5(dtype='{dtype}')")
    viewing = replace(muon, precondition=(View(),), refine=(View(), *muon.refine, View()), adjust=(View(),))
    plain = replace(muon, adjust=(View(),))  # both multiply the scale in before the subtraction
    assert all(map(torch.equal, trained(plain), trained(viewing)))


class Identity(Stateless):
    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return x


@dataclass
class Gradients(Stateless):
    """A refinement that looks whether step.grads are still what the step began with."""

    seen: list[Tensor]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        self.seen.append(step.grads.clone())
        return x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_later_pieces_find_the_gradients_and_momentum_may_return_them(dtype: str) -> None:
    muon: Any = variant("muon").rule(orthogonalizer=f"keller5(dtype='{dtype}')")
    seen: list[Tensor] = []
    weights = [torch.nn.Parameter(torch.randn(SIZE, SIZE)) for _ in range(2)]
    grads = [torch.randn(SIZE, SIZE) for _ in weights]
    for w, g in zip(weights, grads, strict=True):
        w.grad = g.clone()
    Optimizer(weights, replace(muon, momentum=Identity(), refine=(Gradients(seen),)), lr=0.1).step()
    assert torch.equal(seen[0], torch.stack(grads))


@dataclass
class Keeping(Stateless):
    kept: list[tuple[Tensor, Tensor]]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        found = muonlab.orthogonalize(x, "keller5")
        self.kept.append((found, found.clone()))
        return x


def test_orthogonalize_within_a_step_returns_a_tensor_for_keeps() -> None:
    kept: list[tuple[Tensor, Tensor]] = []
    trained(replace(variant("muon").rule(), refine=(Keeping(kept),)), steps=3)
    assert all(torch.equal(found, copy) for found, copy in kept)


def test_what_an_outer_step_has_lent_an_inner_one_leaves_alone() -> None:
    size, dtype, cpu = (SIZE, SIZE), torch.float32, torch.device("cpu")
    with scratch.active():
        outer = scratch.empty(size, dtype, cpu).fill_(1.0)
        for _ in range(2):
            with scratch.active():
                scratch.empty(size, dtype, cpu).fill_(2.0)
        scratch.empty(size, dtype, cpu).fill_(3.0)
        assert (outer == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_holds_no_more_memory_with_more_stacks(dtype: torch.dtype) -> None:
    def held(count: int) -> int:
        scratch._local.free.clear()
        weights = [torch.nn.Parameter(torch.randn(SIZE, SIZE).to(dtype)) for _ in range(2 * count)]  # a stack a pair
        for w in weights:
            w.grad = torch.randn_like(w)
        rule: Any = variant("muon").rule(orthogonalizer="keller5(dtype='float32')")
        Optimizer([{"params": weights[i::count]} for i in range(count)], rule, lr=0.1).step()
        return len(scratch._local.free)

    assert held(8) == held(2)
