"""The benchmark of the step: it runs end to end on small sizes, counts right, and compares with what it says it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muonlab.optim.bench.measure import Bench, interleaved, median
from muonlab.optim.bench.report import BARS, Asked, choice, run, text, verdicts
from muonlab.optim.bench.rivals import BASE, FAST, FLOOR, Rival, kellerjordan, newton_schulz, ours, rivals
from muonlab.optim.bench.shapes import ON_CPU, ON_GPU, SETS, entries, matrices, standard_flops

ROOT = Path(__file__).parents[2]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (32, 32)])
def test_the_standard_forms_flops_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        newton_schulz(draw(*shape))
    assert counter.get_total_flops() == standard_flops(*shape)


def test_the_sets_have_the_sizes_of_their_models():
    assert entries(SETS["gpt2-small"]) == 12 * 12 * 768**2
    assert entries(SETS["gpt2-xl"]) == 48 * 12 * 1600**2  # 1.47 of its 1.56 billion; the rest are embeddings
    assert entries(SETS["llama-8b"]) == 2 * (2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    assert len(matrices(SETS["experts"])) == 128
    assert len(SETS["many-small"]) == 200
    assert {*ON_CPU, *ON_GPU, "smoke"} == set(SETS)
    assert {name for bars in BARS.values() for name, _ in bars} <= set(SETS)


def test_kellerjordans_step_is_what_his_page_says():
    """In float64 from its formulas, to the rounding of its bfloat16 products."""
    p = nn.Parameter(draw(96, 32))
    w, m = p.detach().double(), torch.zeros(96, 32, dtype=torch.float64)
    step = kellerjordan([p], lr=0.1)
    for t in range(3):
        p.grad = draw(96, 32, seed=t + 1)
        step()
        g = p.grad.double()
        m = 0.95 * m + 0.05 * g
        u = 0.05 * g + 0.95 * m
        x = u.mT / u.norm()
        for _ in range(5):
            r = x @ x.mT
            x = 3.4445 * x - 4.7750 * r @ x + 2.0315 * r @ r @ x
        w = w - 0.1 * 3**0.5 * x.mT
    assert (p.double() - w).norm() / (w - draw(96, 32).double()).norm() < 0.05


def test_a_bank_is_stepped_whole_by_ours_and_one_by_one_by_others():
    shapes = [(3, 32, 48), (16, 24)]
    bench = Bench(shapes, "cpu")
    assert [tuple(p.shape) for p in bench.singles] == [(32, 48)] * 3 + [(16, 24)]
    assert all(p.grad is not None for p in bench.singles)
    before = bench.banks[0].detach().clone()
    ours(bench.banks).step()
    assert not torch.equal(bench.banks[0], before)
    assert torch.equal(bench.banks[0][1], bench.singles[1])  # one memory


def test_rounds_are_interleaved_and_medians_are_medians():
    order = []
    rows = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "cpu", lambda: order.append("-"))
    assert order == ["-", "a", "-", "b"] * 3
    assert rows["a"]["ms"] >= 0
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_a_rival_that_fails_costs_itself_only_and_what_takes_gradients_away_is_given_them_back():
    def greedy(params):
        def step():
            for p in params:
                assert p.grad is not None
                p.grad = None

        return step

    everybody = [rivals()[0], Rival("broken", lambda p: 1 / 0), Rival("greedy", greedy)]
    rows, left_out = Bench(SETS["smoke"], "cpu").measure(everybody, 2)
    assert set(rows) == {BASE, "greedy"}
    assert left_out == {"broken": "ZeroDivisionError: division by zero"}


@pytest.mark.slow
def test_a_report_is_written_after_each_set_and_says_what_to_choose():
    seen = []
    asked = Asked(["smoke", "many-small"], "cpu", rounds=2, tiny=True)
    everybody = [r for r in rivals() if r.name in (BASE, FAST, FLOOR) or r.compiles]
    found = run(asked, everybody, lambda found: seen.append(list(found["sets"])))
    assert seen[:2] == [["smoke"], ["smoke", "many-small"]]
    assert json.loads(json.dumps(found)) == found
    rows = found["sets"]["smoke"]
    assert rows[BASE]["ratio"] == 1.0
    assert rows[FAST]["ratio"] == rows[FAST]["ms"] / rows[BASE]["ms"]
    assert rows[FLOOR]["elementwise_bytes"] == 24 * entries(SETS["smoke"])
    assert "Choose: opt = muonlab.optimizer" in text(found, everybody)
    assert "compiled" in "".join(found["left_out"])
    none = run(Asked(["smoke"], "cpu", 1, tiny=True, seconds=0.0), everybody, lambda found: None)
    assert none["left_out"]["smoke"] == "no time was left"


def test_the_simplest_of_equals_is_chosen():
    found = {"sets": {"s": {BASE: {"ratio": 1.0}, FAST: {"ratio": 0.5}, f"{FAST}, graph": {"ratio": 0.49}}}}
    assert choice(found, rivals()).startswith('Choose: opt = muonlab.optimizer(model, "muon")\n')
    found["sets"]["s"][f"{FAST}, graph"]["ratio"] = 0.3
    assert "CUDA graph" in choice(found, rivals())
    found["sets"]["s"][f"{FAST}, ignore"] = {"ratio": 0.1}  # it gives safety away: nobody is told to choose it
    assert "ignore" not in choice(found, rivals())
    found["sets"]["t"] = {}
    assert choice(found, rivals()).startswith("Nothing to choose from")


def test_bars_of_a_gpu_are_named():
    rows = {"standard, compiled": {"ms": 3.0, "times_as_fast": 1.0}, "fast": {"ms": 2.0, "times_as_fast": 1.5}}
    found = {"sets": {"llama-8b": {FAST: {"standard_share_of_peak": 0.6}}}, "orthogonalization": {"aspect 4, 8×1024×4096": rows}}
    lines = verdicts(found)
    assert "60% of the peak" in lines[1]
    assert "fast is 1.50 times as fast as the standard form, compiled (aim on a GPU 1.5)" in lines[2]


@pytest.mark.slow
def test_the_command_runs_from_end_to_end(tmp_path, muonlab):
    code, out, err = muonlab("bench", "--tiny", "--device", "cpu", "--out", str(tmp_path / "step.json"))
    assert code == 0, err
    assert "Choose: opt = muonlab." in out
    assert "smoke: muonlab fast, graph: RuntimeError: needs a CUDA device" in out
    kept = json.loads((tmp_path / "step.json").read_text())
    assert kept["sets"]["smoke"][FAST]["ms"] > 0
    code, out, _ = muonlab("bench", "--tiny", "--device", "cpu", "--rounds", "1", "--json")
    assert code == 0
    assert json.loads(out)["rounds"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sets", "gpt2-smal"], "--sets: unknown set 'gpt2-smal'"),
        (["--device", "gpu"], "--device: expected a device that torch can use here, got 'gpu'"),
        (["--device", "cuda:99"], "--device: expected a device that torch can use here, got 'cuda:99'"),
        (["--rounds", "0"], "--rounds: expected a number of at least 1, got 0"),
        (["--out", "nowhere/step.json"], "--out: expected a file in a folder that is there"),
    ],
)
def test_bad_input_is_one_message(words, message, muonlab):
    code, out, err = muonlab("bench", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) <= 3


@pytest.mark.slow
def test_ctrl_c_shows_what_was_measured(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, "-m", "muonlab", "bench", "--device", "cpu", "--sets", "smoke,tiny", "--rounds", "30"]
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not out.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, complaint = process.communicate()
    assert process.returncode == 130, complaint
    assert "smoke" in shown
    assert "Choose:" in shown


@pytest.mark.slow
def test_the_script_is_the_same_with_peers_and_variants(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, str(ROOT / "benchmarks/step.py"), "--tiny", "--device", "cpu", "--out", str(out)]
    shown = subprocess.run([*command, "--variants", "--only", "normuon"], capture_output=True, text=True, check=True).stdout
    assert "normuon" in shown
    assert set(json.loads(out.read_text())["sets"]["smoke"]) == {"muon", "normuon"}
