"""Averaged logits."""

from __future__ import annotations

import pytest
import torch

from muonlab.errors import InputError
from muonlab.evaluate.ensemble import Averaged
from muonlab.models.gpt import GPTConfig
from muonlab.models.mamba import MambaConfig


def built(config, seed):
    model = config.build(19)
    model.initialize(lambda name: torch.Generator().manual_seed(seed + len(name)))
    with torch.no_grad():
        for p in model.parameters():  # heads begin at zero
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return model.eval()


@torch.no_grad()
def test_the_distribution_is_the_geometric_mean_of_the_models():
    models = [built(GPTConfig(layers=1, width=16, head_width=8, context=8), seed) for seed in range(3)]
    tokens = torch.randint(19, (2, 8), generator=torch.Generator().manual_seed(0))
    product = torch.ones(2, 8, 19, dtype=torch.float64)
    for model in models:
        product *= model(tokens).double().softmax(-1) ** (1 / 3)
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(Averaged(models)(tokens).double().softmax(-1), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_each_model_keeps_its_own_state():
    config = MambaConfig(layers=1, width=16, ssm_head_width=8, ssm_state=8, context=16)
    both = Averaged([built(config, 1), built(config, 2)])
    tokens = torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(0))
    whole = both(tokens)
    states, parts = None, []
    for piece in tokens.split([5, 1, 6], dim=1):
        logits, states = both.extend(piece, states)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_models_of_different_vocabularies_are_no_ensemble():
    config = GPTConfig(layers=1, width=16, head_width=8, context=8)
    with pytest.raises(InputError, match=r"got vocabularies of \[19, 20\] tokens"):
        Averaged([config.build(19), config.build(20)])
    with pytest.raises(InputError, match="at least two models"):
        Averaged([config.build(19)])


def test_an_ensemble_reads_as_far_as_the_model_that_reads_least():
    gpt = [GPTConfig(layers=1, width=16, head_width=8, context=context).build(19) for context in (8, 12)]
    mamba = MambaConfig(layers=1, width=16, ssm_head_width=8, ssm_state=8, context=4).build(19)
    assert Averaged([mamba, *gpt]).longest == 8
    assert Averaged([mamba, mamba]).longest is None
