"""A folder that was prepared before documents had beginnings (tests/data/prepared_old) is read on as it is, and that is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from muonlab.data.packing import PackedLoader
from muonlab.data.prepare import Plan, prepare
from muonlab.data.prepared import open_prepared
from muonlab.errors import InputError
from muonlab.evaluate.generation import TextGenerator
from muonlab.evaluate.loading import load_run
from muonlab.evaluate.loss import evaluate_loss
from muonlab.evaluate.team import gather
from muonlab.train.recipe import Recipe
from muonlab.train.run import train

DATA = Path(__file__).parents[1] / "data"
END = 256
FORM = "in the old form: documents do not begin with the end token"
PLAN = Plan(["questions.jsonl"], columns=("question", "answer"), held_out=0.2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "prepared_old", "old")
    shutil.copy(DATA / "questions.jsonl", "questions.jsonl")


def recipe(folder):
    return Recipe.model_validate(
        {
            "data": {"source": "prepared", "files": [folder]},
            "model": {"layers": 1, "width": 16, "head_width": 8, "context": 64},
            "train": {"steps": 4, "batch": 4, "eval_every": 2, "eval_tokens": 128, "precision": "float32"},
        }
    )


def trained(folder):
    said: list[str] = []
    train(recipe(folder), 0, f"run-{folder}", device="cpu", say=said.append)
    return load_run(f"run-{folder}", "cpu"), said


def test_its_documents_are_those_that_it_has():
    old, new = open_prepared("old"), prepare(PLAN, "new")
    assert (old.begins, new.begins) == (False, True)
    assert old.prompts("train") == []
    for mine, theirs in ((old.train, new.train), (old.validation, new.validation)):
        assert len(mine) == len(theirs)
        for i in range(len(mine)):
            assert [END, *mine.tokens(i)] == theirs.tokens(i).tolist()
            assert mine.masked(i) + 1 == theirs.masked(i)
    inputs = PackedLoader(old.train, context=256, batch=2, seed=0).next().inputs
    assert END not in inputs


def test_the_same_preparation_finds_it_and_says_its_form():
    said: list[str] = []
    assert prepare(PLAN, "old", say=said.append).sha256 == open_prepared("old").sha256
    assert any(FORM in line for line in said)
    with pytest.raises(InputError, match="holds another preparation"):
        prepare(Plan(["questions.jsonl"], columns=("question", "answer"), held_out=0.3), "old")


def test_a_run_on_it_says_so_and_generates_as_it_was_trained():
    old, said = trained("old")
    assert any(FORM in line for line in said)
    assert not old.begins
    assert TextGenerator.of(old).prompt("ab") == [*b"ab"]
    prepare(PLAN, "new")
    new, said = trained("new")
    assert not any(FORM in line for line in said)
    assert TextGenerator.of(new).prompt("ab") == [END, *b"ab"]
    assert any("their first tokens weigh on the loss" in line for line in evaluate_loss(old, "new")["remarks"])
    assert any("their first tokens weigh on the loss" in line for line in evaluate_loss(new, "old")["remarks"])
    with pytest.raises(InputError, match="one was trained on documents that begin with the end token"):
        gather([old.folder, new.folder], together="average")


def test_what_was_begun_in_the_old_form_is_not_mixed():
    prepare(PLAN, "begun")
    manifest = Path("begun/manifest.json")
    manifest.rename("begun/progress.json")
    Path("begun/progress.json").write_text('{"request": {}, "state": {}}')
    with pytest.raises(InputError, match=f"begun {FORM}.*delete it, or choose a new folder"):
        prepare(PLAN, "begun")
