"""A step on a GPU: captured in a CUDA graph, without waiting for the device, and compiled. Run with --device cuda."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import ScalarSchedule
from muonlab.optim.variants import variants

WAITING = ["soap_muon"]  # its bases come from eigenvectors, for which the host waits
NAMES = [name for name in variants() if name not in WAITING]
SHAPES = [(64, 48), (48, 64), (64, 48), (32, 32), (5,)]


@pytest.fixture(autouse=True)
def _cuda(device):
    if torch.device(device).type != "cuda":
        pytest.skip("CUDA graphs and waiting for the device need a CUDA device: pytest -m cuda --device cuda")


def draw(shape, seed, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


class Weights(nn.Module):
    """Matrices of three shapes and a vector, without a forward pass."""

    def __init__(self, device):
        super().__init__()
        self.ps = nn.ParameterList(nn.Parameter(draw(shape, i, device)) for i, shape in enumerate(SHAPES))


def give_gradients(model, seed):
    """New numbers in the same memory, as a captured backward pass leaves them."""
    for i, p in enumerate(model.parameters()):
        grad = draw(p.shape, 1000 + 10 * seed + i, p.device)
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def twins(name, device, **options):
    """Two equal models, each with an optimizer of its own."""
    models = [Weights(device) for _ in range(2)]
    if name == "sgd":  # which has no state without, and a graph makes none later
        options["momentum"] = 0.9
    return models, [muonlab.optimizer(model, name, lr=0.02, weight_decay=0.1, **options) for model in models]


def warmed_up(model, optimizer, steps=3):
    """Ordinary steps on a side stream, as torch asks before a capture: state and the libraries' workspaces are there after."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for t in range(steps):
            give_gradients(model, t)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)


def captured(model, optimizer):
    """The graph of one step. A capture records and does not run: the weights are those after the warm-up."""
    warmed_up(model, optimizer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def assert_close(ours, theirs, rtol=1e-6):
    """Relative to the largest entry. The same kernels run in both: what differs is what is fused into a scalar's rounding."""
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol * q.abs().max().item())


@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("name", NAMES)
def test_replays_with_other_scalars_equal_ordinary_steps(name, nonfinite, device):
    """lr, weight decay and momentum by plain assignment between replays."""
    (replayed, ordinary), (one, two) = twins(name, device, nonfinite=nonfinite)
    warmed_up(ordinary, two)
    graph = captured(replayed, one)
    assert_close(replayed, ordinary)
    for t, (lr, decay, momentum) in enumerate(
        [(0.02, 0.1, 0.95), (0.05, 0.1, 0.95), (0.05, 0.4, 0.95), (0.003, 0.0, 0.8)], start=3
    ):
        for optimizer in (one, two):
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = lr, decay
                if "momentum" in group:
                    group["momentum"] = momentum
        for model in (replayed, ordinary):
            give_gradients(model, t)
        before = copy.deepcopy(replayed)
        graph.replay()
        two.step()
        assert_close(replayed, ordinary)
        assert any(not torch.equal(p, q) for p, q in zip(replayed.parameters(), before.parameters(), strict=True))
        assert all(float(group["lr"]) == lr for group in one.param_groups)
    assert one.skipped == two.skipped == 0


@pytest.mark.parametrize("name", NAMES)
def test_replays_follow_torchs_scheduler(name, device):
    (replayed, ordinary), (one, two) = twins(name, device)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)) for optimizer in (one, two)]
    warmed_up(ordinary, two)
    graph = captured(replayed, one)
    for t in range(3, 7):
        for model in (replayed, ordinary):
            give_gradients(model, t)
        graph.replay()
        two.step()
        for scheduler in schedulers:
            scheduler.step()
        assert_close(replayed, ordinary)
        assert one.param_groups[0]["lr"] == pytest.approx(0.02 / (t - 1))


@pytest.mark.parametrize(("name", "key"), [("muon", "momentum"), ("normuon", "momentum"), ("smoothed_muon", "smoothing")])
def test_replays_follow_a_scalar_schedule(name, key, device):
    (replayed, ordinary), (one, two) = twins(name, device)
    schedules = [ScalarSchedule(optimizer, key, [(0, 0.5), (4, 0.2)]) for optimizer in (one, two)]
    warmed_up(ordinary, two)
    graph = captured(replayed, one)
    for t in range(3, 7):
        for model in (replayed, ordinary):
            give_gradients(model, t)
        graph.replay()
        two.step()
        for schedule in schedules:
            schedule.step()
        assert_close(replayed, ordinary)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_in_a_replay_changes_nothing_and_is_counted(name, bad, device):
    (replayed, ordinary), (one, two) = twins(name, device, nonfinite="skip")
    warmed_up(ordinary, two)
    graph = captured(replayed, one)
    give_gradients(replayed, 3)
    replayed.ps[1].grad[2, 3] = bad
    weights = copy.deepcopy(list(replayed.parameters()))
    state = copy.deepcopy(one.state_dict()["state"])
    graph.replay()
    assert one.skipped == 1
    assert isinstance(one.skipped, int)
    assert all(torch.equal(p, q) for p, q in zip(replayed.parameters(), weights, strict=True))
    torch.testing.assert_close(one.state_dict()["state"], state, rtol=0, atol=0)
    for model in (replayed, ordinary):  # and the next one is a step again
        give_gradients(model, 4)
    graph.replay()
    two.step()
    assert_close(replayed, ordinary)
    assert one.skipped == 1


@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("multipliers", [None, {"ps.0": 0.5, "ps.2": 2.0}], ids=["plain", "lr_mul"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_waits_for_the_device(name, multipliers, nonfinite, device):
    model = Weights(device)
    options = {} if multipliers is None else {"lr_mul": multipliers}
    optimizer = muonlab.optimizer(model, name, lr=0.02, weight_decay=0.1, nonfinite=nonfinite, **options)
    warmed_up(model, optimizer, steps=2)
    give_gradients(model, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", WAITING)
def test_a_rule_that_waits_for_the_device_cannot_be_captured_and_says_what_waits(name, device):
    model = Weights(device)
    optimizer = muonlab.optimizer(model, name, lr=0.02)
    warmed_up(model, optimizer)
    with pytest.raises(RuntimeError, match=r"(?i)soap_muon|eigh|bas[ie]s"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch.cuda.synchronize()


def test_raise_can_be_neither_captured_nor_compiled(device):
    """It has to look at the gradients, and a graph cannot."""
    model = Weights(device)
    optimizer = muonlab.optimizer(model, "muon", lr=0.02, nonfinite="raise")
    warmed_up(model, optimizer)
    with pytest.raises(RuntimeError, match="raise"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="raise"):
        torch.compile(optimizer.step, fullgraph=True)()


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_is_one_graph_equals_the_plain_one_and_takes_other_rates(name, nonfinite, device):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Products in float32: inductor fuses what surrounds them, and bfloat16 would round that elsewhere.
    options = {} if name in ("adamw", "lion", "sgd") else {"orthogonalizer": "keller5(dtype='float32')"}
    (compiled, ordinary), (one, two) = twins(name, device, nonfinite=nonfinite, **options)
    for model, optimizer in ((compiled, one), (ordinary, two)):
        warmed_up(model, optimizer, steps=1)  # state is made outside the graph
    step = torch.compile(one.step, fullgraph=True)
    graphs = []
    for t, lr in enumerate([0.02, 0.02, 0.01, 0.005, 0.03], start=1):
        for model, optimizer in ((compiled, one), (ordinary, two)):
            give_gradients(model, t)
            for group in optimizer.param_groups:
                group["lr"] = lr
        step()
        two.step()
        assert_close(compiled, ordinary, rtol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1] > 0
