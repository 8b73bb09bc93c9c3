"""`muonlab generate`, `eval loss`, `eval gsm8k` on runs that have learned something: sums that always make 7."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from muonlab.data.prepare import Plan, prepare
from muonlab.data.template import Template
from muonlab.data.tokenizers import ByteTokenizer, about
from muonlab.errors import InputError
from muonlab.evaluate import team
from muonlab.evaluate.generation import TextGenerator
from muonlab.evaluate.loading import load_run
from muonlab.evaluate.prompts import asked_by, left_empty
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train

TINY = """
[model]
layers = 1
width = 32
head_width = 16
context = 64
[data]
source = "prepared"
[optimizer]
lr = 0.02
aux_lr = 0.01
[train]
batch = 8
precision = "float32"
eval_tokens = 64
eval_every = 1000
"""


def problems(answer, numbers):
    return [{"question": f"{a} + {b}?", "answer": f"#### {answer}"} for a, b in numbers]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """seven, seven-2: runs that answer #### 7; eight: one that answers 8, by another template; raw: after one step; test.jsonl: of
    20 problems 15 have the answer 7, 5 the answer 8."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    pairs = [(a, b) for a in range(10) for b in range(10)]
    recipe = TINY
    (folder / "tiny.toml").write_text(recipe)
    for answer, template in ((7, None), (8, "Q: {{ question }} A: ")):
        write(folder / f"{answer}.jsonl", problems(answer, pairs))
        plan = Plan([str(folder / f"{answer}.jsonl")], columns=("question", "answer"), template=template)
        prepare(plan, folder / f"data{answer}")
    for name, answer, seed, steps in (("seven", 7, 0, 80), ("seven-2", 7, 1, 80), ("eight", 8, 0, 80), ("raw", 7, 0, 1)):
        settings = [f"data.files=['{folder}/data{answer}']", f"train.steps={steps}"]
        train(load_recipe(folder / "tiny.toml", settings), seed, folder / name, threads=1)
    tested = [(a, b) for a in range(4) for b in range(5)]
    write(folder / "test.jsonl", problems(7, tested[:15]) + problems(8, tested[15:]))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    for name in ("seven", "seven-2", "eight", "raw"):
        (tmp_path / name).symlink_to(made / name)
    shutil.copy(made / "test.jsonl", tmp_path)
    shutil.copy(made / "7.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(muonlab, *arguments):
    code, out, err = muonlab("eval", "gsm8k", *arguments, "--data", "test.jsonl", "--threads", "1", "--json")
    assert code == 0, err
    return json.loads(out), err


# -- generate -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_prompt_is_asked_in_the_template_of_training(here, muonlab):
    code, out, err = muonlab("generate", "seven", "--prompt", "3 + 4?", "--temperature", "0", "--threads", "1")
    assert code == 0, err
    assert out.endswith("#### 7\n")
    assert "tokens/s" in err
    code, out, _ = muonlab("generate", "eight", "--prompt", "3 + 4?", "--temperature", "0", "--json", "--threads", "1")
    found = json.loads(out)
    assert found["completions"][0]["prompt"] == "Q: 3 + 4? A: "
    assert found["completions"][0]["text"].endswith("#### 8")
    assert (found["completions"][0]["reason"], found["step"]) == ("end", 80)
    as_it_is = muonlab("generate", "eight", "--prompt", "3 + 4?", "--template", "{{ prompt }}", "--json", "--threads", "1")[1]
    assert json.loads(as_it_is)["completions"][0]["prompt"] == "3 + 4?"


def test_several_prompts_are_answered_together_and_alike(here, muonlab):
    how = ("--temperature", "1", "--seed", "3", "--threads", "1")
    code, out, err = muonlab("generate", "raw", "--prompt", "1 + 1?", "--prompt", "2 + 2?", "--max-tokens", "20", *how, "--json")
    assert code == 0, err
    both = [one["text"] for one in json.loads(out)["completions"]]
    for prompt, text in zip(("1 + 1?", "2 + 2?"), both, strict=True):
        assert muonlab("generate", "raw", "--prompt", prompt, "--max-tokens", "20", *how)[1] == text + "\n"
    shown = muonlab("generate", "raw", "--prompt", "1 + 1?", "--prompt", "2 + 2?", "--max-tokens", "20", *how)[1]
    assert shown == f"==> 1 + 1? <==\n{both[0]}\n\n==> 2 + 2? <==\n{both[1]}\n"
    other = muonlab("generate", "raw", "--prompt", "1 + 1?", "--max-tokens", "20", *how[:2], "--seed", "4", "--threads", "1")[1]
    assert other != both[0] + "\n"


def test_a_text_can_be_stopped_and_a_full_context_is_told(here, muonlab):
    code, out, _ = muonlab("generate", "seven", "--prompt", "3 + 4?", "--temperature", "0", "--stop", "####", "--threads", "1")
    assert code == 0
    assert "####" not in out
    code, out, err = muonlab("generate", "raw", "--max-tokens", "999", "--temperature", "3", "--threads", "1")
    assert code == 0
    assert "the text ends where the model's context of 64 tokens is full" in err or "64 tokens in" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: no such folder; expected that of a run"),
        (["seven", "--prompt", "x" * 99], "--prompt: expected at most 63 tokens, the model's context, got 100: 'xxx"),
        (["seven", "--temperature", "-1"], "--temperature: expected a number of at least 0"),
        (["seven", "--max-tokens", "0"], "--max-tokens: expected a number of at least 1"),
        (["seven", "--prompt", "a", "--template", "{{ nothing }}"], "unknown variable 'nothing'"),
        (["seven", "--tokenizer", "nothing.json"], "cannot read nothing.json"),
        (["seven", "--device", "tpu"], "--device: expected cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_gets_one_clear_message(here, muonlab, arguments, message):
    code, out, err = muonlab("generate", *arguments)
    assert (code, out) == (2, "\n" if "x" * 99 in arguments and out else out)
    assert message in err
    assert "Traceback" not in err


# -- loss -----------------------------------------------------------------------------------------------------------


def test_a_loss_on_other_prepared_data(here, made, muonlab):
    code, out, err = muonlab("eval", "loss", "seven", "--threads", "1")
    assert code == 0, err
    assert "(in training: " in out
    same = json.loads(muonlab("eval", "loss", "seven", "--data", made / "data7", "--json", "--threads", "1")[1])
    other = json.loads(muonlab("eval", "loss", "seven", "--data", made / "data8", "--json", "--threads", "1")[1])
    assert same["loss"] < other["loss"] - 0.1
    assert same["recorded"] is None
    learned = json.loads(
        muonlab("eval", "loss", "seven", "--data", made / "data7", "--split", "train", "--json", "--threads", "1")[1]
    )
    assert learned["targets"] > 5 * same["targets"]
    assert "expected a folder that `muonlab data prepare` made" in muonlab("eval", "loss", "seven", "--data", "raw")[2]


def test_data_of_another_tokenizer_is_refused(here, muonlab):
    pytest.importorskip("tokenizers")
    assert muonlab("data", "tokenizer", "7.jsonl", "--columns", "question,answer", "--vocab-size", "262", "--out", "t.json")[0] == 0
    prepared = ("data", "prepare", "7.jsonl", "--columns", "question,answer", "--tokenizer", "t.json", "--out", "d")
    assert muonlab(*prepared)[0] == 0
    code, _, err = muonlab("eval", "loss", "seven", "--data", "d")
    assert code == 2
    assert "d: prepared with another tokenizer (t.json" in err
    assert "prepare it again with --tokenizer seven/tokenizer.json" in err


# -- gsm8k ----------------------------------------------------------------------------------------------------------


def test_answers_are_counted(here, muonlab):
    figures, _ = ask(muonlab, "seven", "--out", "seven.jsonl")
    assert (figures["correct"], figures["problems"], figures["published"]) == (15, 20, 15)
    assert figures["low"] < 0.75 < figures["high"]
    assert figures["work"]["tokens"] > 20 * len("#### 7") - 1
    assert figures["work"]["tokens_per_second"] > 0
    assert figures["runs"][0]["step"] == 80
    rows = [json.loads(line) for line in Path("seven.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True] * 15 + [False] * 5
    eight, _ = ask(muonlab, "eight", "--out", "eight.jsonl")
    assert eight["correct"] == 5
    compared = json.loads(muonlab("eval", "compare", "eight.jsonl", "seven.jsonl", "--json")[1])
    assert (compared["paired"]["gained"], compared["paired"]["lost"]) == (15, 5)
    code, out, _ = muonlab("eval", "gsm8k", "seven", "--data", "test.jsonl", "--limit", "4", "--threads", "1")
    assert code == 0
    assert out.startswith("seven: 100.0 % right (4 of 4), 95 % CI ")


def test_the_batch_changes_nothing(here, muonlab):
    how = ("raw", "--samples", "3", "--temperature", "2", "--max-tokens", "12")
    for batch in (1, 7, 64):
        ask(muonlab, *how, "--batch", batch, "--out", f"by-{batch}.jsonl")
    assert Path("by-1.jsonl").read_text() == Path("by-7.jsonl").read_text() == Path("by-64.jsonl").read_text()
    ask(muonlab, *how, "--limit", 5, "--out", "first.jsonl")
    assert Path("first.jsonl").read_text().splitlines() == Path("by-64.jsonl").read_text().splitlines()[:5]
    ask(muonlab, *how, "--seed", 1, "--out", "other.jsonl")
    assert Path("other.jsonl").read_text() != Path("by-64.jsonl").read_text()
    texts = [sample["text"] for sample in json.loads(Path("by-7.jsonl").read_text().splitlines()[0])["samples"]]
    assert len(set(texts)) == 3


def test_runs_vote_each_in_its_own_template(here, muonlab):
    figures, _ = ask(muonlab, "--ensemble", "eight", "seven", "seven-2", "--out", "vote.jsonl")
    assert figures["correct"] == 15, "two sevens outvote an eight"
    row = json.loads(Path("vote.jsonl").read_text().splitlines()[0])
    assert row["votes"] == {"7": 2, "8": 1}
    assert [sample["model"] for sample in row["samples"]] == ["eight", "seven", "seven-2"]
    assert figures["together"] == "vote"
    several, _ = ask(muonlab, "seven", "--samples", "5", "--vote", "majority", "--temperature", "0.5")
    assert several["vote_share"] > 0.8
    assert several["correct"] == 15


def test_runs_average_their_logits(here, muonlab):
    figures, _ = ask(muonlab, "--average", "seven", "seven-2")
    assert (figures["correct"], figures["together"]) == (15, "average")
    assert len(figures["runs"]) == 2
    code, _, err = muonlab("eval", "gsm8k", "--average", "seven", "eight", "--data", "test.jsonl")
    assert code == 2
    assert "were trained on prompts of different form; give one with --template, or --ensemble" in err
    assert ask(muonlab, "--average", "seven", "eight", "--template", "{{ question }}\n")[0]["problems"] == 20


def test_runs_of_different_tokenizers_are_not_averaged(here, monkeypatch):
    runs = {name: load_run(name, threads=1) for name in ("seven", "seven-2")}
    other = SimpleNamespace(**{**about(ByteTokenizer()), "sha256": "another"})
    runs["seven-2"] = replace(runs["seven-2"], known_tokenizer=other)
    monkeypatch.setattr(team, "load_run", lambda folder, *_, **__: runs[str(folder)])
    with pytest.raises(InputError, match="seven and seven-2 have different tokenizers; their answers can vote: --ensemble"):
        team.gather([Path("seven"), Path("seven-2")], together="average")
    assert len(team.gather([Path("seven"), Path("seven-2")], together="vote").models) == 2


def test_a_question_takes_the_place_of_the_column_question_or_of_the_first():
    told = Template(("context", "question", "answer"), "{{ context }}|{{ question }}|")
    assert (asked_by(told)("x?"), left_empty(told)) == ("|x?|", ["context"])
    told = Template(("instruction", "input", "output"))
    assert (asked_by(told)("x?"), left_empty(told)) == ("x?\n", ["input"])


def test_few_shot_prompts_are_lm_evals_and_their_stops_too(here, muonlab):
    write(Path("one.jsonl"), [{"question": "?", "answer": "#### 7"}])
    figures, err = ask(muonlab, "raw", "--few-shot", "1", "--examples", "one.jsonl", "--max-tokens", "3")
    assert figures["settings"]["few_shot"] == 1
    assert "Question:" in figures["settings"]["stop"]
    assert "20 of 20 prompts are longer" not in err
    code, _, err = muonlab("eval", "gsm8k", "raw", "--data", "test.jsonl", "--few-shot", "5", "--examples", "7.jsonl")
    assert code == 2
    assert "every prompt is longer than the model's context of 64 tokens: give fewer examples" in err


def test_figures_are_shown_though_the_file_cannot_be_written(here, muonlab):
    before = sorted(here.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # as a disk that is full after 100 bytes
    try:
        code, out, err = muonlab("eval", "gsm8k", "seven", "--data", "test.jsonl", "--out", "out.jsonl", "--threads", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert out.startswith("seven: 75.0 % right (15 of 20)")
    assert err.splitlines()[-1] == "muonlab: out.jsonl: cannot be written: File too large"
    assert sorted(here.iterdir()) == before


def test_the_file_is_written_though_the_figures_cannot_be_shown(here, muonlab, monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr("muonlab.cli.evaluation.show", closed)
    monkeypatch.setattr("muonlab.cli.console._silence", lambda: None)
    assert muonlab("eval", "gsm8k", "seven", "--data", "test.jsonl", "--out", "out.jsonl", "--threads", "1")[0] == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 20


def test_texts_that_were_cut_are_told(here, muonlab):
    _, err = ask(muonlab, "seven", "--max-tokens", "3")
    assert "seven: 20 of 20 texts were cut off: --max-tokens allows longer ones" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the folder of a run, got none"),
        (["seven", "eight"], "got 2 runs: expected --ensemble (their answers vote) or --average (their logits)"),
        (["seven", "--ensemble"], "expected several runs with --ensemble or --average, got one"),
        (["seven", "seven", "--ensemble"], "seven: given twice; for several answers of one run there is --samples"),
        (["seven", "eight", "--ensemble", "--average"], "choose one"),
        (["seven", "--few-shot", "2"], "--few-shot K needs --examples FILE"),
        (["seven", "--samples", "3", "--temperature", "0"], "without a --temperature above 0 they would all be the same"),
        (["seven", "--batch", "0"], "--batch: expected a number of at least 1, got 0"),
        (["seven", "--out", "test.jsonl"], "test.jsonl: exists already"),
        (["seven", "--alpha", "2"], "--alpha: expected a level"),
        (["test.jsonl"], "test.jsonl: expected a folder, got a file"),
    ],
)
def test_evaluations_without_sense_are_refused(here, muonlab, arguments, message):
    before = sorted(here.iterdir())
    code, out, err = muonlab("eval", "gsm8k", *arguments, "--data", "test.jsonl")
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("how", ["--ensemble", "--average"])
def test_a_run_by_another_name_is_the_same_run(here, made, muonlab, how):
    shutil.copytree(made / "seven", here / "copy")
    for other in (here / "seven", Path("seven-2/../seven"), made / "seven", "copy"):
        code, out, err = muonlab("eval", "gsm8k", how, "seven", other, "--data", "test.jsonl")
        assert (code, out) == (2, "")
        assert f"{other}: given twice (as seven, too); for several answers of one run there is --samples" in err


def test_ctrl_c_leaves_nothing_half_written(here, muonlab, monkeypatch):
    calls, real = [], TextGenerator.generate

    def generate(self, prompts, **how):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, prompts, **how)

    monkeypatch.setattr(TextGenerator, "generate", generate)
    before = sorted(here.iterdir())
    found = muonlab("eval", "gsm8k", "raw", "--data", "test.jsonl", "--out", "out.jsonl", "--batch", "6", "--threads", "1")
    assert found[:2] == (130, "")
    assert found[2].splitlines()[-1] == "muonlab: interrupted"
    assert calls == [6, 6, 6]
    assert sorted(here.iterdir()) == before


def test_the_runs_have_learned_their_templates(here):
    assert [template.text for template in load_run("eight", threads=1).templates()] == ["Q: {{ question }} A: "]
    assert [template.columns for template in load_run("seven", threads=1).templates()] == [("question", "answer")]
