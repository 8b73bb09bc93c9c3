"""`muonlab.run` in other people's scripts: what is logged is on disk, and wrong use is one clear error."""

from __future__ import annotations

# ruff: noqa: PT012 (the error must come out of the whole `with` block of a run)
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import muonlab
from muonlab.errors import InputError, RunError
from muonlab.lab.judge.audit import audit
from muonlab.lab.judge.results import compute
from muonlab.lab.runs.collection import collect
from muonlab.train.run_folder import RunFolder, write_json


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def log(arm, seed, losses, **options):
    with muonlab.run(arm, seed=seed, **options) as run:
        for step, loss in enumerate(losses, 1):
            run.log(step=step, val_loss=loss)
    return RunFolder(run.path)


def test_ten_lines_give_a_verdict():
    for arm, level in (("adamw", 2.5), ("muon", 2.0)):
        for seed in range(3):
            log(arm, seed, [3.0, level + 0.01 * seed])
    sweep = collect("runs/log")
    assert sweep.plan["baseline"] == "adamw"
    assert sweep.plan["seeds"] == [0, 1, 2]
    adamw, muon = compute(sweep).arms
    assert adamw.finished == muon.finished == 3
    assert muon.verdict.word == "better"
    assert muon.comparison.difference == pytest.approx(-0.5)


def test_the_folder_says_what_was_logged():
    config = Namespace(lr=0.02, betas=(0.9, 0.95), path=Path("a/b"), name="x", decay=np.float32(0.5), on=True, nothing=None)
    with muonlab.run("an arm: µ", seed=np.int64(3), project="mine", dir="somewhere", config=config) as run:
        run.log(step=0, val_loss=4)
        run.log(step=np.int32(5), train_loss=torch.tensor(3.5), tokens=1000, lr=np.float64(0.02), val_loss=None)
        run.log(step=5, val_loss=np.array([3.25]))
        run.log(step=9, val_loss=torch.tensor([[3.0]], requires_grad=True), seconds=12.5)
    assert run.path.parent == Path("somewhere/mine")
    folder = RunFolder(run.path)
    described = folder.run()
    assert (described["arm"], described["seed"], described["source"]) == ("an arm: µ", 3, "log")
    assert described["recipe"] == {
        "lr": 0.02, "betas": [0.9, 0.95], "path": "a/b", "name": "x", "decay": 0.5, "on": True, "nothing": None,
    }  # fmt: skip
    assert described["provenance"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    rows = folder.rows()
    assert [row["step"] for row in rows] == [0, 5, 5, 9]
    assert [row.get("val_loss") for row in rows] == [4, None, 3.25, 3.0]
    assert "val_loss" not in rows[1]
    assert (rows[1]["tokens"], rows[1]["lr"], rows[1]["train_loss"]) == (1000, 0.02, 3.5)
    assert 0 <= rows[0]["seconds"] <= rows[1]["seconds"] <= rows[2]["seconds"] < 12.5
    result = folder.result()
    assert (result["status"], result["val_loss"], result["best_val_loss"], result["rows"]) == ("finished", 3.0, 3.0, 4)
    assert (result["steps"], result["tokens"], result["seconds"]) == (9, 1000, 12.5)


def test_it_needs_no_torch():
    program = (
        "import sys, muonlab\n"
        "with muonlab.run('a') as run: run.log(step=1, val_loss=1.0)\n"
        "assert not {'torch', 'scipy', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_exception_leaves_the_run_unfinished_and_recorded():
    with pytest.raises(ZeroDivisionError), muonlab.run("a") as run:
        run.log(step=3, val_loss=2.0)
        _ = 1 / 0
    assert RunFolder(run.path).result() is None
    noted = json.loads((run.path / "error.json").read_text())
    assert noted["error"] == "ZeroDivisionError: division by zero"
    assert noted["after_step"] == 3
    assert [record.status for record in collect("runs/log").runs] == ["unfinished"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_a_loss_that_is_not_finite_is_a_diverged_row(loss):
    folder = log("a", 0, [2.0, loss, 1.9])
    assert [row["val_loss"] for row in folder.rows()] == [2.0, None, 1.9]
    assert folder.rows()[1]["diverged"] is True
    result = folder.result()
    assert (result["status"], result["val_loss"], result["best_val_loss"]) == ("diverged", None, 1.9)


def test_a_training_loss_that_ends_in_nan_is_a_divergence_that_no_evaluation_saw():
    with muonlab.run("a") as run:
        run.log(step=1, val_loss=2.0, train_loss=2.0)
        run.log(step=2, train_loss=float("nan"))
    assert RunFolder(run.path).result()["status"] == "diverged"
    with muonlab.run("b") as run:
        run.log(step=1, train_loss=float("inf"))  # one skipped step of a gradient scaler
        run.log(step=2, train_loss=2.0, val_loss=2.0)
    assert RunFolder(run.path).result()["status"] == "finished"


def test_the_same_arm_and_seed_is_refused_resumed_or_replaced():
    folder = log("a", 0, [2.0, 1.5])
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match="'a' with seed 0 is finished already: replace=True deletes it"):
            muonlab.run("a", seed=0, config={"other": 1}, **options)
    assert folder.result()["val_loss"] == 1.5
    log("a", 0, [9.0], replace=True, config={"other": 1})
    assert len(list(Path("runs/log").glob("[!.]*"))) == 1
    assert collect("runs/log").runs[0].result["val_loss"] == 9.0
    with pytest.raises(InputError, match="expected one of them, got both"):
        muonlab.run("a", resume=True, replace=True)


def test_an_unfinished_run_goes_on():
    with pytest.raises(RuntimeError), muonlab.run("a") as run:
        for step in (1, 2, 3, 4):
            run.log(step=step, val_loss=5.0 - step, seconds=10.0 * step)
        raise RuntimeError("cut")
    with open(RunFolder(run.path).metrics_file, "a") as file:
        file.write('{"step": 5, "val_l')  # what a killed process leaves
    with pytest.raises(InputError, match=r"there already, unfinished: .*resume=True goes on"):
        muonlab.run("a")
    with pytest.raises(InputError, match="begun with another config"):
        muonlab.run("a", config={"lr": 1}, resume=True)
    with muonlab.run("a", resume=True) as run:  # from its checkpoint of step 2
        run.log(step=3, val_loss=1.75)
        run.log(step=4, val_loss=0.5)
    rows = RunFolder(run.path).rows()
    assert [(row["step"], row["val_loss"]) for row in rows] == [(1, 4.0), (2, 3.0), (3, 1.75), (4, 0.5)]
    assert rows[2]["seconds"] >= 40.0, "the clock goes on where it stood"
    assert not (run.path / "error.json").exists()
    assert RunFolder(run.path).result()["rows"] == 4
    assert len(RunFolder(run.path).metrics_file.read_text().splitlines()) == 4
    with muonlab.run("b", resume=True) as run:  # resume begins what is not there
        run.log(step=1, val_loss=1.0)


def test_pauses_are_not_charged(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with muonlab.run("a") as run:
        now[0] += 5
        with run.paused():
            now[0] += 1000
            run.log(step=1, val_loss=2.0)
        now[0] += 3
        run.log(step=2, val_loss=1.0)
        with run.paused(), pytest.raises(InputError, match="stands still already"), run.paused():
            pass
    assert [row["seconds"] for row in RunFolder(run.path).rows()] == [5.0, 8.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 2, "val_loss": "2.0"}, "val_loss: expected one number, got str '2.0'"),
        ({"step": 2, "val_loss": torch.zeros(3)}, r"val_loss: expected one number, got Tensor of shape \(3,\)"),
        ({"step": 2, "val_loss": [1.0]}, "val_loss: expected one number, got list"),
        ({"step": 2, "val_loss": True}, "val_loss: expected one number, got bool True"),
        ({"step": 2, "val_loss": 1j}, "val_loss: expected one number, got complex 1j"),
        ({"step": 2, "a": "x", "b": "y"}, "a: expected one number.*\n.*b: expected one number"),
        ({"step": 2, "crc": 1}, "crc: this name is muonlab's own"),
        ({"step": -1, "val_loss": 1.0}, "step: expected a whole number of 0 or more, got -1"),
        ({"step": 10**30, "val_loss": 1.0}, "step: expected a whole number"),
        ({"step": 2, "val_loss": 10**400}, "val_loss: expected one number, got int"),
        ({"step": 2, "val_loss": 1.0, "seconds": -1}, "seconds: expected a number of 0 or more"),
        ({"step": 2.5, "val_loss": 1.0}, "step: expected a whole number of 0 or more, got 2.5"),
        ({"step": "2", "val_loss": 1.0}, "step: expected a whole number"),
        ({"step": float("inf"), "val_loss": 1.0}, "step: expected a whole number"),
        ({"step": 0, "val_loss": 1.0}, "step 0 comes after step 1: steps may not go down"),
        ({"step": 1, "val_loss": 1.0}, "step 1 has its val_loss already"),
    ],
)
def test_wrong_values_are_named_and_leave_no_row(values, message):
    with pytest.raises(InputError, match=message), muonlab.run("a") as run:
        run.log(step=1, val_loss=3.0)
        run.log(**values)
    assert len(RunFolder(run.path).rows()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm": ""}, "arm: expected a name"),
        ({"arm": "x" * 61}, "arm: expected a name"),
        ({"arm": 5}, "arm: expected a name"),
        ({"arm": "a\nb"}, "arm: expected a name"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": "0"}, "seed: expected a whole number"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"project": "a/b"}, "project: expected the name of a folder"),
        ({"project": ".."}, "project: expected the name of a folder"),
        ({"config": 3}, "config: expected a mapping"),
        ({"config": {"model": object()}}, r"config.model: expected text.*got object"),
        ({"config": {"a": {"b": [1, float("nan")]}}}, r"config.a.b\[1\]: expected text, a finite number"),
        ({"dir": "file.txt"}, "cannot be written: Not a directory"),
    ],
)
def test_wrong_runs_are_refused_and_leave_nothing(options, message):
    Path("file.txt").touch()
    with pytest.raises(InputError, match=message):
        muonlab.run(**{"arm": "a"} | options)
    assert [path.name for path in Path().iterdir()] == ["file.txt"]


def test_a_run_is_used_in_a_with_block_once_at_a_time():
    run = muonlab.run("a")
    with pytest.raises(InputError, match="is not open"):
        run.log(step=1, val_loss=1.0)
    with run:
        run.log(step=1, val_loss=1.0)
        with pytest.raises(InputError, match="open already"):
            run.__enter__()
    with pytest.raises(InputError, match="is not open"):
        run.log(step=2, val_loss=1.0)


def test_a_run_that_logged_nothing_is_not_finished():
    with pytest.raises(InputError, match="nothing to judge was logged"), muonlab.run("a") as run:
        run.log(step=1, accuracy=0.5)
    assert RunFolder(run.path).result() is None


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_later():
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    program = (
        "import muonlab\n"
        "from muonlab.errors import RunError\n"
        "try:\n"
        "    with muonlab.run('a') as run:\n"
        "        for step in range(1, 100): run.log(step=step, val_loss=1 / step)\n"
        "except RunError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], preexec_fn=full, capture_output=True, text=True)
    assert "cannot be written: File too large; go on with resume=True" in done.stdout, done.stderr
    (record,) = collect("runs/log").runs
    assert record.status == "unfinished"
    kept = record.rows[-1]["step"]
    assert kept > 5
    with muonlab.run("a", resume=True) as run:
        run.log(step=kept + 1, val_loss=0.25)
    assert [row["step"] for row in RunFolder(run.path).rows()] == list(range(1, kept + 2))


def _work(arm, seed):
    with muonlab.run(arm, seed=seed) as run:
        for step in range(1, 30):
            run.log(step=step, val_loss=3.0 - step * 0.01)


def test_several_processes_log_at_once():
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_work, args=(arm, seed)) for arm in ("a", "b") for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    sweep = collect("runs/log")
    assert len(sweep.runs) == 8
    assert all(record.status == "finished" and len(record.rows) == 29 for record in sweep.runs)


def test_a_second_process_on_one_run_is_refused_and_harms_nothing():
    with muonlab.run("a") as run:
        run.log(step=1, val_loss=2.0)
        for options in ({"resume": True}, {"replace": True}):
            with pytest.raises(InputError, match="another process"), muonlab.run("a", **options):
                pass
        run.log(step=2, val_loss=1.0)
    assert RunFolder(run.path).result()["rows"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named():
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="locked/log: cannot be written: Permission denied; choose another folder with dir="):
        muonlab.run("a", dir="locked")


def test_a_row_that_cannot_be_written_is_a_run_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="step 2 cannot be written: No space left on device"), muonlab.run("a") as run:
        run.log(step=1, val_loss=1.0)
        monkeypatch.setattr(RunFolder, "append_row", full)
        run.log(step=2, val_loss=1.0)


def test_a_config_may_use_the_names_of_recipes_in_its_own_way():
    for arm, config in {
        "adamw": {"optimizer": "adamw"},
        "muon": {"optimizer": {"roles": "all", "decay": "update"}},
        "sgd": {},
    }.items():
        for project in ("differing", "alike"):
            for seed in range(2):
                with muonlab.run(arm, seed=seed, project=project, config=config if project == "differing" else {"lr": 0.1}) as run:
                    run.log(step=1, val_loss=3.0 + seed)
    for project in ("differing", "alike"):
        directory = Path("runs") / project
        assert audit(directory, collect(directory)).disguised == [], "equal settings of other people's programs are not equal arms"


def test_collections_are_checked():
    with pytest.raises(InputError, match="expected a folder of runs"):
        collect("nothing")
    Path("empty").mkdir()
    with pytest.raises(InputError, match="holds no runs"):
        collect("empty")
    folder = log("b", 0, [2.0])
    log("a", 0, [2.0])
    log("baseline", 0, [2.0])
    assert collect("runs/log").plan["baseline"] == "baseline"
    assert collect("runs/log", baseline="a", target=2.5).plan["targets"] == [2.5]
    for options, message in (
        ({"baseline": "c"}, "there is no arm 'c'"),
        ({"metric": "vall_loss"}, "did you mean 'val_loss'"),
        ({"metric": "train_loss"}, "finished without a train_loss: choose another with --metric"),
        ({"target": float("nan")}, "target: expected a finite loss"),
        ({"margin": 0.0}, "margin: expected a number above 0"),
        ({"alpha": 1.0}, "alpha: expected a level"),
    ):
        with pytest.raises(InputError, match=message):
            collect("runs/log", **options)
    copied = Path("runs/log/copy")
    copied.mkdir()
    copied.joinpath("run.json").write_bytes(folder.run_file.read_bytes())
    with pytest.raises(InputError, match=r"holds a run .* more than once: keep one of b-seed0-.*, copy"):
        collect("runs/log")
    copied.joinpath("run.json").write_text("{}")
    with pytest.raises(InputError, match=r"copy/run.json: damaged"):
        collect("runs/log")


def judged():
    """The baseline and each other arm's difference from it, as in the report."""
    results = compute(collect("runs/log"))
    return results.plan["baseline"], {arm.name: round(arm.comparison.difference, 6) for arm in results.arms if arm.comparison}


def test_the_first_arm_that_ran_is_the_baseline():
    for arm, level in (("plain", 2.5), ("muon", 2.0), ("adamw", 3.0)):
        for seed in range(3):
            log(arm, seed, [level + 0.01 * seed])
    assert judged() == ("plain", {"adamw": 0.5, "muon": -0.5})
    assert [cell["name"] for cell in collect("runs/log").plan["cells"]] == ["plain", "adamw", "muon"]
    assert [cell["name"] for cell in collect("runs/log", baseline="muon").plan["cells"]] == ["muon", "adamw", "plain"]
    log("plain", 0, [2.5], replace=True)
    assert judged()[0] == "plain", "its other runs were there before all others"
    log("no baseline", 0, [1.0])
    assert judged()[0] == "plain"
    log("Baseline lr=0.1 wd=0", 0, [1.0])
    assert judged()[0] == "Baseline lr=0.1 wd=0"
    log("BASELINE", 0, [1.0])
    assert judged()[0] == "BASELINE"
    log("baseline", 0, [1.0])
    assert judged()[0] == "baseline"


def test_without_a_start_the_first_name_is_the_baseline():
    for arm in ("b", "a"):
        folder = log(arm, 0, [2.0])
        run = folder.run()
        run["provenance"] |= {"started": "last week"}
        write_json(folder.run_file, run)
    assert judged() == ("a", {"b": 0.0})


def test_what_runs_of_an_arm_have_in_common_is_its_recipe():
    log("a", 0, [2.0], config={"lr": 0.1, "host": {"name": "x", "n": 1}})
    log("a", 1, [2.0], config={"lr": 0.1, "host": {"name": "y", "n": 1}})
    assert collect("runs/log").plan["cells"][0]["recipe"] == {"lr": 0.1, "host": {"n": 1}}
