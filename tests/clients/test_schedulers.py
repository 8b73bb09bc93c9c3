"""torch's learning-rate schedulers: what they write reaches the step, and both state dicts together go on exactly."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

import muonlab
from tests.clients.tiny import Tiny, assert_same_weights, batches, train

METRICS = [3.0, 2.0, 2.0, 2.5, 2.4, 1.0]  # what ReduceLROnPlateau is told: no better from the third on
STEPS = len(METRICS)

SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda t, k=k: 1 / (1 + k + t) for k in range(len(o.param_groups))]),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(
        o, max_lr=[0.1, *[0.01] * (len(o.param_groups) - 1)], total_steps=STEPS + 1, base_momentum=0.6, max_momentum=0.9
    ),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, STEPS),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), schedulers.CosineAnnealingLR(o, STEPS)], milestones=[2]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.fixture(params=SCHEDULERS)
def build(request):
    return SCHEDULERS[request.param]


def advance(scheduler, t):
    scheduler.step(*[METRICS[t]] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else [])


def scheduled_training(model, optimizer, scheduler, steps):
    for t in steps:
        train(model, optimizer, [batches(STEPS)[t]])
        advance(scheduler, t)


def made(name, build, seed=0):
    model = Tiny(seed)
    optimizer = muonlab.optimizer(model, name, lr=0.05, weight_decay=0.1)
    return model, optimizer, build(optimizer)


def schedule_of_torchs_sgd(like, build):
    """What the scheduler writes into the groups of torch's own SGD with momentum: (lr, momentum) by step and group."""
    groups = [{"params": group["params"], "lr": group["lr"]} for group in like.param_groups]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.95)
    scheduler = build(optimizer)
    written = []
    for t in range(STEPS):
        written.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
        optimizer.step()  # there are no gradients: it does nothing but keep the order that torch asks for
        advance(scheduler, t)
    return written


def test_a_scheduled_training_is_one_whose_groups_are_set_by_hand(build):
    """The rate (and OneCycleLR's momentum) that torch's SGD gets from the same scheduler, put into the groups step by step."""
    model, by_hand = Tiny(), Tiny()
    ours, plain = (muonlab.optimizer(m, "normuon", lr=0.05, weight_decay=0.1) for m in (model, by_hand))
    written = schedule_of_torchs_sgd(muonlab.optimizer(Tiny(), "normuon", lr=0.05), build)
    scheduled_training(model, ours, build(ours), range(STEPS))
    for batch, values in zip(batches(STEPS), written, strict=True):
        for group, (lr, momentum) in zip(plain.param_groups, values, strict=True):
            group["lr"] = lr
            if "momentum" in group:
                group["momentum"] = momentum
        train(by_hand, plain, [batch])
    assert len({values[0] for values in written}) > 1
    assert_same_weights(model, by_hand)


def test_one_cycle_moves_the_momentum_of_adamw_as_it_does_in_torchs():
    weights = []
    for make in (
        lambda m: muonlab.optimizer(m, "adamw", betas=(0.9, 0.99)),
        lambda m: torch.optim.AdamW(m.parameters(), betas=(0.9, 0.99), weight_decay=0.0),
    ):
        model = Tiny().double()
        optimizer = make(model)
        scheduler = schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1, base_momentum=0.6, max_momentum=0.9)
        scheduled_training(model, optimizer, scheduler, range(STEPS))
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("name", muonlab.optimizers())
def test_saved_with_its_scheduler_training_goes_on_as_if_never_interrupted(name, build, tmp_path):
    whole, optimizer, scheduler = made(name, build)
    scheduled_training(whole, optimizer, scheduler, range(3))
    torch.save([whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()], tmp_path / "checkpoint.pt")
    scheduled_training(whole, optimizer, scheduler, range(3, STEPS))

    resumed = made(name, build, seed=5)
    for part, saved in zip(resumed, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(saved)
    scheduled_training(*resumed, range(3, STEPS))
    assert_same_weights(resumed[0], whole)
    assert [group["lr"] for group in resumed[1].param_groups] == [group["lr"] for group in optimizer.param_groups]
