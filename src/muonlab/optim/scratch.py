"""Memory for what a step needs only for a moment, used again from one stack to the next.

A large tensor that is fresh from the operating system costs a page fault for every 4 KiB of it: on a CPU more time than
most elementwise operations on it take, and than some products. Inside `active()`, `empty` hands out the same memory again and
again; outside, on other devices (whose allocators do this themselves) and for small tensors it is torch.empty.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_SMALL = 2**16  # bytes: the C library keeps blocks of such sizes


class _Local(threading.local):
    def __init__(self) -> None:
        self.active = False
        self.free: list[Tensor] = []  # of bytes
        self.lent: dict[int, Tensor] = {}  # storage -> its bytes


_local = _Local()


@contextmanager
def active() -> Iterator[None]:
    """Within, memory is reused. What is still lent at the end is taken back: nothing may be kept.

    One within another (an optimizer that is stepped by a piece of another's rule) leaves alone what the outer one has lent.
    """
    if torch.compiler.is_compiling():  # which plans the memory of a graph itself
        yield
        return
    before, _local.active = (_local.active, _local.lent), True
    _local.lent = {}
    try:
        yield
    finally:
        _local.free += _local.lent.values()
        _local.active, _local.lent = before


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized contiguous tensor, to be given back by `release`."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size <= _SMALL or torch.compiler.is_compiling() or not _local.active:
        return torch.empty(shape, dtype=dtype, device=device)
    fitting = [i for i, memory in enumerate(_local.free) if size <= memory.numel() <= 2 * size]
    if fitting:
        memory = _local.free.pop(min(fitting, key=lambda i: _local.free[i].numel()))
    else:
        memory = torch.empty(size, dtype=torch.uint8)
    tensor = memory[:size].view(dtype).view(shape)
    _local.lent[_storage(memory)] = memory
    return tensor


def release(tensor: Tensor, *, kept: Tensor | None = None) -> None:
    """Gives back the memory of a tensor that `empty` lent, or of a view of one; not if `kept` lies in it too. Any other tensor
    is left alone."""
    if torch.compiler.is_compiling() or not _local.lent:
        return
    storage = _storage(tensor)
    if storage in _local.lent and (kept is None or _storage(kept) != storage):
        _local.free.append(_local.lent.pop(storage))


def own(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy for keeps of what lies in memory that `empty` lent."""
    lent = _local.lent and _storage(tensor) in _local.lent
    return tensor.clone() if lent else tensor


def _storage(tensor: Tensor) -> int:
    """Equal for tensors in one storage. Not its address: tensors without memory, whose use is only counted, have none."""
    return tensor.untyped_storage()._cdata
