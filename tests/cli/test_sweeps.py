"""Sweeps and searches as a user types them: dry runs, full disks, limits on resources, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muonlab.lab.judge.audit import audit
from muonlab.lab.runs.store import load_sweep
from muonlab.train.run_folder import RunFolder

EXPERIMENT = """
question = "Which?"
base = "tiny.toml"
seeds = [1, 2]

[arms.adamw]
optimizer.name = "adamw"

[arms.muon]
optimizer.name = "muon"
grid.optimizer.lr = [0.01, 0.02]
"""
GRID = "grid.optimizer.lr = [0.01, 0.02]"
HERE = ("--workers", "1", "--device", "cpu")


@pytest.fixture
def experiment(workdir):
    (workdir / "exp.toml").write_text(EXPERIMENT)
    return workdir


@pytest.mark.slow
def test_a_dry_run_counts_measures_and_writes_nothing(experiment, muonlab):
    before = sorted(experiment.rglob("*"))
    code, out, err = muonlab("sweep", "exp.toml", *HERE, "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["runs"], found["found"], found["workers"]) == (6, 0, 1)
    assert found["tokens"] == 6 * 12 * 4 * 32
    assert found["shapes"] == 2, "learning rates cost the same"
    assert found["seconds"] > 0
    assert found["flops"] > 6 * found["tokens"] * 1000
    assert sorted(experiment.rglob("*")) == before
    assert "measuring 2 kinds of recipes" in err


@pytest.mark.slow
def test_a_dry_run_of_half_a_sweep_counts_what_is_left(experiment, muonlab, monkeypatch):
    from muonlab.lab.plan import probe

    monkeypatch.setattr(probe, "_measure", lambda recipes, machine, count: dict.fromkeys(recipes, probe.Pace(1.0, 0.5, 0.25)))
    (experiment / "exp.toml").write_text(EXPERIMENT.replace("grid.optimizer.lr = [0.01, 0.02]", ""))
    assert muonlab("sweep", "exp.toml", *HERE)[0] == 0
    code, out, _ = muonlab("sweep", "exp.toml", *HERE, "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "all 4 runs are done"
    (next(Path("runs/exp/runs").glob("muon-seed1-*")) / "result.json").unlink()
    run = next(Path("runs/exp/runs").glob("muon-seed2-*"))
    (run / "result.json").unlink()
    RunFolder(run).keep_rows(4)
    found = json.loads(muonlab("sweep", "exp.toml", *HERE, "--dry-run", "--json")[1])
    assert (found["runs"], found["found"]) == (4, 2)
    assert found["tokens"] == (12 - 4) * 4 * 32, "one is at its end, the other after step 4"
    assert found["seconds"] == (1 + 0 + 0) + (1 + 8 * 0.5 + 2 * 0.25)
    assert [cell["to_do"] for cell in found["cells"]] == [0, 2]


@pytest.mark.slow
def test_a_search_is_a_sweep_whose_report_names_the_best(experiment, muonlab):
    pytest.importorskip("optuna")
    (experiment / "find.toml").write_text(
        'question = "Which rate?"\nbase = "tiny.toml"\nseeds = [3]\ntrials = 2\ntogether = 2\nset.train.steps = 4\n'
        "[arms.muon]\noptimizer.name = 'muon'\nspace.optimizer.lr = { low = 1e-3, high = 1e-1, log = true }\n"
    )
    code, out, err = muonlab("search", "find.toml", *HERE, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert len(figures["runs"]) == 2
    assert {run["status"] for run in figures["runs"]} == {"finished"}
    assert list(figures["best"]) == ["muon"]
    assert "[2/2]" in err
    code, again, err = muonlab("search", "find.toml", *HERE, "--json")
    assert (code, err) == (0, ""), "nothing is left to do"
    assert json.loads(again)["runs"] == figures["runs"]
    assert muonlab("report", "runs/find")[0] == 0


@pytest.mark.slow
def test_a_full_disk_fails_the_run_and_loses_nothing(experiment):
    """A limit on the size of files stands in for a full disk: checkpoints cannot be written, small files can."""
    (experiment / "exp.toml").write_text(
        EXPERIMENT.replace("seeds = [1, 2]", "seeds = [1]").replace("grid.optimizer.lr = [0.01, 0.02]", "")
    )
    command = [sys.executable, "-m", "muonlab", "sweep", "exp.toml", *HERE]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]  # kilobytes
    full = subprocess.run(limited, capture_output=True, text=True)
    assert full.returncode == 1, full.stderr
    assert "File too large" in full.stderr
    assert "Traceback" not in full.stderr
    said = audit(Path("runs/exp"), load_sweep("runs/exp")).sentences()
    assert said[0] == "2 runs expected, 2 found: 2 unfinished."
    assert "Failed: adamw, seed 1: adamw, seed 1:" in said[1]
    mended = subprocess.run(command, capture_output=True, text=True)
    assert mended.returncode == 0, mended.stderr
    assert audit(Path("runs/exp"), load_sweep("runs/exp")).sentences() == ["2 runs expected, 2 found: 2 finished."]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (EXPERIMENT.replace("[arms.muon]", "[arm.muon]"), (), "exp.toml: arm: unknown key; did you mean 'arms'?"),
        (EXPERIMENT.replace("grid.", "gird."), (), "arm 'muon': gird: unknown key; did you mean 'grid'?"),
        (EXPERIMENT.replace(GRID, "zip.optimizer.lr = [1]\nzip.train.steps = [1, 2]"), (), "advance together"),
        (EXPERIMENT.replace('base = "tiny.toml"\n', ""), (), "base: missing; this key is required"),
        (EXPERIMENT.replace("tiny.toml", "tiny"), (), "base: tiny: no such file; did you mean 'tiny.toml'?"),
        (EXPERIMENT.replace("[1, 2]", '"three"'), (), "seeds: expected"),
        (EXPERIMENT.replace("[0.01, 0.02]", "[1e300]"), (), "optimizer.lr: expected less than or equal to 1000000"),
        (EXPERIMENT.replace("seeds = [1, 2]", "seeds = 1000000000000"), (), "seeds: expected at most"),
        (EXPERIMENT, ("--workers", "0"), "--workers: expected a number of at least 1, got 0"),
        (EXPERIMENT, ("--set", "optimzer.lr=1"), "optimzer: unknown key; did you mean 'optimizer'?"),
        (EXPERIMENT, ("--dry-run", "--device", "gpu"), "--device: expected cpu, cuda or cuda:N, got 'gpu'"),
        (EXPERIMENT, ("--dryrun",), "--dryrun"),
    ],
)  # fmt: skip
def test_mistakes_get_one_clear_message_and_leave_nothing(workdir, muonlab, text, arguments, message):
    (workdir / "exp.toml").write_text(text)
    before = sorted(workdir.rglob("*"))
    code, out, err = muonlab("sweep", "exp.toml", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("command", [("sweep", "exp.toml"), ("sweep", "exp.toml", "--dry-run")])
def test_a_file_where_the_folder_should_be(experiment, muonlab, command):
    (experiment / "taken").write_text("mine")
    code, _, err = muonlab(*command, *HERE, "--out", "taken")
    assert code == 2
    assert "taken: expected a folder, got a file" in err
    assert (experiment / "taken").read_text() == "mine"
