"""One memory, seen twice: the state of a whole stack, and of each of its parameters as a tensor with a storage of its own.

What is in `optimizer.state` then behaves as torch's: saved or copied alone it takes its own bytes with it, and once others have
taken its place (offloaded to a CPU, say) its memory is free, since nothing else holds the stack's.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_SLICED = ("cpu", "cuda")  # devices whose addresses can be counted on from a storage's beginning


class Shared:
    """Tensors (B, ...) by name. They live as long as one of their parts does, or for good once `pin` was called."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._pinned: dict[str, Tensor] | None = dict(tensors)
        self._whole = {name: weakref.ref(tensor) for name, tensor in tensors.items()}

    @property
    def names(self) -> set[str]:
        return set(self._whole)

    def tensors(self) -> dict[str, Tensor]:
        """name -> (B, ...). What has no part left is not among them."""
        if self._pinned is not None:
            return self._pinned
        return {name: tensor for name, whole in self._whole.items() if (tensor := whole()) is not None}

    def part(self, name: str, start: int, count: int) -> Tensor:
        """Rows of the tensor of that name; one row without its dimension."""
        whole = self.tensors()[name]
        rows = whole[start] if count == 1 else whole[start : start + count]
        if whole.untyped_storage().device.type in _SLICED:  # of a tensor whose memory is only counted: none of these
            size = rows.numel() * rows.element_size()
            begin = rows.storage_offset() * rows.element_size()
            storage = whole.untyped_storage()[begin : begin + size]
            rows = torch.empty(0, dtype=whole.dtype, device=whole.device).set_(storage, 0, rows.shape, rows.stride())
        weakref.finalize(rows, _let_go, whole).atexit = False
        return rows

    def let_go(self) -> None:
        """Once all parts are made: they alone hold the memory."""
        self._pinned = None

    def pin(self) -> None:
        """Holds the memory: a graph has it by its address."""
        self._pinned = self.tensors()


def _let_go(whole: Tensor) -> None:
    """Called when a part is gone. The call's argument held the whole until then."""


class Part(NamedTuple):
    """A part, without holding it."""

    name: str
    rows: weakref.ref[Tensor]
    address: int | None  # `.data` may be given another; None where memory is only counted

    @classmethod
    def of(cls, name: str, rows: Tensor) -> Part:
        real = rows.untyped_storage().device.type in _SLICED
        return cls(name, weakref.ref(rows), rows.data_ptr() if real else None)
