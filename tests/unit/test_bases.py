"""Bases of matrices of less than full rank: the same whatever a machine's eigh and qr do with a null space."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muonlab.optim import bases
from muonlab.optim.optimizer import Optimizer
from muonlab.optim.variants import variant
from tests.reference.others import complement

SIZES = [(1, 1), (5, 0), (5, 5), (6, 2), (40, 7), (40, 39)]


def stream(seed):
    return torch.Generator().manual_seed(seed)


def gram(n, rank, seed=0, dtype=torch.float64):
    g = torch.randn(n, rank, generator=stream(seed), dtype=torch.float64)
    return (g @ g.T).to(dtype)


@pytest.mark.parametrize(("n", "rank"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_null_space_has_the_unit_vectors_basis(n, rank, dtype):
    found = bases.eigenvectors(gram(n, rank, dtype=dtype))
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found.T @ found, torch.eye(n, dtype=dtype), rtol=0, atol=tolerance)
    exact = complement(found[:, :rank].double(), n - rank)
    signs = (found[:, rank:].double() * exact).sum(0).sign()
    torch.testing.assert_close(found[:, rank:].double() * signs, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 11], [0, 2, 4, 6, 8, 10, 11]])
def test_unit_vectors_that_are_in_the_range_are_passed_over(rows):
    """Gradients of which only some rows are not zero; the others' unit vectors are the null space."""
    g = torch.zeros(12, len(rows), dtype=torch.float64)
    g[rows] = torch.randn(len(rows), len(rows), generator=stream(1), dtype=torch.float64)
    found = bases.eigenvectors(g @ g.T)
    null = torch.eye(12, dtype=torch.float64)[:, [i for i in range(12) if i not in rows]]
    torch.testing.assert_close(found[:, len(rows) :].abs(), null, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (9, 9)])
def test_two_machines_agree(shape, monkeypatch):
    """One whose eigh and qr turn null spaces, and flip signs, as they like."""
    eigh, qr = torch.linalg.eigh, torch.linalg.qr

    def turned(q, weights, seed):
        null = weights <= 1e-9 * weights.max()
        q = q * torch.where(torch.rand(len(weights), generator=stream(seed)) < 0.5, -1.0, 1.0).double()
        turn = qr(torch.randn(int(null.sum()), int(null.sum()), generator=stream(seed), dtype=torch.float64)).Q
        q[:, null] = q[:, null] @ turn
        return q

    def other_eigh(matrix):
        values, vectors = eigh(matrix)
        return values, turned(vectors, values.abs(), 5)

    def other_qr(matrix):
        q, r = qr(matrix)
        return (turned(q, r.diagonal().abs(), 6), r) if q.shape == r.shape else (q, r)

    def trained(steps=7):
        p = nn.Parameter(torch.randn(shape, generator=stream(2), dtype=torch.float64))
        optimizer = Optimizer([p], variant("soap_muon").rule(every=2), lr=0.02)
        for k in range(steps):
            p.grad = torch.randn(shape, generator=stream(10 + k), dtype=torch.float64)
            p.grad[:2] = 0  # a side that never comes to full rank
            optimizer.step()
        return p.detach()

    here = trained()
    monkeypatch.setattr(torch.linalg, "eigh", other_eigh)
    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    torch.testing.assert_close(trained(), here, rtol=0, atol=1e-5)  # the orthogonalizer computes in float32
