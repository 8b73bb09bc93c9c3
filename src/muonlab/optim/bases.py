"""Orthonormal bases that do not depend on rounding where a matrix has less than full rank.

Eigenvectors of the eigenvalue 0, and what a QR decomposition does with columns that depend on others, are whatever rounding finds.
Here they are, in order, the unit vectors e_0, e_1, … projected onto that space and made orthonormal one after the other; one
whose remainder is shorter than a thousandth is passed over.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHORT = 1e-3  # a remainder that is too short to say a direction


def eigenvectors(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite (n, n), as columns, the largest eigenvalue first."""
    values, vectors = torch.linalg.eigh(matrix)
    return _completed(vectors.flip(-1), values.flip(-1).abs())


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Q (n, n) of a QR decomposition of (n, n), but for signs."""
    q, r = torch.linalg.qr(matrix)
    return _completed(q, r.diagonal().abs())


def _completed(basis: Tensor, weights: Tensor) -> Tensor:
    """Puts the unit vectors' basis in place of the columns of next to no weight."""
    relative = 1e-9 if basis.dtype == torch.float64 else 16 * torch.finfo(basis.dtype).eps
    empty = weights <= relative * (weights.max() if len(weights) else 0)
    if not bool(empty.any()):
        return basis
    out = basis.clone()
    out[:, empty] = _complement(basis[:, ~empty], int(empty.sum()))
    return out


def _complement(kept: Tensor, count: int) -> Tensor:
    """kept (n, n − count), orthonormal -> (n, count)."""
    n = len(kept)
    unit, done = torch.eye(n, dtype=kept.dtype, device=kept.device), 0
    found = kept[:, :0]
    while found.shape[1] < count:
        basis = torch.cat([kept, found], dim=1)
        left = unit[:, done:] - basis @ basis[done:].mT
        left = left - basis @ (basis.mT @ left)  # twice: once leaves rounding of the size of what was taken away
        long = (left.norm(dim=0) > _SHORT).nonzero().flatten()[: count - found.shape[1]]
        if not len(long):  # cannot be but by rounding: any basis will do then
            return torch.linalg.qr(torch.cat([basis, unit], dim=1)).Q[:, kept.shape[1] :]
        q, r = torch.linalg.qr(left[:, long])
        short = (r.diagonal().abs() <= _SHORT).nonzero().flatten()
        fit = int(short[0]) if len(short) else len(long)  # those after it are orthogonal to a direction that is none
        found = torch.cat([found, q[:, :fit]], dim=1)
        done += int(long[min(fit, len(long) - 1)]) + 1
    return found
