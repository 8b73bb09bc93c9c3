"""accelerate: prepare, save_state, load_state, accumulation of gradients and clipping."""

from __future__ import annotations

import pytest
import torch

import muonlab
from tests.clients.tiny import Tiny, assert_same_weights, batches, loss_of

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: it is in the extra 'clients'")


@pytest.fixture(autouse=True)
def _no_state_left():
    """accelerate keeps the process's settings in a global: each test starts and ends without."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(name, device="cpu", seed=0, **settings):
    """(accelerator, model, optimizer, scheduler), all as `prepare` returns them."""
    accelerator = accelerate.Accelerator(cpu=device == "cpu", **settings)
    model = Tiny(seed)
    optimizer = muonlab.optimizer(model, name, lr=0.05, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def go_on(accelerator, model, optimizer, scheduler, tokens):
    for batch in tokens:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", muonlab.optimizers())
def test_after_load_state_training_goes_on_as_if_never_interrupted(name, precision, tmp_path, device):
    whole = prepared(name, device, mixed_precision=precision)
    go_on(*whole, batches(6, device=device)[:3])
    whole[0].save_state(tmp_path)
    go_on(*whole, batches(6, device=device)[3:])
    resumed = prepared(name, device, seed=5, mixed_precision=precision)
    resumed[0].load_state(tmp_path)
    go_on(*resumed, batches(6, device=device)[3:])
    assert_same_weights(resumed[1], whole[1])


def test_load_state_takes_back_what_was_trained_since(tmp_path, device):
    """Into the same objects: steps after the save leave no trace in weights, momentum or rate."""
    live = prepared("normuon", device)
    go_on(*live, batches(6, device=device)[:3])
    live[0].save_state(tmp_path)
    go_on(*live, batches(6, device=device)[3:])
    first = [p.detach().clone() for p in live[1].parameters()]
    live[0].load_state(tmp_path)
    go_on(*live, batches(6, device=device)[3:])
    assert all(torch.equal(p, q) for p, q in zip(first, live[1].parameters(), strict=True))


def test_accumulated_gradients_make_the_step_of_the_whole_batch(device):
    parts = batches(4, device=device)
    weights = []
    for count, tokens in ((2, parts), (1, [torch.cat(parts[:2]), torch.cat(parts[2:])])):
        run = prepared("muon", device, gradient_accumulation_steps=count)
        run[1].double()  # so that the order of additions makes no difference to speak of
        go_on(*run, tokens)
        weights.append(run[1].state_dict())
    torch.testing.assert_close(*weights)
