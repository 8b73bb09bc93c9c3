"""Who is measured: torch.optim.Muon, KellerJordan's function, AdamW, and our own step in each way that it can be taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.optim import kernels
from muonlab.optim.coefficients import KELLER
from muonlab.optim.drop_in import Muon
from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.rules import MatrixRule, UpdateRule
from muonlab.optim.variants import variant, variants

BASE = "torch.optim.Muon"
FAST, DROP_IN = "muonlab fast", "muonlab.Muon"
FLOOR = "muonlab without products"  # momentum, casts, decay and update alone

Step = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """make: parameters with gradients -> what takes one step of them. It may raise: the rival is then left out, with the reason."""

    name: str
    make: Callable[[list[nn.Parameter]], Step]
    banks: bool = False  # takes (E, m, n); else their matrices one by one
    compiles: bool = False  # which takes long
    choice: str = ""  # the Python that takes this step


def kellerjordan(params: list[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> Step:
    """The step of https://github.com/KellerJordan/Muon: a matrix at a time, in plain torch."""
    buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        for p, buffer in zip(params, buffers, strict=True):
            assert p.grad is not None
            buffer.lerp_(p.grad, 1 - momentum)
            update = newton_schulz(p.grad.lerp(buffer, momentum))
            p.add_(update.to(p.dtype), alpha=-lr * max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5)

    return step


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """The quintic iteration as https://kellerjordan.github.io/posts/muon/ gives it, in bfloat16: g (..., m, n)."""
    a, b, c = KELLER
    x = g.bfloat16()
    tall = g.shape[-2] > g.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        r = x @ x.mT
        x = a * x + (b * r + c * (r @ r)) @ x
    return x.mT if tall else x


def ours(params: list[nn.Parameter], rule: UpdateRule | None = None, nonfinite: str = "skip") -> Optimizer:
    matrices, banks = [p for p in params if p.ndim == 2], [p for p in params if p.ndim > 2]
    groups: list[dict[str, Any]] = [{"params": matrices}] if matrices else []
    groups += [{"params": banks, "spec": MatrixSpec(batch_dims=1)}] if banks else []
    return Optimizer(groups, rule or variant("muon").rule(), lr=0.02, weight_decay=0.1, nonfinite=nonfinite)


def captured(step: Step) -> Step:
    """The step in a CUDA graph, as one launch."""
    _needs_cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(taken: Step = step) -> None:  # holds on to the step, whose state the graph writes to
        graph.replay()

    return replay


def with_kernels(step: Step) -> Step:
    """The step with the Triton kernels on."""
    _needs_cuda()

    def switched() -> None:
        kernels.enable(True)
        try:
            step()
        finally:
            kernels.enable(False)

    return switched


def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("needs a CUDA device")


class _AsItIs:
    """In the place of an orthogonalizer: the casts that one makes, and no product."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    def flops(self, m: int, n: int) -> int:
        return 0


def _without_products() -> MatrixRule:
    rule = variant("muon").rule()
    assert isinstance(rule, MatrixRule)
    return replace(rule, orthogonalize=_AsItIs())


def rivals() -> list[Rival]:
    """Everybody, the first of them the one that the others are compared with."""
    fast = 'opt = muonlab.optimizer(model, "muon")'
    graph = fast + "; capture opt.step() in a CUDA graph (docs/how-to/gpu.md)"
    kernel = fast + "; muonlab.optim.kernels.enable()"

    def drop_in(p: list[nn.Parameter]) -> Step:
        return Muon(p, lr=0.02).step

    return [
        Rival(BASE, lambda p: torch.optim.Muon(p, lr=0.02).step),
        Rival(FAST, lambda p: ours(p).step, banks=True, choice=fast),
        Rival(f"{FAST}, graph", lambda p: captured(ours(p).step), banks=True, choice=graph),
        Rival(f"{FAST}, ignore", lambda p: ours(p, nonfinite="ignore").step, banks=True),
        Rival(DROP_IN, drop_in, choice="opt = muonlab.Muon(matrices)"),
        Rival("KellerJordan", kellerjordan),
        Rival("torch AdamW fused", lambda p: torch.optim.AdamW(p, lr=0.02, fused=True).step),
        Rival(f"{FAST}, kernel", lambda p: with_kernels(ours(p).step), banks=True, choice=kernel),
        Rival(f"{FAST}, kernel, graph", lambda p: captured(with_kernels(ours(p).step)), banks=True, choice=f"{kernel}; {graph}"),
        Rival(FLOOR, lambda p: ours(p, _without_products()).step, banks=True),
        Rival(
            f"{FAST}, compiled",
            lambda p: torch.compile(ours(p).step, fullgraph=True),
            banks=True,
            compiles=True,
            choice=fast + "; step = torch.compile(opt.step, fullgraph=True)",
        ),
        Rival(f"{BASE}, compiled", lambda p: torch.compile(torch.optim.Muon(p, lr=0.02).step), compiles=True),
    ]


def own_variants() -> list[Rival]:
    """Every optimizer here, with its defaults; "muon" first."""
    names = ["muon", *(name for name in variants() if name != "muon")]

    def made(name: str) -> Rival:
        return Rival(name, lambda p: ours(p, variant(name).rule()).step, banks=variant(name).rule().matrices)

    return [made(name) for name in names]
