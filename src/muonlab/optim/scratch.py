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
        self.lent: dict[int, tuple[Tensor, Tensor]] = {}  # id of a tensor -> itself, the bytes that it lies in


_local = _Local()


@contextmanager
def active() -> Iterator[None]:
    """Within, memory is reused. What is still lent at the end is taken back: nothing may be kept."""
    _local.active = True
    try:
        yield
    finally:
        _local.active = False
        _local.free += [memory for _, memory in _local.lent.values()]
        _local.lent.clear()


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
    _local.lent[id(tensor)] = (tensor, memory)
    return tensor


def release(tensor: Tensor) -> None:
    """Gives back what `empty` lent. Any other tensor is left alone."""
    if _local.lent and id(tensor) in _local.lent:
        _local.free.append(_local.lent.pop(id(tensor))[1])
