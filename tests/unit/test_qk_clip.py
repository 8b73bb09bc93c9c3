"""QK-Clip on a real GPT and on layers given by hand: logits come down to the bound, the rest stays bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import muonlab
from muonlab.models.attention import rotate
from muonlab.models.gpt import GPTConfig
from muonlab.optim import QKClip
from muonlab.optim.variants import variant
from muonlab.streams import stream_seed


def gpt(layers=1, **options):
    config = GPTConfig(layers=layers, width=32, head_width=8, context=12, vocab_size=11, **{"qk_norm": False, **options})
    model = config.build(11)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(0, name)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.attention.q, block.attention.k):
                if linear.bias is not None:
                    linear.bias.normal_(generator=generator)
            block.attention.q.weight[:16] *= 40  # heads 0 and 1
    return model.train()


def tokens(device="cpu"):
    return torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2)).to(device)


@torch.no_grad()
def logits(model, x):
    """The largest causal logit of every head of the first layer, from its weights: (heads,)."""
    block = model.blocks[0]
    a = block.attention
    h = block.norm1(model.norm_in(model.embed(x)))
    q, k = (rotate(f(h).view(3, 12, 4, 8), model.cos, model.sin).transpose(1, 2).double() for f in (a.q, a.k))
    scores = q @ k.mT * a.scale
    return torch.stack([scores[..., t, : t + 1].amax((0, 2)) for t in range(12)]).amax(0)


@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_after_a_clip_the_largest_logit_is_the_bound(alpha, bias, device):
    model = gpt(bias=bias).to(device)
    clip = QKClip(model, tau=4.0, alpha=alpha)
    a = model.blocks[0].attention
    before = logits(model, tokens(device=device))
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    clipped = before > 4.0
    assert clipped.any()
    assert not clipped.all()
    model(tokens(device=device))
    torch.testing.assert_close(a.max_logits.double(), before, rtol=1e-5, atol=1e-5)
    clip.clip()
    after = logits(model, tokens(device=device))
    torch.testing.assert_close(after[clipped], torch.full_like(after[clipped], 4.0), rtol=1e-5, atol=0)
    assert torch.equal(after[~clipped], before[~clipped])
    assert clip.clipped == int(clipped.sum())
    rows = clipped.repeat_interleave(8)
    for name, p in model.named_parameters():
        if ".q." in name or ".k." in name:
            assert torch.equal(p[~rows], kept[name][~rows])
        else:
            assert torch.equal(p, kept[name])
    assert torch.equal(a.k.weight, kept["blocks.0.attention.k.weight"]) == (alpha == 1.0)
    model(tokens(device=device))
    now = clip.clipped
    clip.clip()  # within rounding of the bound: nothing left to do but that
    assert clip.clipped - now <= int(clipped.sum())
    torch.testing.assert_close(logits(model, tokens(device=device)), after, rtol=1e-5, atol=1e-6)


def test_the_largest_of_all_forward_passes_of_a_step_counts_and_evaluation_does_not(device):
    model = gpt().to(device)
    clip = QKClip(model, tau=1e9)
    a = model.blocks[0].attention
    parts = [tokens(device=device)[i : i + 1] for i in range(3)]
    found = []
    for part in parts:
        model(part)
        found.append(a.max_logits.clone())
    assert torch.equal(found[-1], torch.stack(found).amax(0))
    model.eval()
    clip.clip()
    model(tokens(device=device))
    assert a.max_logits is None
    clip.clip()
    assert clip.clipped == 0


def test_attached_it_runs_after_every_step_until_removed(device):
    model = gpt(layers=2).to(device)
    clip = QKClip(model, tau=3.0)
    optimizer = muonlab.optimizer(model, "muon", lr=0.0, aux_lr=0.0)
    handle = clip.attach(optimizer)

    def step():
        optimizer.zero_grad()
        model(tokens(device=device)).square().mean().backward()
        optimizer.step()

    step()
    first = clip.clipped
    assert first > 0
    assert logits(model, tokens(device=device)).max() <= 3.0 * (1 + 1e-5)
    handle.remove()
    with torch.no_grad():
        model.blocks[0].attention.q.weight.mul_(10)
    step()
    assert clip.clipped == first
    assert logits(model, tokens(device=device)).max() > 3.0


def test_a_model_that_normalizes_queries_and_keys_is_refused():
    with pytest.raises(ValueError, match="qk_norm = false"):
        QKClip(gpt(qk_norm=True))
    for bad in ({"tau": 0.0}, {"tau": -1.0}, {"alpha": 1.5}, {"tau": float("nan")}):
        with pytest.raises(ValueError, match="expected"):
            QKClip(gpt(), **bad)


@dataclass
class Layer:
    heads: int
    query: list[Tensor]
    key: list[Tensor]
    max_logits: Tensor | None = None

    def reset(self) -> None:
        self.max_logits = None


def grouped(device="cpu"):
    """Six heads of four dimensions in groups of three: two key heads."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device) * 3

    return Layer(6, [normal(24, 10), normal(24)], [normal(8, 10), normal(8)]), normal(50, 10)


def largest(layer, x):
    q = (x @ layer.query[0].T + layer.query[1]).view(50, 6, 4)
    k = (x @ layer.key[0].T + layer.key[1]).view(50, 2, 4)
    return torch.stack([(q[:, h] @ k[:, h // 3].T).max() for h in range(6)])


def test_with_grouped_queries_no_head_stays_above_the_bound(device):
    layer, x = grouped(device=device)
    layer.query[0][12:] *= 0.01  # the second group stays below
    layer.query[1][12:] *= 0.01
    layer.max_logits = largest(layer, x)
    tau = float(layer.max_logits[:3].median())
    before = [t.clone() for t in (*layer.query, *layer.key)]
    assert (layer.max_logits[3:] < tau).all()
    QKClip([layer], tau=tau).clip()
    assert (largest(layer, x) <= tau * (1 + 1e-12)).all()
    assert layer.max_logits is None
    for old, new, half in zip(before, (*layer.query, *layer.key), (12, 12, 4, 4), strict=True):
        assert torch.equal(old[half:], new[half:])
        assert not torch.equal(old[:half], new[:half])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 0.0, -5.0])
def test_a_logit_that_says_nothing_changes_nothing(value, device):
    """An overflow in 16 bits must not zero a head for good; the gradient of such a step is left out too."""
    layer, _ = grouped(device=device)
    before = [t.clone() for t in (*layer.query, *layer.key)]
    layer.max_logits = torch.full((6,), value, device=device)
    clip = QKClip([layer], tau=1.0)
    clip.clip()
    assert all(torch.equal(old, new) for old, new in zip(before, (*layer.query, *layer.key), strict=True))
    assert clip.clipped == 0


def test_a_model_that_shows_no_layers_is_refused_at_once():
    with pytest.raises(TypeError, match=r"Linear has no qk_layers\(\)"):
        QKClip(torch.nn.Linear(4, 4))


def test_muown_takes_row_lengths_as_others_left_them(device):
    """Halved from outside, the weights stay halved: their lengths are not state that comes back."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 8, generator=generator).to(device))
    optimizer = muonlab.optim.Optimizer([p], variant("muown").rule(), lr=1e-3)
    norms = []
    for step in range(3):
        if step == 2:
            with torch.no_grad():
                p.mul_(0.5)
        p.grad = torch.randn(6, 8, generator=generator).to(device)
        optimizer.step()
        norms.append(p.norm().item())
    assert norms[2] < 0.6 * norms[1]
