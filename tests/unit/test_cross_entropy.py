"""The fused head against torch's own operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muonlab.models import cross_entropy
from muonlab.models.cross_entropy import head_loss
from muonlab.models.softcap import soft_cap


def made(rows, width, vocabulary, dtype=torch.float64, device="cpu"):
    stream = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(s, generator=stream, dtype=dtype).to(device) for s in ((2, rows, width), (vocabulary, width), (vocabulary,))
    )
    return (
        x.requires_grad_(),
        weight.requires_grad_(),
        bias.requires_grad_(),
        torch.randint(vocabulary, (2, rows), generator=stream).to(device),
    )


def plain(x, weight, bias, targets, cap, form):
    return F.cross_entropy(soft_cap(F.linear(x, weight, bias), cap, form).flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("form", ["rsqrt", "tanh", "none"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "block"), [(5, 7), (300, 1 << 18), (128, 100)])
def test_loss_and_gradients_are_those_of_the_pieces(form, with_bias, rows, block, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_BLOCK", block)
    x, weight, bias, targets = made(rows, 6, 33)
    parameters = [x, weight, bias] if with_bias else [x, weight]
    bias = bias if with_bias else None
    fused, parts = head_loss(x, weight, bias, targets, 3.0, form), plain(x, weight, bias, targets, 3.0, form)
    torch.testing.assert_close(fused, parts, rtol=1e-12, atol=0)
    for own, expected in zip(torch.autograd.grad(3 * fused, parameters), torch.autograd.grad(3 * parts, parameters), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-14)


def test_large_logits_without_a_cap_do_not_overflow(device):
    x, weight, _, targets = made(4, 6, 33, torch.float32, device=device)
    fused = head_loss(1e4 * x, weight, None, targets, 1.0, "none")
    torch.testing.assert_close(fused, plain(1e4 * x, weight, None, targets, 1.0, "none"))
    assert all(g.isfinite().all() for g in torch.autograd.grad(fused, [x, weight]))


def test_without_gradients_the_loss_is_the_same(device):
    x, weight, bias, targets = made(9, 6, 33, device=device)
    with torch.no_grad():
        loss = head_loss(x, weight, bias, targets, 3.0, "rsqrt")
    assert not loss.requires_grad
    torch.testing.assert_close(loss, head_loss(x, weight, bias, targets, 3.0, "rsqrt").detach())


def test_bf16_autocast_makes_the_products_in_bf16_and_the_rest_in_float32(device):
    x, weight, bias, targets = made(64, 32, 50, torch.float32, device=device)
    exact = torch.autograd.grad(plain(x, weight, bias, targets, 15.0, "rsqrt"), [x, weight, bias])
    with torch.autocast(device, torch.bfloat16):
        loss = head_loss(x, weight, bias, targets, 15.0, "rsqrt")
        low = plain(x, weight, bias, targets, 15.0, "rsqrt")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, low.float(), rtol=0.01, atol=0)
    for own, expected in zip(torch.autograd.grad(loss, [x, weight, bias]), exact, strict=True):
        assert own.dtype == torch.float32
        assert F.cosine_similarity(own.flatten(), expected.flatten(), dim=0) > 0.999


def test_gradients_of_bf16_weights_do_not_lose_late_rows():
    stream = torch.Generator().manual_seed(0)
    x = (torch.randn(131072, 32, generator=stream) + 0.5).bfloat16()
    weight, targets = torch.zeros(64, 32).bfloat16().requires_grad_(), torch.randint(8, (131072,), generator=stream)
    (own,) = torch.autograd.grad(head_loss(x, weight, None, targets, 15.0, "none"), weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(F.linear(x, weight).float(), targets), weight)
    assert own.dtype == torch.bfloat16
    assert torch.linalg.vector_norm((own - expected).float()) < 0.01 * torch.linalg.vector_norm(expected.float())
