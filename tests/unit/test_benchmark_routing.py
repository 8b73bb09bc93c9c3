"""The benchmark of routing: its arms are routed as its report says, and it comes to a report, also in a second go."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/routing.py"


@pytest.fixture(scope="module")
def routing():
    pytest.importorskip("transformers", reason="transformers: the extra 'clients'")
    found = importlib.util.spec_from_file_location("benchmark_of_routing", SCRIPT)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look there
    found.loader.exec_module(module)
    yield module
    del sys.modules[found.name]


def by_muon(routing, name, arm):
    """The parameters that the arm's optimizer gives to Muon, and which matrices each holds where it is none itself."""
    study = routing.Study(name, routing.PARTS[name], Path("runs"), data=None, steps=1)
    plan = study.optimizer(study.part.build(), arm, lr=0.02, aux_lr=0.004).plan
    return {row.name: row.matrices for row in plan if row.by == "muon"}


def test_the_arms_differ_in_what_is_asked(routing):
    old, new = (by_muon(routing, "moe", arm) for arm in ("old", "new"))
    assert {name.rpartition(".")[2] for name in new.keys() - old.keys()} == {"gate_up_proj", "down_proj"}
    assert old.items() < new.items()
    old, new = (by_muon(routing, "qkv", arm) for arm in ("old", "new"))
    changed = {name: matrices for name, matrices in new.items() if old[name] != matrices}
    assert all("query_key_value" in name and "4 groups of 3" in matrices for name, matrices in changed.items())
    assert len(changed) == 3
    assert old.keys() == new.keys()
    assert by_muon(routing, "conv", "old").keys() == {"classifier.weight"}
    assert by_muon(routing, "conv", "new").keys() == {"conv2.weight", "conv3.weight"}
    assert not by_muon(routing, "moe", "adamw")


@pytest.mark.slow
def test_it_comes_to_a_report_and_does_no_run_twice(routing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    routing.main(
        ["--out", "out", "--runs", "runs", "--only", "qkv", "--steps", "2", "--seeds", "2", "--first-seed", "1", "--cells", "1"]
    )
    assert capsys.readouterr().out.count(", seed ") == 2 * (2 + 2)
    figures = json.loads(Path("out/results.json").read_text())["qkv"]
    with open("out/qkv/finals.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [("old", "1"), ("old", "2"), ("new", "1"), ("new", "2")]
    losses = [float(row["val_loss"]) for row in rows if row["arm"] == "new"]
    assert figures["verdicts"]["val_loss"]["new"]["mean"] == pytest.approx(sum(losses) / 2)
    assert "`new` against `old`: **undecided** (difference" in Path("out/report.md").read_text()
    assert Path("out/qkv/report.md").exists()
    study = routing.Study("qkv", routing.PARTS["qkv"], Path("runs"), data=None, steps=2)  # without data: nothing can train
    assert study.train("new", 2, routing.START["new"])["val_loss"] == losses[1]


def test_digits_that_judge_neither_train_nor_tune(routing, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn: the extra 'clients'")
    digits = routing.Digits()
    train, tuning, judged = ({image.numpy().tobytes() for image in part[0]} for part in (digits.train, *digits.held.values()))
    assert (len(train), len(tuning), len(judged)) == (1000, 297, 500)
    assert not (train | tuning) & judged
    assert not train & tuning
    study = routing.Study("conv", routing.PARTS["conv"], tmp_path, digits, steps=2)
    assert {"val_loss", "error", "seconds"} <= study.train("new", 1, (0.04, 0.008)).keys()


def test_the_committed_report_is_what_its_figures_say(routing):
    folder = ROOT / "benchmarks/results/routing"
    figures = json.loads((folder / "results.json").read_text())
    assert figures.keys() == routing.PARTS.keys()
    assert (folder / "report.md").read_text() == routing.text_of(figures)
    for name, part in figures.items():
        for metric, said in part["verdicts"].items():
            assert json.loads(json.dumps(routing.judged(folder / name / "finals.csv", metric))) == said
