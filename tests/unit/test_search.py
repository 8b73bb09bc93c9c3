"""Search: equal budgets, the same trials for the same seed, going on after a stop, divergence told as the worst."""

from __future__ import annotations

import sys

import pytest

from muonlab.errors import InputError, Interrupted
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.run import search as search_module
from muonlab.lab.run.search import load_search, run_search
from muonlab.lab.runs.store import load_sweep, write_plan
from muonlab.train.run_folder import RunFolder, write_json

TEXT = """
question = "Which learning rate?"
base = "tiny.toml"
seeds = [5, 6]
trials = 6

[arms.adamw]
optimizer.name = "adamw"
space.optimizer.lr = { low = 1e-4, high = 1e-1, log = true }

[arms.muon]
optimizer.name = "muon"
space.optimizer.lr = { low = 0.001, high = 0.1, log = true }
space.optimizer.weight_decay = [0.0, 0.1]
space.train.log_every = { low = 1, high = 3 }
"""
RATE = "space.optimizer.lr = { low = 1e-4, high = 1e-1, log = true }"
MACHINE = {"device": "cpu", "threads": 1, "bf16_fast": False}


def write(text=TEXT):
    with open("find.toml", "w") as file:
        file.write(text)
    return load_search("find.toml")


@pytest.fixture
def runs(monkeypatch, workdir):
    """Runs that take no time: the loss is the distance of lr from 0.01; above 0.05 they diverge. Counts what was run."""
    pytest.importorskip("optuna")
    done = []

    def instant(experiment, out, *, stop_after=None, **_):
        plan = plan_of(experiment, MACHINE)
        write_plan(out, plan)
        lr = {cell.name: cell.recipe.optimizer.lr for cell in experiment.cells}
        for run in plan["runs"]:
            folder = RunFolder(out / "runs" / run["folder"])
            if folder.path.exists():
                continue
            if instant.budget == 0:
                raise Interrupted(2, "stopped")
            instant.budget -= 1
            folder.path.mkdir()
            write_json(folder.run_file, {"id": run["id"], "seed": run["seed"], "recipe": {}})
            value = abs(lr[run["cell"]] - 0.01) if lr[run["cell"]] <= 0.05 else None
            status = "diverged" if value is None else "finished"
            ended = {"id": run["id"], "status": status, "rows": 0, "val_loss": value, "best_val_loss": value}
            write_json(folder.result_file, ended)
            done.append((run["cell"], run["seed"]))

    instant.budget = -1
    monkeypatch.setattr(search_module, "sweep", instant)
    return instant, done


def test_every_arm_has_the_same_budget_and_every_trial_is_a_run_of_a_sweep(runs, workdir):
    run_search(write(), workdir / "out")
    sweep = load_sweep(workdir / "out")
    for arm in ("adamw", "muon"):
        assert len([cell for cell in sweep.plan["cells"] if cell["arm"] == arm]) == 6
    assert len(sweep.runs) == 24
    assert {run.status for run in sweep.runs} == {"finished", "diverged"}
    assert sweep.plan["search"] == {"trials": 6, "together": 1, "search_seed": 0}
    assert sweep.plan["changes"] == []
    swept = [cell["swept"] for cell in sweep.plan["cells"] if cell["arm"] == "muon"]
    assert {point["optimizer.weight_decay"] for point in swept} == {0.0, 0.1}
    assert {point["train.log_every"] for point in swept} <= {1, 2, 3}
    assert all(0.001 <= point["optimizer.lr"] <= 0.1 for point in swept)


def test_a_search_finds_what_is_good(runs, workdir):
    """Thirty trials of one rate between 1e-4 and 1: far closer to the optimum than thirty even steps would be."""
    text = TEXT.replace("trials = 6", "trials = 30").split("[arms.muon]")[0].replace("high = 1e-1", "high = 1.0")
    run_search(write(text), workdir / "out")
    values = [run.result["val_loss"] for run in load_sweep(workdir / "out").runs]
    assert any(value is None for value in values), "divergence was met on the way"
    assert min(value for value in values if value is not None) < 0.001


def test_a_stopped_search_goes_on_as_if_it_had_not_stopped(runs, workdir):
    instant, done = runs
    run_search(write(), workdir / "whole")
    whole = load_sweep(workdir / "whole").plan
    done.clear()
    for budget in (3, 0, 7):
        instant.budget = budget
        with pytest.raises(Interrupted):
            run_search(write(), workdir / "parts")
    instant.budget = -1
    run_search(write(), workdir / "parts")
    assert load_sweep(workdir / "parts").plan == whole
    assert len(done) == len({*done}) == 24, "nothing was run twice"
    run_search(write(), workdir / "parts")
    assert len(done) == 24


def test_more_trials_go_on_from_those_that_are_there(runs, workdir):
    _, done = runs
    run_search(write(), workdir / "out")
    first = [cell["name"] for cell in load_sweep(workdir / "out").plan["cells"]]
    run_search(write(TEXT.replace("trials = 6", "trials = 8")), workdir / "out")
    assert [cell["name"] for cell in load_sweep(workdir / "out").plan["cells"]][: len(first)] == first
    assert len(done) == 2 * 2 * 8


def test_another_search_in_the_same_folder_is_refused(runs, workdir):
    run_search(write(), workdir / "out")
    with pytest.raises(InputError, match="its trials are not those of this search"):
        run_search(write("search_seed = 1\n" + TEXT), workdir / "out")


def test_a_diverged_trial_is_told_as_the_worst(runs, workdir, monkeypatch):
    import optuna

    told = []
    tell = optuna.Study.tell
    monkeypatch.setattr(optuna.Study, "tell", lambda self, trial, value: (told.append(value), tell(self, trial, value)))
    run_search(write(TEXT.replace("trials = 6", "trials = 20")), workdir / "out")
    assert len(told) == 40
    diverged = {run.cell for run in load_sweep(workdir / "out").runs if run.status == "diverged"}
    assert told.count(float("inf")) == len(diverged) > 0


def test_the_seeds_of_a_search_may_not_confirm_it(workdir):
    write()
    (workdir / "exp.toml").write_text('question = "?"\nbase = "tiny.toml"\nseeds = [6]\ntuned_by = "find.toml"\n[arms.muon]\n')
    with pytest.raises(InputError, match=r"seeds \[6\] tuned these settings \(find.toml\)"):
        load_experiment("exp.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low = 1e-4, high = 1e-1", "low = 1e-1, high = 1e-4", "adamw.space: optimizer.lr: expected low below high, got 0.1"),
        ("low = 1e-4, high = 1e-1", "low = 0.0, high = 1e-1", "expected low above 0 with log = true"),
        ("low = 1e-4, high = 1e-1", "low = 1e-4, hgh = 1e-1", "hgh: unknown key; did you mean 'high'"),
        ("low = 1e-4, high = 1e-1, log = true", "low = -1.0, high = 1e-1", "optimizer.lr"),
        ("[0.0, 0.1]", "0.1", r"optimizer.weight_decay: expected a list of values or \{ low, high, log \}, got 0.1"),
        ("[0.0, 0.1]", "[]", "optimizer.weight_decay: expected a list of values"),
        ("weight_decay", "weight_deacy", "weight_deacy: unknown key for muon; did you mean 'weight_decay'"),
        ("trials = 6", "trials = 0", "trials: expected greater than 0"),
        ("trials = 6", "trails = 6", "trails: unknown key; did you mean 'trials'"),
        ('[arms.muon]\n', '[arms.muon]\noptimizer.lr = 0.1\n', "arm 'muon' both sets and searches optimizer.lr"),
        (RATE, "", "arms.adamw: expected a space such as"),
        (RATE, "space = 3", "arms.adamw.space: expected a table of keys, got 3"),
        ("tiny.toml", "tny.toml", "base: tny.toml: no such file; did you mean 'tiny.toml'"),
    ],
)  # fmt: skip
def test_bad_searches_get_one_clear_message(workdir, old, new, message):
    with pytest.raises(InputError, match=message):
        write(TEXT.replace(old, new))


def test_without_optuna_the_extra_is_named(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'muonlab\[search\]'"):
        run_search(write(), workdir / "out")
    assert not (workdir / "out").exists()
