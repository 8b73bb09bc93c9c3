"""The sets of matrices that a step is measured on, and the FLOPs that they need."""

from __future__ import annotations

import math
from collections.abc import Iterable

Shape = tuple[int, ...]  # (m, n), or (E, m, n): a bank of experts


def _transformer(width: int, layers: int) -> list[Shape]:
    """Fused QKV, projection, MLP up, MLP down."""
    return [(m * width, n * width) for m, n in ((3, 1), (1, 1), (4, 1), (1, 4))] * layers


SETS: dict[str, list[Shape]] = {
    "gpt2-small": _transformer(768, 12),
    "many-small": [(64, 64)] * 100 + [(64, 256)] * 100,
    # two layers of Llama-3-8B: query, key and value (8 heads of 32), output, gate and up, down
    "llama-8b": [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)] * 2,
    "experts": [(64, 1408, 2048), (64, 2048, 1408)],
    "gpt2-medium": _transformer(1024, 24),
    "gpt2-xl": _transformer(1600, 48),  # 1.5 billion parameters
    "tiny": _transformer(256, 6),
    "smoke": [*_transformer(32, 1), (3, 32, 48)],  # does it run at all?
}
ON_CPU = ("gpt2-small", "tiny", "many-small")
ON_GPU = ("gpt2-small", "many-small", "llama-8b", "experts", "gpt2-medium", "gpt2-xl")  # in the order of their worth

# Orthogonalization alone: (B, m, n)
ALONE: dict[str, Shape] = {"aspect 4": (8, 1024, 4096), "square": (8, 2048, 2048)}
SMOKE_ALONE: dict[str, Shape] = {"aspect 4": (2, 32, 128), "square": (2, 64, 64)}


def default_sets(device: str, tiny: bool) -> tuple[str, ...]:
    """What is measured where nobody names sets."""
    return ("smoke",) if tiny else ON_GPU if device.startswith("cuda") else ON_CPU


def matrices(shapes: Iterable[Shape]) -> list[Shape]:
    """The banks' matrices one by one."""
    return [shape[-2:] for shape in shapes for _ in range(math.prod(shape[:-2]))]


def entries(shapes: Iterable[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def standard_flops(m: int, n: int, steps: int = 5) -> int:
    """Of the quintic Newton–Schulz iteration as torch.optim.Muon has it: X Xᵀ, its square, and their sum times X, `steps` times."""
    m, n = min(m, n), max(m, n)
    return steps * (2 * 2 * m * m * n + 2 * m**3)
