"""The word "none" for every optional key: in files, in --set, in grids; and in what is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from muonlab.errors import InputError
from muonlab.lab.plan.config import ExperimentConfig
from muonlab.lab.plan.loading import load_experiment
from muonlab.train.recipe import Recipe, load_recipe
from muonlab.train.unset import _NAMES, may_be_none

BASE = """
[train]
grad_clip = 1.0
keep_every = 100
[optimizer]
aux_betas = [0.8, 0.9]
[model]
kv_heads = 2
window_pattern = "LSSS"
"""


def tables(model, prefix=()):
    """(path, model) of every table of a recipe."""
    yield prefix, model
    for key, field in model.model_fields.items():
        todo = [field.annotation]
        while todo:
            part = todo.pop()
            todo += get_args(part)
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from tables(part, (*prefix, key))


FOUND = {(".".join((*path, key)), model) for path, model in tables(Recipe) for key in model.model_fields if may_be_none(model, key)}
OPTIONAL = sorted(FOUND, key=lambda x: (x[0], x[1].__name__))


@pytest.mark.parametrize(("key", "model"), OPTIONAL, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_optional_key_may_be_none(key, model):
    needs = {"data.split": ["data.source=rows"], "data.subset": ["data.source=rows"]}
    family = [f"model.family={model.model_fields['family'].default}"] if key.startswith("model.") else []
    recipe = load_recipe(None, [*family, f"{key}=none", *needs.get(key, [])][: 2 if not needs.get(key) else 1])
    assert recipe.run_id(0) == load_recipe(None, family).run_id(0)


def test_it_takes_a_value_of_the_base_away_again(tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    keys = ("train.grad_clip", "train.keep_every", "optimizer.aux_betas", "model.kv_heads", "model.window_pattern")
    given = load_recipe(tmp_path / "base.toml")
    free = load_recipe(tmp_path / "base.toml", [f"{key}=none" for key in keys])
    assert given.train.grad_clip == 1.0
    assert free.train.grad_clip is None
    assert free == load_recipe(None)
    (tmp_path / "free.toml").write_text(BASE.replace("1.0", '"none"'))
    assert load_recipe(tmp_path / "free.toml").train.grad_clip is None


def test_it_reads_back(tmp_path):
    free = load_recipe(None, ["train.grad_clip=none", "optimizer.name=adamuon", "optimizer.beta2=none"])
    assert Recipe.model_validate(json.loads(json.dumps(free.canonical()))).run_id(0) == free.run_id(0)
    (tmp_path / "again.toml").write_text(free.to_toml())
    assert load_recipe(tmp_path / "again.toml").run_id(0) == free.run_id(0)


def experiment(folder, text):
    (folder / "base.toml").write_text(BASE)
    (folder / "question.toml").write_text('base = "base.toml"\nquestion = "x?"\nseeds = [1, 2]\n' + text)
    return load_experiment(folder / "question.toml")


def test_an_experiment_may_ask_clipped_against_free(tmp_path):
    found = experiment(tmp_path, '[arms.clipped]\n[arms.free]\ntrain.grad_clip = "none"\n')
    assert [cell.recipe.train.grad_clip for cell in found.cells] == [1.0, None]
    found = experiment(tmp_path, '[arms.muon]\ngrid.train.grad_clip = ["none", 0.5, 1.0]\n')
    assert [cell.name for cell in found.cells] == ["muon grad_clip=none", "muon grad_clip=0.5", "muon grad_clip=1.0"]
    assert [cell.recipe.train.grad_clip for cell in found.cells] == [None, 0.5, 1.0]


def test_a_target_or_margin_of_a_profile_may_be_none(tmp_path):
    text = 'target = 3.0\nmargin = 0.1\n[arms.a]\n[arms.b]\noptimizer.lr = 0.1\n[profiles.open]\ntarget = "none"\nmargin = "none"\n'
    experiment(tmp_path, text)
    opened = load_experiment(tmp_path / "question.toml", profile="open")
    assert opened.config.target is None
    assert opened.config.margin is None


def test_names_are_names(tmp_path):
    found = experiment(tmp_path, 'baseline = "none"\n[arms.none]\n[arms.b]\noptimizer.lr = 0.1\n')
    assert found.config.baseline == "none"
    assert set(_NAMES) <= {*Recipe.model_fields, *ExperimentConfig.model_fields}
    assert load_recipe(None, ["optimizer.constraint=none", "optimizer.scale=none"]).optimizer.constraint == "none"


@pytest.mark.parametrize("word", ["off", "None", "null", "false", "0", '""'])
def test_other_words_are_refused_and_the_message_names_it(word):
    with pytest.raises(InputError, match=r'train\.grad_clip: .*or "none"'):
        load_recipe(None, [f"train.grad_clip={word}"])
    with pytest.raises(InputError) as refused:
        load_recipe(None, ["train.steps=none"])
    assert 'or "none"' not in str(refused.value)


@pytest.mark.parametrize("kind", ["recipe", "experiment"])
def test_the_schema_says_the_word(kind, muonlab):
    code, out, _ = muonlab("schema", kind)
    assert code == 0
    assert "null" not in out
    assert '"const": "none"' in out


@pytest.mark.parametrize(("values", "twins"), [("[1, 1.0]", True), ("[0.0, -0.0]", True), ("[0.1, 0.2]", False)])
def test_a_value_written_twice_is_refused(values, twins, tmp_path):
    text = f"[arms.muon]\ngrid.optimizer.weight_decay = {values}\n"
    if not twins:
        assert len(experiment(tmp_path, text).cells) == 2
        return
    with pytest.raises(InputError, match="once more: the same runs would count twice"):
        experiment(tmp_path, text)


@pytest.mark.slow
def test_sweeps_with_none_have_a_report(tmp_path, muonlab, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("all work and no play makes jack a dull boy. " * 100)
    small = '[model]\nlayers = 1\nwidth = 32\nhead_width = 16\ncontext = 32\n[data]\nsource = "text"\nfiles = ["corpus.txt"]\n'
    small += "[train]\nsteps = 3\nbatch = 2\neval_tokens = 64\neval_every = 3\ngrad_clip = 1.0\n"
    Path("base.toml").write_text(small)
    grid = '[arms.muon]\ngrid.train.grad_clip = ["none", 0.5, 2.0]\n'
    Path("question.toml").write_text('base = "base.toml"\nquestion = "x?"\nseeds = [1, 2]\n' + grid)
    code, _, err = muonlab("sweep", "question.toml", "--out", "sweep", "--workers", "1", "--device", "cpu")
    assert code == 0, err
    report = Path("sweep/report/report.md") if Path("sweep/report").is_dir() else next(Path("sweep").rglob("report.md"))
    assert "clip=none" in report.read_text().replace("\\", "")
