"""Which dtype this device multiplies matrices in fastest: measured, since names of chips do not tell."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch import Tensor

_PROBE_SIZE = 256  # large enough to leave call overhead behind, small enough for a few milliseconds in all
_PROBE_ROUNDS = 5


_pinned: dict[str, bool] = {}


def pin(device_type: str, bf16_fast: bool) -> None:
    """Fixes the answer for this process: what a run began with, it goes on with, and so do all runs of a sweep."""
    _pinned[device_type] = bf16_fast


def settle(device_type: str) -> None:
    """Pins what this process would measure, unless it is pinned already: a compiled step cannot measure."""
    _pinned.setdefault(device_type, bf16_is_fast(device_type))


def bf16_is_fast(device_type: str) -> bool:
    """True where a bfloat16 matrix product takes less time than a float32 one (one probe per process, unless pinned)."""
    return _pinned[device_type] if device_type in _pinned else _probe(device_type)


@lru_cache
def _probe(device_type: str) -> bool:
    if device_type != "cpu":  # every accelerator that torch supports and that has bf16 at all is built for it
        return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    operands = {dtype: torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype) for dtype in seconds}
    for x in operands.values():
        torch.mm(x, x)  # warm-up: the first product builds the kernel
    for _ in range(_PROBE_ROUNDS):
        for dtype, x in operands.items():
            start = time.perf_counter()
            torch.mm(x, x)
            seconds[dtype].append(time.perf_counter() - start)
    # the median by hand: the module `statistics` brings decimal and fractions along
    return sorted(seconds[torch.bfloat16])[_PROBE_ROUNDS // 2] < sorted(seconds[torch.float32])[_PROBE_ROUNDS // 2]


def fast_matmul_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64; else bfloat16 where that is fast, and float32 where it is not."""
    if x.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if bf16_is_fast(x.device.type) else torch.float32
