"""The step as one graph, where no GPU is needed: compiled, and with scalars and flag as tensors on the CPU."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import muonlab
from muonlab.optim import MatrixSpec, Muon, Optimizer, ScalarSchedule, graph, precision
from muonlab.optim.live import Live, LiveGroup
from muonlab.optim.variants import variant, variants

WAITING = ["soap_muon"]
NAMES = [name for name in variants() if name not in WAITING]
SHAPES = [(64, 48), (48, 64), (64, 48), (32, 32), (5,)]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Weights(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.ps = nn.ParameterList(nn.Parameter(draw(shape, i).to(dtype)) for i, shape in enumerate(SHAPES))


def give(model, seed, bad=None):
    for i, p in enumerate(model.parameters()):
        p.grad = draw(p.shape, 1000 + 10 * seed + i).to(p.dtype)
    if bad is not None:
        model.ps[1].grad[2, 3] = bad


def twins(name, dtype=torch.float32, **options):
    models = [Weights(dtype) for _ in range(2)]
    if name == "sgd":
        options["momentum"] = 0.9
    return models, [muonlab.optimizer(model, name, lr=0.02, weight_decay=0.1, **options) for model in models]


def compiled(optimizer):
    return torch.compile(optimizer.step, fullgraph=True, backend="eager")


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@torch.no_grad()
def live_step(optimizer):
    """The step that a GPU takes, on this device."""
    graph.prepare(optimizer)
    graph.step(optimizer)


def assert_same(one, two, rtol=0.0, atol=2e-6):
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def states(optimizer):
    return copy.deepcopy(optimizer.state_dict()["state"])


# -- compiled -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_is_one_graph_and_takes_other_scalars_without_another(name):
    """lr, weight decay, momentum and betas; also where the step is the first one, and where one is left out."""
    (model, ordinary), (one, two) = twins(name, lr_mul={"ps.0": 0.5})
    step = compiled(one)
    for t, (lr, decay, momentum) in enumerate([(0.02, 0.1, 0.95), (0.01, 0.1, 0.95), (0.03, 0.3, 0.9), (0.005, 0.0, 0.5)]):
        for m, optimizer in ((model, one), (ordinary, two)):
            give(m, t, bad=float("nan") if t == 2 else None)
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = lr, decay
                if "momentum" in group:
                    group["momentum"] = momentum
                if "betas" in group:
                    group["betas"] = (momentum - 0.1, 0.97)
        step()
        two.step()
        assert_same(model, ordinary)
        assert graphs() == 1
    assert one.skipped == two.skipped == 1
    assert all(group["lr"] == 0.005 for group in one.param_groups)  # a number still


@pytest.mark.filterwarnings("error::UserWarning")  # as of a scheduler that thinks that no step was taken
@pytest.mark.parametrize("compiled_first", [False, True])
def test_schedulers_reach_a_compiled_step(compiled_first):
    (model, ordinary), (one, two) = twins("smoothed_muon")
    step = compiled(one) if compiled_first else None
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)) for o in (one, two)]
    schedules = [ScalarSchedule(o, "smoothing", [(0, 0.5), (4, 0.2)]) for o in (one, two)]
    step = step or compiled(one)
    for t in range(4):
        for m in (model, ordinary):
            give(m, t)
        step()
        two.step()
        for scheduler in schedulers + schedules:
            scheduler.step()
        assert_same(model, ordinary)
    assert graphs() == 1


@pytest.mark.slow
def test_inductor_compiles_the_step():
    (model, ordinary), (one, two) = twins("muon", orthogonalizer="keller5(dtype='float32')")
    step = torch.compile(one.step, fullgraph=True)
    for t in range(3):
        for m in (model, ordinary):
            give(m, t)
        step()
        two.step()
        assert_same(model, ordinary, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
def test_with_its_first_gradient_a_parameter_gets_another_graph(nonfinite):
    (model, ordinary), (one, two) = twins("normuon", nonfinite=nonfinite)
    step = compiled(one)
    for t in range(3):
        for m in (model, ordinary):
            give(m, t)
            if t == 0:
                m.ps[2].grad = None
        step()
        two.step()
        assert_same(model, ordinary)
    assert graphs() == 2


@pytest.mark.slow
def test_a_loaded_state_reaches_a_compiled_step():
    (model, ordinary), (one, two) = twins("muon")
    step = compiled(one)
    for t in range(3):
        give(model, t)
        give(ordinary, t + 7)
        step()
        two.step()
    one.load_state_dict(copy.deepcopy(two.state_dict()))
    model.load_state_dict(ordinary.state_dict())
    for t in range(2):
        for m in (model, ordinary):
            give(m, t)
        step()
        two.step()
        assert_same(model, ordinary)


def test_what_filling_cannot_follow_is_compiled_anew():
    """nesterov of the drop-in chooses other code; a list of multipliers in place of a number other shapes."""
    ours, theirs = ([nn.Parameter(draw((20, 30), i)) for i in range(2)] for _ in range(2))
    one, two = Muon(ours, lr=0.1), Muon(theirs, lr=0.1)
    step = compiled(one)
    for t in range(6):
        for ps in (ours, theirs):
            for i, p in enumerate(ps):
                p.grad = draw((20, 30), 10 * t + i)
        for optimizer in (one, two):
            group = optimizer.param_groups[0]
            if t == 2:
                group["nesterov"] = False
            if t == 3:
                group["lr_mul"] = [0.5, 2.0]
            if t == 4:
                group["lr_mul"] = [0.25, 3.0]
            if t == 5:
                group["lr_mul"] = 0.75
        step()
        two.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-6)
    assert graphs() == 3  # from list to list, and to one number, the same graph serves


def test_what_cannot_be_in_a_graph_says_why():
    (model, _), (one, two) = twins("muon", nonfinite="raise")
    give(model, 0)
    with pytest.raises(RuntimeError, match="nonfinite='raise' has to look"):
        compiled(one)()
    for name, options in (("soap_muon", {}), ("muon", {"orthogonalizer": "svd"}), ("muown", {"orthogonalizer": "exact"})):
        (model, _), (one, two) = twins(name, **options)
        give(model, 0)
        with pytest.raises(RuntimeError, match=r"cannot be in a graph: (soap_muon finds its bases|a singular value)"):
            compiled(one)()
        before = copy.deepcopy(model)
        one.step()  # and the plain step works
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="take an ordinary step first"):
        graph.prepare_capture(two)


# -- the step that waits for nothing ------------------------------------------------------------------------------------

OPTIONS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "exact": {"dtype": torch.bfloat16, "exact_bf16": True},
    "multipliers": {"lr_mul": {"ps.0": 0.5, "ps.4": 2.0}, "wd_mul": {"ps.1": 0.0}},
    "numbers": {"lr_mul": {"*": 0.5}},
    "sphere": {"constraint": "sphere"},
    "unit": {"constraint": "unit_norm", "project_every": 2, "specs": {"*": MatrixSpec(norm_axis="input")}},
    "geodesic": {"constraint": "geodesic", "specs": {"*": MatrixSpec(norm_axis="input")}},
    "rounded": {"momentum_dtype": "bfloat16"},
    "heavy": {"momentum_form": "heavy_ball"},
    "plain": {"nesterov": False},
    **{decay: {"decay": decay} for decay in ("cautious", "update", "both", "squared", "cautious_squared", "coupled")},
}
CASES = [(name, {}) for name in NAMES] + [("adamw", OPTIONS["exact"]), ("adamw", OPTIONS["multipliers"])]
CASES += [("muon", options) for options in OPTIONS.values()]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_it_equals_the_step_on_the_hosts_word_and_leaves_out_what_that_does(name, options):
    """Also the very first step, and with every bit of weights and state as it was."""
    (model, ordinary), (one, two) = twins(name, **options)
    for t in range(6):
        bad = {0: float("nan"), 3: float("inf")}.get(t)
        for m, optimizer in ((model, one), (ordinary, two)):
            give(m, t, bad)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (1 + t)
        weights, state = [p.detach().clone() for p in model.parameters()], states(one)
        live_step(one)
        two.step()
        if bad is not None:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
            if t:
                torch.testing.assert_close(states(one), state, rtol=0, atol=0)
        low = options.get("dtype") == torch.bfloat16
        assert_same(model, ordinary, rtol=2**-7 if low else 0.0, atol=1e-3 if low else 3e-6)
    assert one.skipped == two.skipped == 2
    one.skipped = 0
    assert one.skipped == 0


def test_a_closure_and_a_count_that_survives():
    (model, _), (one, _) = twins("muon")
    give(model, 0, bad=float("nan"))
    live_step(one)
    again = pickle.loads(pickle.dumps(one))
    assert one.skipped == again.skipped == copy.deepcopy(one).skipped == 1
    assert all(isinstance(group, LiveGroup) for group in again.param_groups)


def test_a_gradient_is_never_changed():
    (model, _), (one, _) = twins("muon")
    give(model, 0, bad=float("nan"))
    grads = [p.grad.clone() for p in model.parameters()]
    live_step(one)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)


# -- live scalars ---------------------------------------------------------------------------------------------------------


def live(group):
    made = Live(group, ["lr", "betas", "lr_mul", "name", "eps"], ["nesterov"], torch.device("cpu"))
    group.mirrors.append(made)
    return made


def test_every_way_to_write_to_a_group_is_followed():
    group = LiveGroup(lr=0.1, betas=(0.9, 0.95), lr_mul=2.0, name="x", eps=1e-8, nesterov=True)
    mirror = live(group)
    group["lr"] = 0.2
    assert mirror.read(None)["lr"] == 0.2
    group.update(lr=0.3, betas=[0.5, 0.6])
    group |= {"eps": 1e-6}
    group.setdefault("lr", 7.0)
    group.setdefault("initial_lr", 0.3)
    found = mirror.read(None)
    assert [found["lr"], *found["betas"], found["eps"], found["lr_mul"]] == [0.3, 0.5, 0.6, 1e-6, 2.0]
    assert found["name"] == "x"
    assert not mirror.stale
    still = mirror.read(torch.tensor(False))
    assert [still["lr"], *still["betas"], still["eps"]] == [0.0, 1.0, 1.0, 1e-6]
    for key, value in (("nesterov", False), ("name", "y"), ("betas", 0.9), ("lr_mul", [1.0, 2.0]), ("lr", torch.tensor(1.0))):
        group = LiveGroup(lr=0.1, betas=(0.9, 0.95), lr_mul=2.0, name="x", eps=1e-8, nesterov=True)
        mirror = live(group)
        group[key] = value
        assert mirror.stale, key


def test_a_group_is_copied_and_pickled_as_a_dict():
    group = LiveGroup(lr=0.1)
    group.mirrors.append(object())
    for other in (copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group)), group.copy()):
        assert type(other) is dict
        assert other == {"lr": 0.1}


def test_a_tensor_of_the_users_own_is_read_where_it_is():
    (model, ordinary), (_, two) = twins("muon")
    lr = torch.tensor(0.02)
    one = muonlab.optimizer(model, "muon", lr=lr, aux_lr=3e-3, weight_decay=0.1)
    step = compiled(one)
    for t in range(3):
        for m in (model, ordinary):
            give(m, t, bad=float("nan") if t == 1 else None)
        lr.fill_(0.02 / (1 + t))
        two.param_groups[0]["lr"] = 0.02 / (1 + t)
        step()
        two.step()
        assert_same(model, ordinary)
    assert graphs() == 1


def test_a_group_that_somebody_put_in_place_is_followed_too():
    (model, ordinary), (one, two) = twins("muon")
    give(model, 0)
    one.param_groups[0] = dict(one.param_groups[0])
    live_step(one)
    one.param_groups[0]["lr"] = 0.5
    give(ordinary, 0)
    two.step()
    two.param_groups[0]["lr"] = 0.5
    for m in (model, ordinary):
        give(m, 1)
    live_step(one)
    two.step()
    assert_same(model, ordinary)


def test_rules_of_ones_own_find_their_scalars_live():
    class Signed:
        matrices = False

        def scalars(self):
            return {"reach": 1.0}

        def init(self, like):
            return {}

        def __call__(self, step):
            step.subtract(step.grads.sign(), step.lr * step.scalars["reach"])

        def describe(self):
            return "signed"

        def lr_factor(self, shape):
            return 1.0

    ps = [nn.Parameter(draw((3, 4), i)) for i in range(2)]
    before = [p.detach().clone() for p in ps]
    optimizer = Optimizer(ps, Signed(), lr=0.1)
    step = compiled(optimizer)
    for reach in (1.0, 2.0):
        optimizer.param_groups[0]["reach"] = reach
        for p in ps:
            p.grad = torch.ones_like(p)
        step()
    for p, q in zip(ps, before, strict=True):
        torch.testing.assert_close(p.detach(), q - 0.3)
    assert graphs() == 1
    assert variant("muon").rule().waits == ""


# -- no waiting -----------------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Which operations give the host a number, or carry a tensor from one device to another."""

    def __init__(self):
        super().__init__()
        self.waits, self.seen = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen += 1
        devices = {t.device for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if len(devices) > 1 or "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            self.waits.append(str(func))
        return out


def without_data(name, **options):
    """On the device "meta", which knows shapes alone: whoever asks it for a number fails, and it is no CPU."""
    precision.pin("meta", True)
    dtype = torch.bfloat16 if options.get("exact_bf16") else torch.float32
    kind = {"device": "meta", "dtype": dtype}
    net = nn.Sequential(nn.Linear(96, 80, **kind), nn.Linear(80, 96, **kind), nn.LayerNorm(96, **kind))
    optimizer = muonlab.optimizer(net, name, lr=0.02, weight_decay=0.1, **options)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    return optimizer


WITHOUT_DATA = [(name, {}) for name in NAMES]
WITHOUT_DATA += [(name, {"lr_mul": {"0.weight": 0.5}}) for name in ("muon", "adamw", "muown")]
WITHOUT_DATA += [("muon", {"orthogonalizer": o}) for o in ("cayley", "polar_express", "keller5(dtype='float16')")]
WITHOUT_DATA += [("muon", OPTIONS["sphere"]), ("muon", OPTIONS["rounded"]), ("muon", {"exact_bf16": True})]
UNIT = {"constraint": "unit_norm", "specs": {"*weight": MatrixSpec(norm_axis="input")}}
WITHOUT_DATA += [("muon", UNIT), ("muon", {**UNIT, "constraint": "geodesic"})]


@pytest.mark.parametrize("nonfinite", ["skip", "ignore"])
@pytest.mark.parametrize(("name", "options"), WITHOUT_DATA, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_no_step_in_a_graph_asks_its_device_for_anything(name, options, nonfinite):
    optimizer = without_data(name, nonfinite=nonfinite, **options)
    with torch.no_grad():
        graph.prepare(optimizer)
        graph.prepare_capture(optimizer)  # all that it needs is there now
        with Watch() as watch:
            graph.step(optimizer)
    assert watch.seen > 10
    assert watch.waits == []


@pytest.mark.parametrize("name", NAMES)
def test_no_plain_step_that_ignores_asks_its_device_for_anything(name):
    optimizer = without_data(name, nonfinite="ignore", lr_mul={"0.weight": 0.5})
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with Watch() as watch:
        optimizer.step()
    assert watch.seen > 10
    assert watch.waits == []


def test_a_compiled_step_takes_a_large_finite_gradient():
    """The sum of its squares is infinite, and nothing else."""
    (model, ordinary), (one, two) = twins("muon")
    step = compiled(one)
    for m in (model, ordinary):
        give(m, 0)
        m.ps[0].grad.mul_(1e25)
    step()
    two.step()
    assert one.skipped == two.skipped == 0
    assert_same(model, ordinary)


@pytest.mark.parametrize("name", ["adamw", "adamuon"])
def test_without_eps_a_step_that_is_not_taken_leaves_numbers(name):
    (model, _), _ = twins("muon")
    options = {"eps": 0.0}
    optimizer = Optimizer([model.ps[0]], variant(name).rule(**options), lr=0.1)
    before = model.ps[0].detach().clone()
    give(model, 0)
    model.ps[0].grad[0, 0] = float("inf")
    live_step(optimizer)
    assert torch.equal(model.ps[0], before)


def test_a_group_that_is_replaced_later_is_followed():
    (model, ordinary), (one, two) = twins("muon")
    for t in range(4):
        for m in (model, ordinary):
            give(m, t)
        for optimizer in (one, two):
            if t == 2:
                optimizer.param_groups[0] = optimizer.param_groups[0] | {"lr": 0.5}
            if t == 3:
                optimizer.param_groups[0]["lr"] = 0.9
        live_step(one)
        two.step()
        assert_same(model, ordinary)


def test_a_capture_needs_the_state_as_it_is():
    (model, _), (one, _) = twins("muon")
    give(model, 0)
    live_step(one)
    graph.prepare_capture(one)
    p = model.ps[0]
    one.state[p]["momentum_buffer"] = one.state[p]["momentum_buffer"].clone()
    with pytest.raises(RuntimeError, match="take an ordinary step first"):
        graph.prepare_capture(one)
