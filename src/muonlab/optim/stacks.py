"""Stacks: parameters of one group with the same logical shape, their state in one tensor (B, ...)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.matrices import MatrixSpec
from muonlab.optim.rules import Scalar, UpdateRule

HALF = (torch.bfloat16, torch.float16)


@dataclass
class Stack:
    """B parameters that share one step. `optimizer.state[p]` holds views of row i of each tensor in `state`."""

    group: int  # index into param_groups
    places: list[int]  # index of each parameter within its group
    params: list[Tensor]
    specs: list[MatrixSpec] | None  # None for an elementwise rule: the parameter is used as it is
    state: dict[str, Tensor]  # name -> (B, ...)
    views: list[dict[str, Tensor]] = field(default_factory=list)  # what optimizer.state[p] holds

    def matrix(self, i: int) -> Tensor:
        """The logical matrix (m, n) of parameter i, or the parameter itself: a view."""
        p = self.params[i]
        return p if self.specs is None else self.specs[i].view(p)

    def gradients(self, rows: list[int]) -> Tensor:
        """The gradients of these rows, (B, m, n), in the state's dtype. One row of the right dtype is not copied."""
        grads: list[Tensor] = []
        for i in rows:
            grad = self.params[i].grad
            assert grad is not None
            grads.append(grad if self.specs is None else self.specs[i].view(grad))
        stacked = grads[0].unsqueeze(0) if len(grads) == 1 else torch.stack(grads)
        return stacked.to(state_dtype(self.params[0]))

    def scalar(self, value: Scalar, multiplier: float | list[float], rows: list[int]) -> Scalar:
        """A group's scalar times its multiplier(s): a number where one serves all rows, else a tensor (B, 1, 1)."""
        factors = [at(multiplier, self.places[i]) for i in rows]
        if len(set(factors)) == 1 and not isinstance(value, Tensor):
            return value * factors[0]
        p = self.params[0]
        vector = torch.tensor(factors, dtype=state_dtype(p), device=p.device)
        return (vector * (value.to(vector) if isinstance(value, Tensor) else value)).reshape(-1, *[1] * p.ndim)

    def current(self, state: dict[Tensor, Any]) -> bool:
        """False once somebody put other tensors into optimizer.state (a device move, a hand-made load)."""
        return all(
            len(state.get(p, ())) == len(views) and all(state[p].get(k) is v for k, v in views.items())
            for p, views in zip(self.params, self.views, strict=True)
        )


def at(multiplier: float | list[float], j: int) -> float:
    """A multiplier is one number for the group or a list with one per parameter."""
    return multiplier[j] if isinstance(multiplier, list | tuple) else multiplier


def state_dtype(p: Tensor) -> torch.dtype:
    """float32 for half-precision parameters, else the parameter's own."""
    return torch.float32 if p.dtype in HALF else p.dtype


def build_stacks(
    groups: list[dict[str, Any]],
    started: set[Tensor],
    rule_of: Callable[[dict[str, Any]], UpdateRule],
    spec_of: Callable[[Tensor], MatrixSpec],
    state: dict[Tensor, Any],
) -> list[Stack]:
    """Stacks of all `started` parameters, in the order of the groups. Takes over what `state` holds for them and puts
    views of the stacked state in its place."""
    stacks = []
    for g, group in enumerate(groups):
        rule = rule_of(group)
        alike: dict[Any, list[int]] = {}
        for j, p in enumerate(group["params"]):
            if p in started:
                shape = spec_of(p).view(p).shape if rule.matrices else p.shape
                alike.setdefault((shape, p.dtype, p.device), []).append(j)
        for (shape, _, device), places in alike.items():
            params = [group["params"][j] for j in places]
            like = torch.empty(len(params), *shape, dtype=state_dtype(params[0]), device=device)
            stacked = rule.init(like)
            del like
            stack = Stack(g, places, params, [spec_of(p) for p in params] if rule.matrices else None, stacked)
            for i, p in enumerate(params):
                for name, value in state.get(p, {}).items():
                    if name in stacked:
                        stacked[name][i].copy_(value)
                views = {name: tensor[i] for name, tensor in stacked.items()}
                stack.views.append(views)
                state[p] = dict(views)
            stacks.append(stack)
    return stacks
