"""torch itself as a client: compiled models and their checkpoints, and the scaler of gradients."""

from __future__ import annotations

import copy

import pytest
import torch

import muonlab
from tests.clients.tiny import Tiny, assert_same_weights, batches, loss_of, train

# Traces and differentiates as torch.compile does by default, without minutes of C++ compilation.
BACKEND = "aot_eager"


def as_it_is(model):
    return model


def compiled(model):
    """A wrapper: torch puts `_orig_mod.` before every name in it."""
    return torch.compile(model, backend=BACKEND)


def compiled_in_place(model):
    model.compile(backend=BACKEND)
    return model


def compiled_by_block(model):
    """Each block of its own, as torch advises for deep models: `_orig_mod` then stands in the middle of names."""
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend=BACKEND)
    return model


WAYS = [compiled, compiled_in_place, compiled_by_block]


def matrices(model):
    return [(name, p) for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_of_a_compiled_model_has_the_models_own_names(way):
    own = muonlab.optimizer(Tiny(), "muon", roles={"blocks.0.weight": "vector"}).plan
    assert list(muonlab.optimizer(way(Tiny()), "muon", roles={"blocks.0.weight": "vector"}).plan) == list(own)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("back", [False, True], ids=["compiled-to-plain", "plain-to-compiled"])
def test_a_checkpoint_passes_between_the_compiled_and_the_plain_model(way, back, device):
    """Three steps before the change and three after make the training that was never changed."""
    before, after = (as_it_is, way) if back else (way, as_it_is)
    begun, ended, whole = (Tiny(seed).double().to(device) for seed in (0, 5, 0))
    model, rates = before(begun), {"lr": 0.05, "aux_lr": 0.01, "weight_decay": 0.1}
    optimizer = muonlab.optimizer(model, "normuon", **rates)
    train(model, optimizer, batches(6, device=device)[:3])
    for p, q in zip(ended.parameters(), begun.parameters(), strict=True):
        p.data.copy_(q.data)
    model = after(ended)
    loaded = muonlab.optimizer(model, "normuon")
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, loaded, batches(6, device=device)[3:])
    train(whole, muonlab.optimizer(whole, "normuon", **rates), batches(6, device=device))
    for p, q in zip(ended.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_drop_in_loads_what_a_compiled_model_saved_as_torchs_muon_does(device):
    wrapped, plain = compiled(Tiny().to(device)), Tiny(seed=5).to(device)
    for muon in (torch.optim.Muon, muonlab.Muon):
        optimizer, other = muon(matrices(wrapped)), muon(matrices(plain))
        train(wrapped, optimizer, batches(1, device=device))
        other.load_state_dict(optimizer.state_dict())
        for (_, p), (_, q) in zip(matrices(wrapped), matrices(plain), strict=True):
            assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


def scaled_step(scaler, model, optimizer, tokens):
    optimizer.zero_grad()
    scaler.scale(loss_of(model, tokens)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("name", muonlab.optimizers())
def test_a_scaled_step_is_the_plain_step_and_infinite_gradients_are_no_step(name, device):
    """Scales are powers of two: scaling up and down again loses no bit."""
    plain, scaled = Tiny().to(device), Tiny().to(device)
    first, second = (muonlab.optimizer(m, name, lr=0.05, weight_decay=0.1) for m in (plain, scaled))
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    train(plain, first, batches(3, device=device)[:2])
    for tokens in batches(3, device=device)[:2]:
        scaled_step(scaler, scaled, second, tokens)
    assert_same_weights(scaled, plain)

    hook = scaled.blocks[1].weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor(3, device=device), torch.inf))
    kept = copy.deepcopy(second.state_dict()["state"])
    scaled_step(scaler, scaled, second, batches(3, device=device)[2])
    hook.remove()
    assert scaler.get_scale() == 2.0**9
    assert_same_weights(scaled, plain)
    torch.testing.assert_close(second.state_dict()["state"], kept, rtol=0, atol=0)

    train(plain, first, batches(3, device=device)[2:])
    scaled_step(scaler, scaled, second, batches(3, device=device)[2])
    assert_same_weights(scaled, plain)


@pytest.mark.parametrize("name", muonlab.optimizers())
def test_float16_trains_with_a_scaler_that_finds_its_scale(name, device):
    """From a scale at which the first gradients overflow: those steps are left out, the scale is halved, and then it trains."""
    model = Tiny().to(device)
    optimizer = muonlab.optimizer(model, name, lr={"lion": 0.003, "sgd": 0.3}.get(name, 0.02))
    scaler, tokens = torch.amp.GradScaler(device, init_scale=2.0**24), batches(1, device=device)[0]
    start, losses = copy.deepcopy(model), []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = loss_of(model, tokens)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        if not losses:
            assert_same_weights(model, start)
        scaler.update()
        losses.append(loss.item())
    assert 1 <= scaler.get_scale() < 2.0**24
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.isfinite().all() for p in model.parameters())
