"""One stack in one step: what a rule and its pieces are given, and how they reach the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor  # a number, a tensor without dimensions, or one value per matrix: (B, 1, 1)


@dataclass
class Step:
    """One stack (or a run of its rows) in one step, as a rule sees it."""

    weights: list[Tensor]  # B tensors (m, n): the parameters, views or (half precision) float32 copies, updated in place
    grads: Tensor  # (B, m, n), in the state's dtype (float32, or float64 for float64 parameters); read only
    state: dict[str, Tensor]  # each (B, ...), updated in place
    lr: Scalar
    weight_decay: Scalar
    scalars: Mapping[str, Any]  # the group's live scalars: lr, momentum, beta2, betas, eps ...
    taken: Tensor | None = None  # a flag on the device: False where a gradient was not finite, and nothing may change. None: yes
    norm_dim: int | tuple[int, ...] | None = None  # where a norm constraint runs: -1 or -2 of a matrix, or as a tensor is stored

    # A step that is not taken is made of gradients and rates of zero and means that keep what they hold. What that does not
    # leave as it was (counts, projections, plain copies) goes through `count`, `write` and `keep`.

    def matrices(self) -> Tensor:
        """The weights as one stack (B, m, n): not to be changed, since one alone is not copied."""
        return self.weights[0].unsqueeze(0) if len(self.weights) == 1 else torch.stack(self.weights)

    def write(self, values: Tensor) -> None:
        """W ← values (B, m, n)."""
        if self.taken is not None:
            values = torch.where(self.taken, values, self.matrices())
        torch._foreach_copy_(self.weights, list(values.unbind(0)))  # pyright: ignore[reportPrivateImportUsage]

    def keep(self, name: str, value: Tensor) -> None:
        """The state of that name ← value."""
        held = self.state[name]
        held.copy_(value if self.taken is None else torch.where(self.taken, value, held))

    def count(self, name: str) -> Tensor:
        """The count of that name (B,), one further."""
        return self.state[name].add_(1 if self.taken is None else self.taken)

    def penalized(self) -> Tensor:
        """G + wd·W: coupled weight decay."""
        wd = self.weight_decay
        if isinstance(wd, Tensor):
            return self.grads + self.matrices() * wd
        return self.grads.add(self.matrices(), alpha=wd) if wd else self.grads

    def subtract(self, update: Tensor, factor: Scalar) -> None:
        """W ← W − factor · update, for every matrix of the stack."""
        if isinstance(factor, Tensor):
            if self.taken is not None:  # what is no number now, as 0/0 without eps, is not to reach W by a factor of zero
                update = torch.where(self.taken, update, 0.0)
            torch._foreach_sub_(self.weights, list((update * factor).unbind(0)))  # pyright: ignore[reportPrivateImportUsage]
        else:  # the fused form: one rounding, as torch's own optimizers do it
            torch._foreach_add_(self.weights, list(update.unbind(0)), alpha=-factor)  # pyright: ignore[reportPrivateImportUsage]

    def shrink(self, factor: Scalar) -> None:
        """W ← W · (1 − factor)."""
        weights = self.weights
        if isinstance(factor, Tensor):
            by = (1 - factor).to(weights[0].dtype)
            torch._foreach_mul_(weights, list(by.flatten().unbind(0)) if by.ndim else by)  # pyright: ignore[reportPrivateImportUsage]
        elif factor:
            # On a CPU a tensor, not a number: torch loops over many small tensors three times as fast with it.
            by = torch.tensor(1 - factor, dtype=weights[0].dtype) if weights[0].device.type == "cpu" else 1 - factor
            torch._foreach_mul_(weights, by)  # pyright: ignore[reportPrivateImportUsage]
