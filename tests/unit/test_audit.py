"""The audit, on folders of real runs that were then copied, cut, mixed up and thrown away."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.judge.audit import audit
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.run.runner import sweep
from muonlab.lab.runs.store import failures, load_sweep, note_failure, read_plan, write_plan
from muonlab.train.run import train
from muonlab.train.run_folder import format_row, write_json

HEAD = 'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\nset.train.steps = 4\n'
TEXT = HEAD + "[arms.a]\noptimizer.lr = 0.01\n[arms.b]\noptimizer.lr = 0.02\n"
MACHINE = {"device": "cpu", "bf16_fast": False, "threads": 1}


def load(text=TEXT):
    Path("exp.toml").write_text(text)
    return load_experiment("exp.toml")


@pytest.fixture
def folder(workdir):
    """A finished sweep of two arms and two seeds, trained in this process."""
    found = load()
    out = workdir / "sweep"
    write_plan(out, plan_of(found, MACHINE))
    recipes = {cell.name: cell.recipe for cell in found.cells}
    for run in read_plan(out)["runs"]:
        train(recipes[run["cell"]], run["seed"], out / "runs" / run["folder"], **MACHINE)
    return out


def look(folder):
    return audit(folder, load_sweep(folder))


def run_of(folder, cell, seed):
    return next(folder.glob(f"runs/{cell}-seed{seed}-*"))


def test_a_whole_sweep_has_one_sentence(folder):
    found = look(folder)
    assert found.complete
    assert found.sentences() == ["4 runs expected, 4 found: 4 finished."]


def test_missing_unfinished_and_failed_runs_are_told_apart(folder):
    shutil.rmtree(run_of(folder, "a", 1))
    (run_of(folder, "a", 2) / "result.json").unlink()
    (run_of(folder, "b", 1) / "result.json").unlink()
    note_failure(folder, run_of(folder, "b", 1).name, "b, seed 1: no space left")
    note_failure(folder, run_of(folder, "b", 2).name, "an old failure of a run that has finished since")
    found = look(folder)
    assert (found.expected, found.found) == (4, 3)
    assert not found.complete
    assert found.sentences() == [
        "4 runs expected, 3 found: 1 finished, 2 unfinished, 1 missing.",
        "Unfinished: a, seed 2.",
        "Missing: a, seed 1.",
        "Failed: b, seed 1: b, seed 1: no space left",
    ]


def test_a_diverged_run_is_named(workdir):
    found = load(TEXT.replace("optimizer.lr = 0.02", "optimizer.weight_decay = -1e38"))
    out = workdir / "sweep"
    write_plan(out, plan_of(found, MACHINE))
    recipes = {cell.name: cell.recipe for cell in found.cells}
    for run in read_plan(out)["runs"]:
        train(recipes[run["cell"]], run["seed"], out / "runs" / run["folder"], **MACHINE)
    said = look(out).sentences()
    assert said == ["4 runs expected, 4 found: 2 finished, 2 diverged.", "Diverged: b, seed 1; b, seed 2."]
    assert look(out).complete, "a diverged run is a result"


def test_damaged_runs_say_why(folder):
    shutil.rmtree(run_of(folder, "a", 1))
    shutil.copytree(
        run_of(folder, "b", 1), folder / "runs" / next(r["folder"] for r in read_plan(folder)["runs"] if r["cell"] == "a")
    )
    metrics = run_of(folder, "b", 2) / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    second = run_of(folder, "a", 2)
    shutil.rmtree(second)
    second.write_text("a file in the folder's place")
    found = look(folder)
    assert len(found.damaged) == 3
    said = " ".join(found.sentences())
    assert "a, seed 1" in said
    assert "holds another run" in said
    assert "3 whole rows of 4 in metrics.jsonl" in said
    assert "expected a folder, got a file" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_run_is_damaged_and_not_lost(folder):
    metrics = run_of(folder, "a", 1) / "metrics.jsonl"
    metrics.chmod(0)
    assert "cannot be read: Permission denied" in " ".join(look(folder).sentences())
    metrics.chmod(0o644)
    assert look(folder).complete


def test_a_copy_of_a_run_is_found_twice(folder):
    original = run_of(folder, "a", 1)
    shutil.copytree(original, folder / "runs" / "copy")
    found = look(folder)
    assert found.duplicates == [[original.name, "copy"]]
    assert found.foreign == ["copy: a copy of a planned run."]
    assert not found.complete


def test_what_is_not_of_the_experiment_is_named_with_its_reason(folder):
    shutil.copytree(run_of(folder, "b", 2), folder / "runs" / "elsewhere")
    # the experiment is changed: one seed and one arm fewer, and the other arm has another learning rate
    write_plan(folder, plan_of(load(TEXT.replace("[1, 2]", "[1]").replace("lr = 0.02", "lr = 0.03")), MACHINE))
    (folder / "runs" / "notes.txt").write_text("mine")
    (folder / "runs" / "empty").mkdir()
    found = {sentence.partition(": ")[0]: sentence.partition(": ")[2] for sentence in look(folder).foreign}
    assert found["notes.txt"] == "a file, not a run's folder."
    assert found["empty"] == "holds no run."
    assert found[run_of(folder, "a", 2).name] == "a with seed 2, which the experiment does not name."
    assert found["elsewhere"] == "a recipe of none of the arms; it differs from a in optimizer.lr."
    assert found[run_of(folder, "b", 1).name].startswith("a recipe of none of the arms")
    assert look(folder).duplicates == [[run_of(folder, "b", 2).name, "elsewhere"]]


def test_a_planned_run_twice_under_two_names_is_evidence_once(workdir):
    load(TEXT.replace("lr = 0.02", "lr = 0.01"))
    out = workdir / "sweep"
    write_plan(out, plan_of(load_experiment("exp.toml"), MACHINE))
    for run in read_plan(out)["runs"]:
        target = out / "runs" / run["folder"]
        target.mkdir()
        write_json(target / "run.json", {"id": run["id"], "seed": run["seed"], "recipe": {}})
    found = look(out)
    assert len(found.duplicates) == 2
    assert found.disguised == ["b and a are the same recipe under different names"]
    assert "It is evidence once." in " ".join(found.sentences())


def test_runs_off_the_declared_budget_are_noted(folder):
    for budget, said in (("steps = 4", []), ("steps = 5", ["Not at the declared budget of 5 steps: a, seed 1 (4); b, seed 1 (4)"])):
        write_plan(folder, plan_of(load(f"budget = {{ {budget} }}\n" + TEXT), MACHINE))
        assert [sentence.split("; a, seed 2")[0] for sentence in look(folder).off_budget] == said


def test_an_audit_of_an_old_plan(folder):
    """Plans from before metrics, targets and budget stood in them."""
    plan = read_plan(folder)
    for key in ("metrics", "targets", "budget"):
        del plan[key]
    write_json(folder / "experiment.json", plan)
    assert look(folder).complete
    write_plan(folder, plan_of(load(), MACHINE))
    assert read_plan(folder)["changes"] == []


def test_a_failure_is_remembered_and_a_cut_line_is_not(folder):
    note_failure(folder, "x", "first")
    note_failure(folder, "x", "second")
    with open(folder / "failures.jsonl", "a") as file:
        file.write('{"folder": "x", "mess')
    assert failures(folder) == {"x": "second"}
    assert json.loads((folder / "failures.jsonl").read_text().splitlines()[0])["folder"] == "x"


def test_a_sweep_refuses_damaged_runs_by_their_reasons_and_touches_nothing(folder):
    shutil.rmtree(run_of(folder, "a", 1))
    (run_of(folder, "b", 1) / "run.json").write_text("{}")
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.name != ".lock")
    with pytest.raises(InputError, match=r"run.json: damaged .*delete the run's folder to redo it"):
        sweep(load(), folder, workers=1, device="cpu")
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.name != ".lock") == before


def test_files_of_another_program_with_a_right_checksum_are_damaged_or_foreign(folder):
    write_json(run_of(folder, "a", 1) / "run.json", {"seed": 1})
    write_json(run_of(folder, "b", 1) / "result.json", {"status": "finished"})
    (folder / "runs/other").mkdir()
    write_json(folder / "runs/other/run.json", {"seed": 1})
    (folder / "failures.jsonl").write_text(format_row({"seed": 1}))
    found = look(folder)
    assert len(found.damaged) == 2
    assert found.foreign == ["other: holds no run."]


def test_the_audit_does_not_tell_where_the_folder_lies(folder):
    assert folder.is_absolute()
    (run_of(folder, "a", 1) / "result.json").write_text("{}")
    (run_of(folder, "a", 2) / "result.json").unlink()
    note_failure(folder, run_of(folder, "a", 2).name, f"a, seed 2: {run_of(folder, 'a', 2)}: stopped at step 2: no space")
    (folder / "runs/other").mkdir()
    (folder / "runs/other/run.json").write_text("{}")
    said = "\n".join(look(folder).sentences())
    assert "runs/other/run.json: damaged" in said
    assert "stopped at step 2" in said
    assert str(folder) not in said
