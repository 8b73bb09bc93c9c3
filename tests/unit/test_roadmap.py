"""Roadmaps: real runs of tiny models, asked real problems; what stages are made of, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from muonlab.errors import InputError
from muonlab.evaluate.accuracy import compare
from muonlab.evaluate.answers import vote
from muonlab.evaluate.roadmap import Answers, load_roadmap, travel
from muonlab.evaluate.roadmap_report import steps, write_report
from muonlab.evaluate.stages import gain, standing

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
seeds = [1]
[[stages]]
name = "wide"
model = "wide"
[[stages]]
name = "both vote"
model = "wide"
together = "vote"
samples = 2
temperature = 1.5
[[stages]]
name = "averaged"
model = "wide"
together = "average"
against = "wide"
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


def test_stages_are_runs_by_themselves_or_votes_over_their_answers(made):
    folder, travelled = made
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["answers", "small-1", "wide-1", "wide-2"]
    samples = {name: [len(member.results[0].samples) for member in members] for name, members in travelled.stages.items()}
    assert samples == {"one": [1], "wide": [1, 1], "both vote": [4], "averaged": [1]}
    for result in travelled.stages["both vote"][0].results:
        assert result.vote == vote([sample.answer for sample in result.samples])
        assert [sample.model for sample in result.samples] == ["wide-1-2x1.5"] * 2 + ["wide-2-2x1.5"] * 2
    assert all(member.work["tokens"] > 0 for members in travelled.stages.values() for member in members)


def test_what_is_there_is_neither_trained_nor_asked_again(made, monkeypatch):
    folder, travelled = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    told: list[str] = []
    again = travel(load_roadmap(folder / "words.toml"), folder / "out", threads=1, answering=lambda name, *_: told.append(name))
    assert told == []
    assert again.stages == travelled.stages


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


def counts(*correct, n=80):
    """(members, problems): of each member so many right, the first ones."""
    return np.array([[i < c for i in range(n)] for c in correct])


def test_another_model_is_judged_over_seeds_and_not_by_one_lucky_seed():
    """A vote is judged against the mean of its runs on the same problems; another model's runs by the spread over seeds."""
    base, larger = counts(40, 44, 39), counts(45, 60, 52)
    found = gain(base, larger, same_runs=False)
    expected = stats.ttest_ind([45 / 80, 60 / 80, 52 / 80], [40 / 80, 44 / 80, 39 / 80], equal_var=False)
    assert found.over == "seeds"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    vote_of_them = counts(58)
    found = gain(larger, vote_of_them, same_runs=True)
    each = vote_of_them[0] - larger.mean(0)
    assert found.over == "problems"
    assert found.difference == pytest.approx(58 / 80 - (45 + 60 + 52) / 240)
    assert found.p == pytest.approx(stats.ttest_rel(vote_of_them[0].astype(float), larger.mean(0)).pvalue)
    assert found.low == pytest.approx(each.mean() - stats.t.ppf(0.975, 79) * each.std(ddof=1) / 80**0.5)
    single = gain(counts(50), counts(56), same_runs=False)
    assert single.p == compare(counts(50)[0].tolist(), counts(56)[0].tolist()).p  # McNemar's
    assert gain(larger, larger, same_runs=True, margin=0.01).equivalent
    assert not gain(base, larger, same_runs=False, margin=0.01).equivalent
    assert gain(counts(40, n=8000), counts(44, n=8000), same_runs=True, margin=0.01).equivalent


def test_the_interval_of_runs_is_over_seeds_and_of_one_answerer_over_problems():
    several, one = standing(counts(40, 44, 39)), standing(counts(40))
    spread = stats.t.interval(0.95, 2, loc=41 / 80, scale=stats.sem([40 / 80, 44 / 80, 39 / 80]))
    assert (several.low, several.high) == pytest.approx(spread)
    assert (several.over, one.over) == ("seeds", "problems")
    assert (one.low, one.high) == pytest.approx(tuple(proportion_confint(40, 80, method="wilson")))


def test_verdicts_are_corrected_for_the_number_of_stages(made):
    """Alone, 4 gained and 0 lost of 80 have p = 0.04; as one of three comparisons they do not show a difference."""
    _, travelled = made
    stages = {}
    for name, correct in {"one": (30,), "wide": (60, 60), "both vote": (64,), "averaged": (60,)}.items():
        stages[name] = [some_right(travelled.stages["one"][0], c) for c in correct]
    judged = {step.stage.name: step for step in steps(replace(travelled, stages=stages))}
    verdicts = {name: step.verdict for name, step in judged.items()}
    assert verdicts == {"one": "baseline", "wide": "better", "both vote": "undecided", "averaged": "undecided"}
    alone = gain(counts(60, 60), counts(64), same_runs=True)
    assert alone.p < 0.05
    assert judged["both vote"].gain == alone
    assert judged["both vote"].adjusted == pytest.approx(2 * alone.p)  # the second smallest of three
    assert judged["averaged"].before.name == "wide"


def some_right(answers, correct):
    """80 results, so many of them right."""
    made = []
    for i, result in enumerate(answers.results * 10):
        made.append(replace(result, vote=vote([result.problem.gold if i < correct else "-1"])))
    return Answers(made, answers.work)


def test_the_report_has_every_stage_and_run(made, tmp_path):
    _, travelled = made
    judged = write_report(travelled, tmp_path)
    text, found = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    for step, stage in zip(judged, found["stages"], strict=True):
        assert f"| {step.stage.name} |" in text
        assert stage["value"] == step.found.value
    assert [(run["model"], run["seed"]) for run in found["runs"]] == [("small", 1), ("wide", 1), ("wide", 2)]
    assert (travelled.runs["wide", 1]["provenance"]["git"] or {"commit": "unknown"})["commit"] in text
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('model = "small"', 'model = "smal"'), "stages.one: unknown model 'smal'; did you mean 'small'"),
        (("seeds = [1]\n", "seeds = [3]\n"), r"stages.one: seeds: expected some of \[1, 2\], got \[3\]"),
        (('together = "vote"', 'together = "vote"\nseeds = [1]'), "stages.both vote: together: there is one run"),
        (("temperature = 1.5", ""), "stages.both vote: samples: with temperature 0 they would all be the same"),
        (('against = "wide"', 'against = "averaged"'), "stages.averaged: against: expected an earlier stage, got 'averaged'"),
        (('name = "wide"', 'name = "one"'), "stages: 'one' is there twice"),
        (("width = 32", "widht = 32"), "models.wide: model.widht: unknown key; did you mean 'width'"),
        (("limit = 8", "limti = 8"), "problems.limti: unknown key"),
        (("seeds = [1, 2]\n[models", "seeds = [1, 1]\n[models"), r"seeds: expected each once, got \[1, 1\]"),
        (("seeds = [1]\n", "seeds = [1, 1]\n"), "stages.one: seeds: expected each once"),
        (("[models.small]", '[models."../small"]'), "expected letters, digits"),
        (('name = "both vote"', 'name = "both | vote"'), "expected no | and no line end".replace("|", "[|]")),
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


def test_the_committed_report_is_of_the_committed_roadmap():
    """Its runs are those of the recipes as they are now, trained by committed code; its stages are the file's."""
    loaded, found = load_roadmap(ROOT / "roadmaps/words.toml"), json.loads((ROOT / "roadmaps/words/results.json").read_text())
    assert found["question"] == loaded.config.question
    assert [stage["name"] for stage in found["stages"]] == [stage.name for stage in loaded.config.stages]
    assert {(run["model"], run["seed"]): run["id"] for run in found["runs"]} == {
        (model, seed): loaded.recipes[model].run_id(seed) for model in loaded.config.models for seed in loaded.config.seeds
    }
    assert not any(run["provenance"]["git"]["dirty"] for run in found["runs"])
    assert {**loaded.config.problems.model_dump(mode="json"), "asked": 500} == found["problems"]


def test_the_command_line_goes_on_where_it_was_and_prints_the_answer(made, monkeypatch, muonlab, tmp_path):
    """One run, trained and asked by one command; with another seed the command asks that one alone."""
    folder, _ = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    text = ROADMAP[: ROADMAP.index('[[stages]]\nname = "wide"')].replace("seeds = [1, 2]", "seeds = [1]")
    (tmp_path / "one.toml").write_text(text)
    line = ("eval", "roadmap", tmp_path / "one.toml", "--out", tmp_path / "out", "--threads", "1")
    code, out, err = muonlab(*line)
    assert code == 0, err
    assert "one: " in out
    assert "report.md" in err
    (tmp_path / "one.toml").write_text(text.replace("seeds = [1]", "seeds = [1, 2]", 1).replace("seeds = [1]\n", ""))
    code, out, err = muonlab(*line, "--json")
    assert code == 0, err
    assert json.loads(out)["stages"][0]["verdict"] == "baseline"
    assert sorted(path.name for path in (tmp_path / "out" / "answers").iterdir()) == ["small-1.jsonl", "small-2.jsonl"]
    assert muonlab("eval", "roadmap", tmp_path / "none.toml")[0] == 2


def test_levels_may_have_names(made, tmp_path):
    _, travelled = made
    stages = {}
    for name, members in travelled.stages.items():
        named = [
            [replace(r, problem=replace(r.problem, level=("easy", "hard")[i % 2])) for i, r in enumerate(m.results)]
            for m in members
        ]
        stages[name] = [Answers(results, member.work) for results, member in zip(named, members, strict=True)]
    write_report(replace(travelled, stages=stages), tmp_path)
    assert "| stage | level easy | level hard |" in (tmp_path / "report.md").read_text()
