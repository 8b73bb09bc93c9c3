"""Rows that are evaluated on and were trained on are counted, and said: by preparing, training, evaluating and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from muonlab.data import corpus
from muonlab.data.config import DataConfig
from muonlab.data.examples import prompt_key
from muonlab.data.overlap import among, counted, in_words
from muonlab.data.prepare import Plan, prepare
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.run.runner import sweep
from muonlab.lab.show.report import write_report
from muonlab.train.recipe import Recipe
from muonlab.train.run import train

QA = ("question", "answer")
TOY = {
    "model": {"layers": 1, "width": 16, "head_width": 8, "context": 32, "vocab_size": 257},
    "train": {"steps": 2, "batch": 4, "eval_tokens": 32, "eval_every": 2},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(i):
    return {"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}


def write(name, rows):
    Path(name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    return name


def two(seen=60, of=144):
    """Training rows, and `of` validation rows of which `seen` are training rows, in other letter case and with other answers."""
    write("train.jsonl", map(row, range(300)))
    held = [{"question": row(i)["question"].upper() + "  ", "answer": "other"} for i in range(seen)]
    write("held.jsonl", [*held, *(row(i) for i in range(1000, 1000 + of - seen))])
    return {"source": "rows", "files": ["train.jsonl"], "validation_files": ["held.jsonl"], "columns": QA}


WORDS = "60 of 144 validation rows are training rows"


def test_keys_are_counted():
    held = np.array([5, 7, 5, 2**64 - 1, 0], dtype=np.uint64)
    trained = [np.array([9, 5], dtype=np.uint64), np.array([], dtype=np.uint64), np.array([0], dtype=np.uint64)]
    assert among(held, trained).tolist() == [True, False, True, False, True]
    assert counted([held], trained) == {"rows": 3, "of": 5}
    assert counted([], trained) == {"rows": 0, "of": 0}
    assert counted([held], []) == {"rows": 0, "of": 5}
    assert in_words(None) == in_words({"rows": 0, "of": 5}) == ""


def test_training_says_how_many_validation_rows_it_trains_on(muonlab):
    said: list[str] = []
    train(Recipe.model_validate({"data": two(), **TOY}), 0, "run", device="cpu", say=said.append)
    assert any(WORDS in line for line in said)
    described = json.loads(Path("run/run.json").read_text())
    assert described["data"]["seen"] == {"rows": 60, "of": 144}
    code, _, err = muonlab("eval", "loss", "run")
    assert code == 0
    assert "60 of 144 documents are training rows" in err


def test_nothing_is_said_where_there_is_nothing_to_say():
    said: list[str] = []
    train(Recipe.model_validate({"data": two(seen=0), **TOY}), 0, "run", device="cpu", say=said.append)
    assert not any("training rows" in line for line in said)
    assert json.loads(Path("run/run.json").read_text())["data"]["seen"] == {"rows": 0, "of": 144}


@pytest.mark.parametrize("source", ["jsonl", "text", "prepared"])
def test_other_ways_to_name_validation_files_count_too(source):
    two()
    if source == "prepared":
        for name in ("train", "held"):
            prepare(Plan([f"{name}.jsonl"], columns=QA, held_out=0.2), name)
        config = DataConfig(source=source, files=("train",), validation_files=("held",))
        seen = corpus.load(config).provenance["seen"]
        assert seen["of"] == 144
        trained = {prompt_key([row(i)["question"]]) for i in range(300)}
        held_out = {key for part in prepared_keys("train", "validation") for key in part}
        assert seen["rows"] == len({prompt_key([row(i)["question"]]) for i in range(60)} & (trained - held_out)) < 60
        return
    if source == "jsonl":
        write("a.jsonl", [{"text": f"a text {i}"} for i in range(40)])
        write("b.jsonl", [{"text": f"A  text {i}"} for i in range(35, 50)])
    else:
        for i in range(40):
            Path(f"a{i}.txt").write_text(f"a text {i}")
        for i in range(35, 50):
            Path(f"b{i}.txt").write_text(f"A  text {i}\n")
    files = {"jsonl": (("a.jsonl",), ("b.jsonl",)), "text": (("a*.txt",), ("b*.txt",))}[source]
    config = DataConfig(source=source, files=files[0], validation_files=files[1])
    assert corpus.load(config).provenance["seen"] == {"rows": 5, "of": 15}


def prepared_keys(folder, split):
    from muonlab.data.prepared import open_prepared

    return [keys.tolist() for keys in open_prepared(folder).prompts(split)]


def test_preparing_counts_against_other_folders(muonlab):
    two()
    assert muonlab("data", "prepare", "train.jsonl", "--columns", "question,answer", "--out", "train")[0] == 0
    command = ["data", "prepare", "held.jsonl", "--columns", "question,answer", "--template", "{{ question }}:", "--out", "held"]
    assert "held: 60 of 144 rows are rows of train" in muonlab(*command, "--against", "train")[2]
    assert json.loads(muonlab(*command, "--against", "train", "--json")[1])["seen"] == {"train": {"rows": 60, "of": 144}}


def test_gsm8k_says_how_many_problems_were_trained_on(muonlab):
    two()
    recipe = {**TOY, "data": {"source": "rows", "files": ["train.jsonl"], "columns": QA}}
    train(Recipe.model_validate(recipe), 0, "run", device="cpu")
    write("test.jsonl", [*map(row, range(300)), *map(row, range(2000, 2010))])
    trained = len([key for part in prepared_keys(next(Path("cache/muonlab/prepared").iterdir()), "train") for key in part])
    assert 270 < trained < 300, "what the run held out it was not trained on"
    command = ["eval", "gsm8k", "run", "--data", "test.jsonl", "--max-tokens", "1", "--json"]
    _, out, err = muonlab(*command)
    assert f"{trained} of the 310 problems are training rows of run" in err
    assert json.loads(out)["seen"] == trained
    for path in Path("cache/muonlab/prepared").glob("*/*"):
        path.unlink()
    _, out, err = muonlab(*command)
    assert "whether run was trained on these problems is not known" in err
    assert json.loads(out)["seen"] is None


def test_other_data_is_compared_with_what_the_run_was_trained_on(muonlab):
    two()
    recipe = {**TOY, "data": {"source": "rows", "files": ["train.jsonl"], "columns": QA}}
    train(Recipe.model_validate(recipe), 0, "run", device="cpu")
    prepare(Plan(["train.jsonl"], columns=QA, held_out=0.5), "again")
    _, out, err = muonlab("eval", "loss", "run", "--data", "again", "--json")
    seen = json.loads(out)["seen"]
    assert 0.8 * seen["of"] < seen["rows"] <= seen["of"]
    assert "documents are training rows" in err


def test_the_report_says_it_under_the_figure():
    two()
    Path("recipe.toml").write_text(Recipe.model_validate({"data": two(), **TOY}).to_toml())
    Path("experiment.toml").write_text(
        'question = "?"\nbase = "recipe.toml"\nbaseline = "a"\nseeds = [0, 1]\n[arms.a]\n[arms.b.optimizer]\nlr = 0.01\n'
    )
    sweep(load_experiment("experiment.toml"), Path("out"), workers=1, device="cpu")
    page, _ = write_report("out")
    for name in ("report.md", "report.html"):
        text = (page.parent / name).read_text()
        figure = text[text.index("Final loss of every run" if name.endswith("md") else "<figcaption>") :]
        assert f"Not a loss on unseen text: {WORDS}" in text
        assert WORDS in figure[:800]
