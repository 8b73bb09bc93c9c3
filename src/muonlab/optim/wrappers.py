"""Wrappers around any optimizer: EMA-Nesterov moves the weights ahead of it, tail EMA averages what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.checks import check_range, check_whole


class EMANesterov:
    """x_{t+1} = A_t(x_t + b_t·m_t), m ← γm + (1−γ)(x_{t+1} − x_t): gradient and step are taken ahead (arXiv 2605.25395).

    A_t is a step of the wrapped optimizer, on all of its parameters; b_t is `lookahead` times the present learning rate over
    the one at the beginning (of the first group; a scheduler's base rate where there is one already), and zero before step
    `start` and from step `stop` on. The mean m is kept from the first step. Use: `ahead.look_ahead()` before the forward pass,
    `ahead.step()` after the backward pass; schedulers take `ahead.optimizer`. In the optimization benchmark: lookahead 0.6,
    decay 0.99, active from 500 to 750 steps before the end.
    State: two tensors a parameter. Raises RuntimeError if step() comes without look_ahead().
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        lookahead: float = 0.5,
        decay: float = 0.99,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        check_range("lookahead", lookahead, 0.0, float("inf"))
        check_range("decay", decay, 0.0, 1.0)
        check_whole("start", start, 0)
        self.optimizer, self.lookahead, self.decay, self.start, self.stop = optimizer, lookahead, decay, start, stop
        self.t = 0
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._mean = [torch.zeros_like(p) for p in self._params]
        self._before: list[Tensor] | None = None  # x_t, between look_ahead and step
        first = optimizer.param_groups[0]
        self._first_lr = float(first.get("initial_lr", first["lr"]))  # a scheduler may have begun a warm-up already

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Moves the weights to x_t + b_t·m_t, where the gradient is to be taken."""
        if self._before is not None:
            raise RuntimeError("look_ahead() was called twice without a step() between")
        self._before = [p.detach().clone() for p in self._params]
        if self.t >= self.start and (self.stop is None or self.t < self.stop) and self._first_lr:
            ahead = self.lookahead * float(self.optimizer.param_groups[0]["lr"]) / self._first_lr
            torch._foreach_add_(self._params, self._mean, alpha=ahead)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The wrapped optimizer's step, then the mean of the displacement. Returns the closure's value."""
        if self._before is None:
            raise RuntimeError("call look_ahead() before the forward pass: the gradient belongs to the point ahead")
        with torch.enable_grad():
            loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        for mean, p, before in zip(self._mean, self._params, self._before, strict=True):
            mean.lerp_(p - before, 1 - self.decay)
        self._before = None
        self.t += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Between steps: {"optimizer", "mean" (in the order of the parameters), "t", "first_lr"}."""
        if self._before is not None:
            raise RuntimeError("state_dict() between look_ahead() and step(): the weights are ahead of their place")
        return {"optimizer": self.optimizer.state_dict(), "mean": self._mean, "t": self.t, "first_lr": self._first_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_shapes(self._params, state["mean"], "mean")
        self.optimizer.load_state_dict(state["optimizer"])
        self._mean = [m.detach().to(p).clone() for m, p in zip(state["mean"], self._params, strict=True)]
        self.t, self._first_lr = int(state["t"]), float(state["first_lr"])


class TailEMA:
    """At the end, w' = (1−λ)w + λe with e ← e + (w − e)/τ from step `start` on; training itself is untouched.

    (modded-nanogpt, optimization benchmark, PR 325: τ = 150, λ = 0.6, start = 2400 of 2900.) Use: `tail.update()` after every
    optimizer step; `with tail.applied(): evaluate()`. Before `start` the weights are used as they are. State: one tensor a
    parameter, once begun.
    """

    def __init__(self, params: Iterable[Tensor], *, start: int, tau: float = 150.0, weight: float = 0.6) -> None:
        check_range("tau", tau, 1.0, float("inf"))
        check_range("weight", weight, 0.0, 1.0)
        check_whole("start", start, 0)
        self.params, self.start, self.tau, self.weight = list(params), start, tau, weight
        self.t = 0
        self._mean: list[Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """After optimizer step t = 0, 1, …: the mean begins as the weights after step `start`."""
        if self.t == self.start:
            self._mean = [p.detach().clone() for p in self.params]
        elif self._mean is not None:
            for mean, p in zip(self._mean, self.params, strict=True):
                mean.lerp_(p.detach(), 1 / self.tau)
        self.t += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters hold w'; after it, w again, bit for bit."""
        if self._mean is None:
            yield
            return
        kept = [p.detach().clone() for p in self.params]
        try:
            with torch.no_grad():
                for p, mean in zip(self.params, self._mean, strict=True):
                    p.lerp_(mean.to(p), self.weight)
            yield
        finally:
            with torch.no_grad():
                for p, w in zip(self.params, kept, strict=True):
                    p.copy_(w)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["mean"] is not None:
            _check_shapes(self.params, state["mean"], "mean")
        self.t = int(state["t"])
        self._mean = (
            None if state["mean"] is None else [m.detach().to(p).clone() for m, p in zip(state["mean"], self.params, strict=True)]
        )


def _check_shapes(params: list[Tensor], saved: list[Tensor], what: str) -> None:
    if [p.shape for p in params] != [s.shape for s in saved]:
        raise ValueError(f"{what}: saved for {len(saved)} tensors of other shapes or in another order than the {len(params)} here")
