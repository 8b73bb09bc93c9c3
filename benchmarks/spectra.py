"""The spectra that orthogonalizers are judged by: singular values, largest first, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

GAUSSIAN = [(64, 64), (64, 256), (256, 256), (256, 1024), (768, 768), (768, 2304), (768, 3072)]


def spectra() -> dict[str, Tensor]:
    """name -> singular values: Gaussian matrices, log-uniform down to 1e-2, 1e-3 and 1e-6, and a power law 1/k."""
    generator = torch.Generator().manual_seed(0)
    found = {
        f"gaussian {m}×{n}": torch.linalg.svdvals(torch.randn(m, n, generator=generator, dtype=torch.float64)) for m, n in GAUSSIAN
    }
    for digits in (2, 3, 6):
        exponents = torch.rand(768, generator=generator, dtype=torch.float64)
        found[f"log-uniform to 1e-{digits}"] = (10 ** (-digits * exponents)).sort(descending=True).values
    found["power law 1/k"] = 1 / torch.arange(1, 769, dtype=torch.float64)
    return found
