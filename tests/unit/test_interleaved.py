"""Interleaved blocks: a fused parameter trains as its matrices do, stored apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muonlab.optim import MatrixSpec, Optimizer
from muonlab.optim.variants import variant, variants

LAYOUTS = {
    "heads outermost": ((24, 8), MatrixSpec(groups=4, split=3)),
    "q…q k v": ((40, 8), MatrixSpec(groups=2, split=(12, 4, 4))),
    "transposed": ((8, 24), MatrixSpec(groups=4, split=3, transposed=True)),
    "alternating, a bank": ((3, 6, 16), MatrixSpec(batch_dims=1, transposed=True, groups=8, split=2)),
    "channels_last": ((12, 5, 3, 3), MatrixSpec(groups=3, split=(1, 3))),
}


def apart(spec, tensor):
    """The matrices, by plain loops."""
    found = []
    for one in tensor.reshape(-1, *tensor.shape[spec.batch_dims :]):
        rows = one.T if spec.transposed else one.reshape(len(one), -1)
        per, at = len(rows) // spec.groups, 0
        for size in spec.split if isinstance(spec.split, tuple) else [per // spec.split] * spec.split:
            found.append(torch.cat([rows[g * per + at : g * per + at + size] for g in range(spec.groups)]))
            at += size
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_as_its_matrices_do_stored_apart(layout, name, dtype, device):
    shape, spec = LAYOUTS[layout]
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=draw).to(device, dtype)
    fused = nn.Parameter(first.to(memory_format=torch.channels_last) if layout == "channels_last" else first.clone())
    single = [nn.Parameter(matrix.clone()) for matrix in apart(spec, first)]
    ours = Optimizer([{"params": [fused], "spec": spec}], variant(name).rule(), lr=0.02, weight_decay=0.1)
    theirs = Optimizer([{"params": single}], variant(name).rule(), lr=0.02, weight_decay=0.1)
    for _ in range(4):
        grad = torch.randn(shape, generator=draw).to(device, dtype)
        fused.grad = grad.clone()
        for p, part in zip(single, apart(spec, grad), strict=True):
            p.grad = part.clone()
        ours.step()
        theirs.step()
    for mine, other in zip(apart(spec, fused.detach()), single, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=0, atol=1e-5)
    assert not torch.equal(fused, first)


def test_one_tenth_of_a_gradient_moves_a_matrix_as_far():
    """The reason for it: q's gradient is a hundredth of k's, and q moves as far as k and v do."""
    fused, spec = nn.Parameter(torch.zeros(48, 16)), MatrixSpec(groups=4, split=3)
    optimizer = Optimizer([{"params": [fused], "spec": spec}], variant("muon").rule(), lr=1.0)
    fused.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
    fused.grad.view(4, 3, 4, 16)[:, 0] *= 0.01
    optimizer.step()
    q, k, v = (matrix.norm() for matrix in apart(spec, fused.detach()))
    assert 0.9 < q / k < 1.1
    assert 0.9 < v / k < 1.1


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((25, 4), MatrixSpec(groups=4, split=3), "groups 4: expected a divisor of the 25 outputs"),
        ((28, 4), MatrixSpec(groups=4, split=3), "split 3 does not fit 7 outputs of each of 4 groups"),
    ],
)
def test_what_does_not_fit_is_named(shape, spec, message):
    with pytest.raises(ValueError, match=message):
        Optimizer([{"params": [nn.Parameter(torch.zeros(shape))], "spec": spec}], variant("muon").rule(), lr=0.1)
    with pytest.raises(ValueError, match="groups"):
        MatrixSpec(groups=0)
    with pytest.raises(ValueError, match="interleaved along the outputs"):
        MatrixSpec(groups=2, split=3, axis="input")
