"""Decoding beyond what every family promises (tests/contract/test_decoding.py): what caches cost, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

from muonlab.models import decoding
from muonlab.models.family import Model, families
from muonlab.models.gpt import GPTConfig
from muonlab.models.hybrid import HybridConfig
from muonlab.models.mamba import MambaConfig

SMALL = GPTConfig(layers=2, width=32, head_width=8, kv_heads=2, context=40)


def build(config=SMALL, device="cpu"):
    model = config.build(19)
    model.initialize(lambda name: torch.Generator().manual_seed(len(name)))
    return model.to(device)


def tokens(*shape, device="cpu"):
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(0)).to(device)


def test_every_family_generates():
    assert {"gpt", "ngpt", "mamba", "hybrid"} <= set(families())
    for config in families().values():
        with torch.device("meta"):
            assert type(config().build(19)).extend is not Model.extend


def test_a_family_without_extend_says_so():
    class Simple(Model):
        pass

    with pytest.raises(NotImplementedError, match="Simple cannot generate: its family has a forward pass, but no `extend`"):
        Simple().extend(tokens(1, 2))


def test_a_cache_doubles_until_it_holds_a_context(device):
    model = build(device=device)
    _, states = model.extend(tokens(3, 7, device=device))
    rooms, buffers = [states.layers[0].keys.shape[1]], {states.layers[0].keys.data_ptr()}
    for _ in range(33):
        _, states = model.extend(tokens(3, 1, device=device), states)
        rooms.append(states.layers[1].values.shape[1])
        buffers.add(states.layers[0].keys.data_ptr())
    assert rooms == [7] + [14] * 7 + [28] * 14 + [40] * 12
    assert len(buffers) <= 4  # between, tokens are written where they are
    assert states.layers[0].keys.shape == (3, 40, 2, 8)  # a key for each group of queries


def test_a_hybrids_cache_holds_its_blocks_and_no_more(device):
    model = build(
        HybridConfig(layers=1, pattern="R", width=32, head_width=8, ssm_head_width=16, ssm_state=8, context=40), device=device
    )
    _, states = model.extend(tokens(2, 11, device=device))
    cache, newest = states.layers[0].attention
    assert cache.keys.shape == (2, 11 + 5 + 2, 4, 8)
    assert newest.values.shape == (2, 3, 4, 8)
    for _ in range(29):
        _, states = model.extend(tokens(2, 1, device=device), states)
    assert states.layers[0].attention.cache.keys.shape[1] == 40 + 20 + 10


def test_a_single_token_is_mambas_step(device):
    model = build(MambaConfig(layers=2, width=32, ssm_head_width=16, ssm_state=8), device=device)
    with torch.no_grad():
        _, states = model.extend(tokens(2, 5, device=device))
        one, after = model.extend(tokens(2, 1, device=device), states)
        step, wanted = model.step(tokens(2, 1, device=device)[:, 0], states)
    assert torch.equal(one[:, 0], step)
    assert all(state.ssm.is_contiguous() for state in after)  # so that the next step copies none
    assert all(torch.equal(a, b) for left, right in zip(after, wanted, strict=True) for a, b in zip(left, right, strict=True))


def test_pads_leave_nothing_in_mambas_state(device):
    _, states = build(MambaConfig(layers=2, width=32, ssm_head_width=16, ssm_state=8), device=device).extend(
        tokens(2, 5, device=device), None, torch.tensor([0, 2])
    )
    for conv, ssm in states:
        assert not conv[0].any()
        assert not ssm[0].any()
        assert ssm[1].any()


def test_without_attention_there_is_no_longest_text(device):
    for config in (
        MambaConfig(layers=1, width=32, ssm_head_width=16, ssm_state=8, context=8),
        HybridConfig(layers=2, pattern="M-", width=32, head_width=8, ssm_head_width=16, ssm_state=8, context=8),
    ):
        model = build(config, device=device)
        assert model.longest is None
        logits, states = model.extend(tokens(1, 6, device=device))
        logits, _ = model.extend(tokens(1, 6, device=device), states)
        with torch.no_grad():
            torch.testing.assert_close(logits, model(tokens(1, 6, device=device).repeat(1, 2))[:, 6:], rtol=0, atol=1e-5)


class Pair(NamedTuple):
    a: torch.Tensor
    b: tuple


def test_select_takes_rows_of_anything_nested():
    x, y = torch.arange(6).view(3, 2), torch.arange(3.0)
    for rows in ([2, 0, 2, 1], torch.tensor([2, 0, 2, 1])):
        found = decoding.select([Pair(x, ()), (y, [x])], rows)
        assert isinstance(found[0], Pair)
        assert found[0].a.tolist() == found[1][1][0].tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
        assert found[1][0].tolist() == [2, 0, 2, 1]
    x.zero_()
    assert found[0].a.sum() > 0  # it is a copy
    assert decoding.select([y], [])[0].shape == (0,)


@pytest.mark.parametrize("states", [None, nn.Linear(1, 1), {"keys": torch.zeros(2)}])
def test_select_refuses_what_is_no_state(states):
    with pytest.raises(TypeError, match="expected what a model's extend returned, got"):
        decoding.select(states, [0])


def test_states_of_another_model_are_refused():
    model = build()
    _, states = model.extend(tokens(2, 5))
    _, of_mamba = build(MambaConfig(layers=2, width=32, ssm_head_width=16, ssm_state=8)).extend(tokens(2, 5))
    with pytest.raises(ValueError, match="states: expected what this model's extend returned, got list"):
        model.extend(tokens(2, 1), of_mamba)
    with pytest.raises(ValueError, match="expected those of 2 rows and 2 layers of Mamba-2, got 0 layers"):
        build(MambaConfig(layers=2, width=32, ssm_head_width=16, ssm_state=8)).extend(tokens(2, 1), states)
    with pytest.raises(ValueError, match="expected those of 2 rows and 3 layers, got 2 and 2"):
        build(SMALL.model_copy(update={"layers": 3})).extend(tokens(2, 1), states)


def test_an_empty_row_waits_for_its_first_token(device):
    model = build(device=device)
    _, states = model.extend(tokens(2, 3, device=device), None, torch.tensor([0, 0]))
    _, states = model.extend(tokens(2, 3, device=device), states, torch.tensor([0, 3]))
    logits, states = model.extend(tokens(2, 4, device=device), states, torch.tensor([4, 0]))
    with torch.no_grad():
        torch.testing.assert_close(logits[:1], model(tokens(2, 4, device=device)[:1]), rtol=0, atol=1e-5)
    assert states.length.tolist() == [4, 3]
