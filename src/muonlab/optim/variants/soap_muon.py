"""SOAP-Muon: the momentum is normalized in Shampoo's eigenbasis, then orthogonalized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from muonlab.optim.precondition import SOAPBasis
from muonlab.optim.rules import MatrixRule
from muonlab.optim.variants import Variant
from muonlab.optim.variants.muon import muon as make_muon


def soap_muon(*, shampoo_beta: float = 0.9, eps: float = 1e-8, every: int = 10, **muon: Any) -> MatrixRule:
    """Muon of the SOAP-preconditioned momentum. every: steps between two QR iterations of the bases."""
    return replace(make_muon(**muon), precondition=(SOAPBasis(shampoo_beta, eps, every),))


VARIANT = Variant(
    name="soap_muon",
    formula="U = μM + (1−μ)G, Z = Q_Lᵀ U Q_R, V ← βV + (1−β)Z²; W ← W(1 − η·wd) − η·scale(m,n)·orth(Q_L(Z/(√V + eps))Q_Rᵀ)",
    source="https://github.com/KellerJordan/modded-nanogpt (optimization benchmark, PR 278); SOAP: arXiv 2409.11321",
    lr=0.02,
    factory=soap_muon,
    base=make_muon,
)
