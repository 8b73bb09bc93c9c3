"""Roadmaps: real runs of tiny models, asked real problems; what stages are made of, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.evaluate.accuracy import compare
from muonlab.evaluate.answers import vote
from muonlab.evaluate.roadmap import Answers, load_roadmap, travel
from muonlab.evaluate.roadmap_report import steps, write_report

ROOT = Path(__file__).parents[2]
ROADMAP = """
question = "What does it add?"
recipe = "recipe.toml"
seeds = [1, 2]
[models.small]
[models.wide]
model = { width = 32 }
[problems]
data = ["arithmetic-words"]
split = "test"
limit = 8
max_tokens = 6
rule = "flexible"
[[stages]]
name = "one"
model = "small"
[[stages]]
name = "wide"
model = "wide"
[[stages]]
name = "both vote"
model = "wide"
seeds = [1, 2]
samples = 2
temperature = 1.5
[[stages]]
name = "averaged"
model = "wide"
seeds = [1, 2]
average = true
against = "one"
"""
RECIPE = """
[data]
source = "rows"
files = ["arithmetic-words"]
columns = ["question", "solution"]
limit = 200
[model]
layers = 1
width = 16
head_width = 16
context = 128
[optimizer]
name = "muon"
[train]
steps = 6
batch = 4
eval_tokens = 128
precision = "float32"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roadmap")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "words.toml").write_text(ROADMAP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        travelled = travel(load_roadmap(folder / "words.toml"), folder / "out", threads=1)
    return folder, travelled


def test_stages_are_votes_over_the_answers_of_their_runs(made):
    folder, travelled = made
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["answers", "small-1", "small-2", "wide-1", "wide-2"]
    samples = {name: len(answers.results[0].samples) for name, answers in travelled.stages.items()}
    assert samples == {"one": 1, "wide": 1, "both vote": 4, "averaged": 1}
    assert travelled.stages["wide"].results == travelled.greedy["wide", 1].results
    for result in travelled.stages["both vote"].results:
        assert result.vote == vote([sample.answer for sample in result.samples])
    assert all(answers.work["tokens"] > 0 for answers in travelled.stages.values())


def test_what_is_there_is_neither_trained_nor_asked_again(made, monkeypatch):
    folder, travelled = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    told: list[str] = []
    again = travel(load_roadmap(folder / "words.toml"), folder / "out", threads=1, answering=lambda name, *_: told.append(name))
    assert told == []
    texts = [[[s.text for s in r.samples] for r in t.stages["both vote"].results] for t in (travelled, again)]
    assert texts[0] == texts[1]
    assert [r.correct for r in again.stages["averaged"].results] == [r.correct for r in travelled.stages["averaged"].results]


def test_answers_to_other_problems_or_damaged_ones_are_refused(made, monkeypatch, tmp_path):
    folder, _ = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "words.toml"
    file.write_text(ROADMAP.replace("limit = 8", "limit = 7"))
    with pytest.raises(InputError, match="other answers than this roadmap asks for"):
        travel(load_roadmap(file), tmp_path / "copy" / "out", threads=1)
    file.write_text(ROADMAP)
    answers = tmp_path / "copy" / "out" / "answers" / "small-1.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="damaged; delete it"):
        travel(load_roadmap(file), tmp_path / "copy" / "out", threads=1)


def right(answers, correct):
    """80 results, so many of them right."""
    made = []
    for i, result in enumerate(answers.results * 10):
        made.append(replace(result, vote=vote([result.problem.gold if i < correct else "-1"])))
    return Answers(made, answers.work)


def test_verdicts_are_corrected_for_the_number_of_stages(made):
    """Alone, 6 gained and 0 lost of 80 have p = 0.03; as one of three comparisons they do not show a difference."""
    _, travelled = made
    counts = {"one": 30, "wide": 60, "both vote": 66, "averaged": 30}
    stages = {name: right(answers, counts[name]) for name, answers in travelled.stages.items()}
    judged = {step.stage.name: step for step in steps(replace(travelled, stages=stages))}
    verdicts = {name: step.verdict for name, step in judged.items()}
    assert verdicts == {"one": "baseline", "wide": "better", "both vote": "undecided", "averaged": "undecided"}
    alone = compare([i < 60 for i in range(80)], [i < 66 for i in range(80)])
    assert alone.verdict == "better"
    assert judged["both vote"].paired == alone
    assert judged["both vote"].adjusted == pytest.approx(2 * alone.p)  # the second smallest of three
    assert judged["averaged"].before.name == "one"


def test_the_report_has_every_stage_and_run(made, tmp_path):
    _, travelled = made
    judged = write_report(travelled, tmp_path)
    text, found = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    for step, stage in zip(judged, found["stages"], strict=True):
        assert f"| {step.stage.name} |" in text
        assert stage["correct"] == step.found.correct
    assert [(run["model"], run["seed"]) for run in found["runs"]] == [("small", 1), ("small", 2), ("wide", 1), ("wide", 2)]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('model = "small"', 'model = "smal"'), "stages.one: unknown model 'smal'; did you mean 'small'"),
        (("seeds = [1, 2]\nsamples", "seeds = [1, 3]\nsamples"), r"stages.both vote: seeds: expected some of \[1, 2\], got \[3\]"),
        (("temperature = 1.5", ""), "stages.both vote: samples: with temperature 0 they would all be the same"),
        (('against = "one"', 'against = "averaged"'), "stages.averaged: against: expected an earlier stage, got 'averaged'"),
        (('name = "wide"', 'name = "one"'), "stages: 'one' is there twice"),
        (("width = 32", "widht = 32"), "models.wide: model.widht: unknown key; did you mean 'width'"),
        (("limit = 8", "limti = 8"), "problems.limti: unknown key"),
        (('recipe = "recipe.toml"', 'recipe = "recip.toml"'), "recip.toml: no such file"),
    ],
)
def test_a_wrong_file_is_explained(change, message, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert change[0] in ROADMAP
    (tmp_path / "words.toml").write_text(ROADMAP.replace(*change, 1))
    with pytest.raises(InputError, match=message):
        load_roadmap(tmp_path / "words.toml")


def test_the_shipped_roadmap_reads_with_all_its_profiles():
    path = ROOT / "roadmaps/words.toml"
    base = load_roadmap(path)
    assert base.recipes["larger"].model.width > base.recipes["base"].model.width
    for profile in base.config.profiles:
        loaded = load_roadmap(path, profile=profile)
        assert loaded.config.problems.data == ("openai/gsm8k",)
        assert all(recipe.data.files == ("TIGER-Lab/MathInstruct",) for recipe in loaded.recipes.values())
    with pytest.raises(InputError, match="unknown profile 'gpuu'; did you mean 'gpu'"):
        load_roadmap(path, profile="gpuu")
