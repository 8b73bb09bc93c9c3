"""The index says what the folders say, whatever happens to it or to them."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.runs import index
from muonlab.lab.runs.store import write_plan
from muonlab.train.run_folder import RunFolder, write_json

MACHINE = {"device": "cpu", "bf16_fast": False, "threads": 1}


def write_run(folder, run, loss=None):
    target = RunFolder(folder)
    target.path.mkdir(parents=True, exist_ok=True)
    recipe = {"optimizer": {"name": "muon", "lr": 0.02}}
    write_json(target.run_file, {"id": run["id"], "seed": run["seed"], "recipe": recipe})
    if loss is not None:
        ended = {"id": run["id"], "status": "finished", "rows": 0, "steps": 3, "tokens": 30, "seconds": 1.5}
        write_json(target.result_file, {**ended, "val_loss": loss, "best_val_loss": loss})


@pytest.fixture
def folder(workdir):
    """runs/exp with two runs, one of them finished, and a single run beside it."""
    (workdir / "exp.toml").write_text('question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\n[arms.muon]\n')
    plan = plan_of(load_experiment("exp.toml"), MACHINE)
    write_plan(workdir / "runs/exp", plan)
    for run, loss in zip(plan["runs"], (2.5, None), strict=True):
        write_run(workdir / "runs/exp/runs" / run["folder"], run, loss)
    write_run(workdir / "runs/single", {"id": "0" * 12, "seed": 7}, 3.5)
    return workdir / "runs"


def test_every_run_below_a_directory_has_a_row(folder):
    rows = index.runs(folder)
    assert [(r["experiment"], r["cell"], r["seed"], r["status"], r["val_loss"]) for r in rows] == [
        ("exp", "muon", 1, "finished", 2.5),
        ("exp", "muon", 2, "unfinished", None),
        (None, None, 7, "finished", 3.5),
    ]
    assert rows[0]["lr"] == 0.02
    assert index.runs(folder) == rows == index.rebuild(folder)


def test_what_changes_in_the_folders_changes_in_the_index(folder):
    before = index.runs(folder)
    shutil.rmtree(folder / "single")
    second = folder / before[1]["folder"]
    write_run(second, {"id": before[1]["id"], "seed": 2}, 2.25)
    (folder / before[0]["folder"] / "run.json").write_text("{}")
    rows = index.runs(folder)
    assert [(r["status"], r["val_loss"]) for r in rows] == [("damaged", None), ("finished", 2.25)]
    assert rows == index.rebuild(folder)


def test_only_changed_folders_are_read_again(folder, monkeypatch):
    index.runs(folder)
    read = []
    inside = index._read
    monkeypatch.setattr(index, "_read", lambda path, plans: (read.append(path.name), inside(path, plans))[1])
    index.runs(folder)
    assert read == []
    write_run(folder / "single", {"id": "0" * 12, "seed": 7}, 3.25)
    assert index.runs(folder)[2]["val_loss"] == 3.25
    assert read == ["single"]


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be looked at" * 20])
def test_a_damaged_index_is_made_anew(folder, content):
    rows = index.runs(folder)
    (folder / index.INDEX).write_bytes(content)
    assert index.runs(folder) == rows
    assert index.runs(folder) == rows


def test_an_index_of_another_version_is_made_anew(folder):
    rows = index.runs(folder)
    (folder / index.INDEX).unlink()
    with sqlite3.connect(folder / index.INDEX) as connection:
        connection.execute("CREATE TABLE runs (folder TEXT, stamp TEXT)")
    connection.close()
    assert index.runs(folder) == rows


def test_a_place_where_nothing_can_be_written_has_rows_too(folder):
    rows = index.runs(folder)
    (folder / index.INDEX).unlink()
    (folder / index.INDEX).mkdir()
    assert index.runs(folder) == rows
    assert not list(Path(folder).glob("*.tmp"))


def test_no_folder_no_index(workdir):
    with pytest.raises(InputError, match="expected a folder with runs"):
        index.runs(workdir / "nowhere")
