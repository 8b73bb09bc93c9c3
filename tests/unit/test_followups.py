"""refine and head_to_head: what they make of a first experiment's result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.plan.config import Refine
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.followups import _finer
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.runs.store import write_plan
from muonlab.lab.show.report import write_report
from muonlab.train.run_folder import RunFolder, write_json

MACHINE = {"device": "cpu", "threads": 1, "bf16_fast": False}
FIRST = (
    'question = "?"\nbase = "../tiny.toml"\nseeds = [0, 1]\nset.train.batch = 2\n'
    '[arms.adamw]\noptimizer.name = "adamw"\n[arms.muon]\noptimizer.name = "muon"\noptimizer.momentum = 0.9\n'
    "grid.optimizer.lr = [0.01, 0.02, 0.04]\n"
)
REFINE = 'question = "closer?"\nseeds = 3\nrefine = { of = "first.toml", points = 5 }\n'
MEET = 'question = "which?"\nseeds = 2\nhead_to_head = { of = "first.toml", steps = 40 }\n'
LOSSES = {"adamw": 2.3, "muon lr=0.01": 2.2, "muon lr=0.02": 2.0, "muon lr=0.04": 2.1}

DETAILS = {
    "provenance": {
        "started": "2026-01-02T03:04:05+00:00",
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"muonlab": "0"},
        "cpu": "a processor",
        "gpu": None,
        "cores": 2,
    },
    "machine": {"device": "cpu", "precision": "float32", "threads": 1, "bf16_fast": False},
    "data": {"source": "text", "sha256": "ab" * 32, "split": "tail"},
    "model": {"parameters": 1000, "flops_per_token": 6e6},
}


@pytest.fixture
def folder(workdir):
    (workdir / "experiments").mkdir()
    (workdir / "experiments/first.toml").write_text(FIRST)
    return workdir / "experiments"


def ran(losses, name="first", out=None):
    """Writes the runs of experiments/first.toml: cell -> final loss, None for a diverged run, left out for a missing one."""
    out = Path(out or f"runs/{name}")
    plan = plan_of(load_experiment(f"experiments/{name}.toml"), MACHINE)
    write_plan(out, plan)
    for run in plan["runs"]:
        if run["cell"] not in losses:
            continue
        loss = losses[run["cell"]]
        target = RunFolder(out / "runs" / run["folder"])
        target.path.mkdir()
        write_json(target.run_file, {"id": run["id"], "recipe": {}, "seed": run["seed"], **DETAILS})
        target.append_row({"step": 12, "tokens": 12, "seconds": 1.0, "val_loss": loss})
        ended = {"id": run["id"], "status": "finished" if loss else "diverged", "rows": 1, "val_loss": loss, "best_val_loss": loss}
        write_json(target.result_file, {**ended, "steps": 12, "tokens": 12, "seconds": 1.0})
    return out


def load(folder, text, name="next.toml"):
    (folder / name).write_text(text)
    return load_experiment(f"experiments/{name}")


def test_refine_puts_the_winner_in_the_middle_of_a_finer_grid(folder):
    ran(LOSSES)
    found = load(folder, REFINE)
    assert [cell.recipe.optimizer.lr for cell in found.cells] == [0.01, 0.01414, 0.02, 0.02828, 0.04], "by factors, as the first"
    assert {cell.recipe.optimizer.model_extra["momentum"] for cell in found.cells} == {0.9}, "the arm's own settings stay"
    assert {cell.recipe.train.batch for cell in found.cells} == {2}
    plan = plan_of(found, MACHINE)
    assert plan["refine"]["winners"] == {"muon": {"cell": "muon lr=0.02", "mean": 2.0, "swept": {"optimizer.lr": 0.02}}}
    assert plan["refine"]["from"] == "runs/first"
    assert plan["seeds"] == [2, 3, 4], "those of the first are not used again"


def test_head_to_head_takes_the_best_of_each_of_the_two_best_arms(folder):
    ran(LOSSES)
    found = load(folder, MEET)
    assert [cell.name for cell in found.cells] == ["muon lr=0.02", "adamw"]
    assert found.baseline == "adamw"
    assert {cell.recipe.train.steps for cell in found.cells} == {40}
    assert found.cells[0].recipe.optimizer.model_extra["momentum"] == 0.9
    assert found.config.seeds == (2, 3)


def test_head_to_head_of_one_arm_takes_its_two_best_cells(folder):
    (folder / "first.toml").write_text(FIRST.replace('[arms.adamw]\noptimizer.name = "adamw"\n', ""))
    ran({cell: loss for cell, loss in LOSSES.items() if cell != "adamw"})
    assert [cell.recipe.optimizer.lr for cell in load(folder, MEET).cells] == [0.02, 0.04]
    named = MEET.replace("steps = 40", 'steps = 40, cells = ["muon lr=0.01", "muon lr=0.02"]')
    assert [cell.name for cell in load(folder, named).cells] == ["muon lr=0.02", "muon lr=0.01"]


def test_a_follow_up_of_a_follow_up(folder):
    ran(LOSSES)
    second = load(folder, REFINE, "second.toml")
    ran({cell.name: 2.0 + abs(cell.recipe.optimizer.lr - 0.02828) for cell in second.cells}, "second")
    found = load(folder, MEET.replace("first", "second"))
    assert [cell.recipe.optimizer.lr for cell in found.cells] == [0.02828, 0.02]
    assert found.config.seeds == (5, 6), "neither those of the first nor those of the second"
    with pytest.raises(InputError, match=r"seeds \[1\] tuned these settings \(first.toml\)"):
        load(folder, MEET.replace("first", "second").replace("seeds = 2", "seeds = [1, 9]"))


@pytest.mark.slow
def test_the_committed_result_counts_before_the_one_in_runs(folder):
    out = ran(LOSSES)
    write_report(out, folder / "first")
    ran({**LOSSES, "muon lr=0.02": 9.0}, out="elsewhere")
    Path("runs").rename("gone")
    Path("runs").mkdir()
    Path("elsewhere").rename("runs/first")
    found = load(folder, REFINE)
    assert found.found["refine"]["from"] == "first/results.json"
    assert found.found["refine"]["winners"]["muon"]["cell"] == "muon lr=0.02"


def test_a_committed_result_of_other_recipes_does_not_count(folder):
    write_report(ran(LOSSES), folder / "first")
    (folder / "first.toml").write_text(FIRST.replace("batch = 2", "batch = 1"))
    with pytest.raises(InputError) as caught:
        load(folder, REFINE)
    assert "first/results.json is the result of other recipes than first.toml has" in str(caught.value)
    assert "Finish it first: muonlab sweep experiments/first.toml" in str(caught.value)


def test_a_result_from_before_the_file_gained_an_extra_does_not_count(folder):
    """An extra that is off stands in no recipe: one that is switched on makes another experiment."""
    ran(LOSSES)
    text = (folder / "first.toml").read_text()
    for changed in ("model.residual_scale = 0.5", "optimizer.lr_mul = { '*attention*' = 2.0 }"):
        (folder / "first.toml").write_text(text.replace("[arms.muon]", f"[arms.muon]\n{changed}"))
        with pytest.raises(InputError, match=r"is the result of other recipes than first\.toml has"):
            load(folder, REFINE)


def test_a_committed_result_from_before_recipes_gained_a_key_counts(folder):
    out = ran(LOSSES)
    write_report(out, folder / "first")
    path = folder / "first/results.json"
    figures = json.loads(path.read_text())
    for cell in figures["plan"]["cells"]:
        del cell["recipe"]["train"]["keep_checkpoints"]
    path.write_text(json.dumps(figures))
    assert load(folder, REFINE).found["refine"]["from"] == "first/results.json"


@pytest.mark.parametrize(
    ("losses", "text", "message"),
    [
        ({}, REFINE, r"in runs/first 8 of 8 runs have not ended. Finish it first"),
        ({**LOSSES, "muon lr=0.01": 1.0}, REFINE, r"optimizer.lr: the winner, 0.01, is the last value tried"),
        ({**LOSSES, **{f"muon lr={lr}": None for lr in (0.01, 0.02, 0.04)}}, REFINE, "every cell of muon has diverged runs"),
        (dict.fromkeys(LOSSES), MEET, "all cells of first.toml have diverged runs"),
        ({**dict.fromkeys(LOSSES), "adamw": 2.0}, MEET, "only one cell whose runs all finished"),
        (LOSSES, REFINE.replace("5", "4"), "refine.points: expected an odd number, .* got 4"),
        (LOSSES, REFINE.replace("points = 5", 'arms = ["adam"]'), "there is no arm|has no arm 'adam' with a grid"),
        (LOSSES, REFINE.replace("first.toml", "frist.toml"), "refine: .*no such file; did you mean 'first.toml'"),
        (LOSSES, REFINE.replace("first.toml", "next.toml"), "comes from this experiment itself"),
        (LOSSES, REFINE + 'base = "x.toml"\n[arms.x]\n', "refine, base, arms: expected one of refine, head_to_head, and base"),
        (LOSSES, MEET.replace("40", "12"), "steps: expected more than the 12 of first.toml, got 12"),
        (LOSSES, MEET.replace("steps = 40", "step = 40"), "head_to_head.step: unknown key; did you mean 'steps'"),
        (LOSSES, MEET.replace("steps = 40", 'steps = 40, cells = ["muon", "adamw"]'), "first.toml has no 'muon' that finished"),
    ],
)
def test_a_result_that_does_not_answer_is_refused(folder, losses, text, message):
    ran(losses)
    with pytest.raises(InputError, match=message):
        load(folder, text)


def test_without_any_result_both_places_are_named(folder):
    with pytest.raises(InputError, match=r"there is no experiments/first/results.json; there is no runs/first. Finish it first"):
        load(folder, REFINE)


def test_beyond_the_edge_on_request(folder):
    ran({**LOSSES, "muon lr=0.01": 1.0})
    found = load(folder, REFINE.replace("points = 5", "points = 5, beyond = true"))
    assert [cell.recipe.optimizer.lr for cell in found.cells] == [0.005, 0.007071, 0.01, 0.01414, 0.02]


def test_diverged_cells_win_nothing(folder):
    ran({**LOSSES, "muon lr=0.02": None, "adamw": 2.05})
    assert [cell.name for cell in load(folder, MEET).cells] == ["adamw", "muon lr=0.04"]


def test_zipped_keys_are_refined_together(folder):
    (folder / "first.toml").write_text(
        FIRST.replace("grid.optimizer.lr = [0.01, 0.02, 0.04]", "zip.optimizer.lr = [0.01, 0.02, 0.03]")
        + "zip.optimizer.weight_decay = [0.2, 0.1, 0.0]\n"
    )
    losses = {"adamw": 3.0, "muon lr=0.01 weight_decay=0.2": 2.0, "muon lr=0.02 weight_decay=0.1": 1.0}
    ran({**losses, "muon lr=0.03 weight_decay=0.0": 2.0})
    settings = [(c.recipe.optimizer.lr, c.recipe.optimizer.weight_decay) for c in load(folder, REFINE).cells]
    assert settings == [(0.01, 0.2), (0.015, 0.15), (0.02, 0.1), (0.025, 0.05), (0.03, 0.0)]


def test_even_steps_are_refined_evenly_and_whole_numbers_stay_whole():
    follow = Refine(of="x", points=5)
    assert _finer("", [0.7, 0.8, 0.9, 1.0], 1, follow) == [0.7, 0.75, 0.8, 0.85, 0.9]
    assert _finer("", [-0.2, 0.0, 0.2], 1, follow) == [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert _finer("", [2, 4, 8], 1, follow) == [2, 3, 4, 6, 8]
    assert _finer("", [1, 2, 3], 1, follow) == [1, 2, 3], "nothing between them"
