"""Whether kernels may be used (`enable`), can be used (`available`), and are worth it (`chosen`)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# The tiles of a smaller product do not fill a GPU: half of them take as long. Estimated; benchmarks/kernels.py measures it.
_FROM = 256

_enabled = False


def enable(on: bool = True) -> None:
    """Lets Newton–Schulz take the Triton kernel for its symmetric products on CUDA: in this process, for m of 256 or more.

    Off by default, because it has run in Triton's interpreter only and never on a GPU: its results are tested, its speed is
    not known. Run `python benchmarks/kernels.py` on your GPU first. Results differ from the plain path's by rounding, and the
    tile size is chosen by a timing in each process, so equal bits from one process to the next are not promised.
    Not used under torch.compile. Raises ImportError where Triton is missing.
    """
    global _enabled
    if on and not _importable():
        raise ImportError("the kernels need Triton, which exists for Linux: pip install 'muonlab[kernels]'")
    _enabled = on


def enabled() -> bool:
    return _enabled


def available(x: Tensor) -> bool:
    """True where a kernel can run on x: Triton is there, and x is on a CUDA device or Triton's interpreter is on."""
    return _importable() and (x.is_cuda or _interpreted())


def chosen(a: Tensor) -> bool:
    """True where the plain path should leave the symmetric product a @ b, a (B, m, k), to the kernel."""
    if not _enabled or torch.compiler.is_compiling():
        return False
    return a.shape[-2] >= _FROM and a.dtype in DTYPES and available(a)


@cache
def _importable() -> bool:
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def _interpreted() -> bool:
    # Triton decides when a kernel is defined, not when it is called.
    from muonlab.optim.kernels.triangle import INTERPRETED

    return INTERPRETED
