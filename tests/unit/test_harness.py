"""How likely a model finds given tokens, and what lm-evaluation-harness makes of that: the real package, on tasks of our own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from muonlab.evaluate.loading import LoadedRun, load_run
from muonlab.evaluate.scoring import score
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from tests.conftest import TINY

END = 256


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> LoadedRun:
    """A byte model with a context of 32 that has read one sentence for 12 steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scored")
    (folder / "corpus.txt").write_text("the polar factor of the gradient is the step " * 400)
    (folder / "tiny.toml").write_text(TINY.replace("corpus.txt", str(folder / "corpus.txt")))
    train(load_recipe(folder / "tiny.toml"), 0, folder / "run", threads=1)
    return load_run(folder / "run", threads=1)


@torch.no_grad()
def plain(run, before, after):
    """Each token's own full forward pass, with as much before it as the context holds."""
    total, greedy, tokens = 0.0, True, list(before)
    for token in after:
        logits = run.model(torch.tensor([tokens]))[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        tokens.append(token)
    return total, greedy


def test_scores_are_the_sums_of_each_tokens_own(run):
    pairs = [(b"the polar", b" factor"), (b"the", b"!"), (b"is ", b"the step the pol"), (b"q", b"e")]
    for batch in (1, 3, 64):
        found = score(run, pairs, batch=batch)
        for (before, after), one in zip(pairs, found, strict=True):
            total, greedy = plain(run, before, after)
            assert one.log_likelihood == pytest.approx(total, abs=1e-4)
            assert one.greedy == greedy
    with torch.no_grad():
        likeliest = int(run.model(torch.tensor([list(b"the ")]))[0, -1].argmax())
    assert score(run, [(b"the ", [likeliest])])[0].greedy
    assert not score(run, [(b"the ", [likeliest ^ 1])])[0].greedy


def test_what_the_context_cannot_hold_is_cut_at_the_beginning(run):
    long, after = b"the gradient is the polar factor of the step", b" is the"
    (one,) = score(run, [(long, after)])
    kept = (long + after)[-33:]
    total, _ = plain(run, kept[: -len(after)], after)
    assert one.log_likelihood == pytest.approx(total, abs=1e-4)
    with pytest.raises(ValueError, match="expected tokens before and after, got 0 and 1"):
        score(run, [(b"", b"b")])


def test_of_an_answer_longer_than_the_context_its_end_is_scored(run):
    answer = b" factor of the gradient is the step the polar"
    found = score(run, [(b"the", b"!"), (b"the polar", answer), (b"the", b"")])
    total, _ = plain(run, answer[-33:-32], answer[-32:])
    assert found[1].log_likelihood == pytest.approx(total, abs=1e-4)
    assert found[0].log_likelihood == pytest.approx(plain(run, b"the", b"!")[0], abs=1e-4)
    assert (found[2].log_likelihood, found[2].greedy) == (0.0, True)


# -- the real package -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness(run):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'muonlab[lm-eval]'")
    from muonlab.evaluate.harness import HarnessModel

    return HarnessModel(run, batch_size=4)


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_the_harness_gets_log_likelihoods(harness, run):
    found = harness.loglikelihood(asked(("the polar", " factor"), ("the polar ", "x"), ("", "the")), disable_tqdm=True)
    expected = [plain(run, b"the polar", b" factor"), plain(run, b"the polar", b" x"), plain(run, [END], b"the")]
    for (total, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy


def test_an_answer_longer_than_the_context_is_cut_and_counted(harness):
    before = harness.truncated
    long, empty, short = harness.loglikelihood(
        asked(("the polar", " factor of the gradient is the step of the polar"), ("the", ""), ("the", " step")), disable_tqdm=True
    )
    assert harness.truncated == before + 1
    assert long[0] < 0
    assert empty == (0.0, True)
    assert short[0] < 0


def test_a_context_of_spaces_is_the_end_of_a_document(harness, run):
    ((total, _),) = harness.loglikelihood(asked((" ", "the")), disable_tqdm=True)
    assert total == pytest.approx(plain(run, [END], b" the")[0], abs=1e-4)


def test_rolling_windows_count_each_token_once(harness, run):
    text = "the polar factor of the gradient is the step the polar factor"  # 61 tokens: two windows
    (found,) = harness.loglikelihood_rolling(asked((text,)))
    tokens = list(text.encode())
    first, _ = plain(run, [END], tokens[:32])
    second, _ = plain(run, tokens[61 - 33 : 32], tokens[32:])
    assert found == pytest.approx(first + second, abs=1e-3)


def test_the_harness_gets_texts(harness, monkeypatch):
    greedy = {"until": ["gradient"], "do_sample": False, "max_gen_toks": 12}
    texts = harness.generate_until(asked(("the polar", greedy), ("is the", {**greedy, "until": "t"}), ("the polar", greedy)))
    assert texts[0] == texts[2]
    assert len(texts[0]) <= 12
    assert "t" not in texts[1]
    before = harness.truncated
    told, real = [], harness.writer.generate
    monkeypatch.setattr(harness.writer, "generate", lambda prompts, **how: told.extend(prompts) or real(prompts, **how))
    text = "the gradient is the polar factor of the step"
    harness.generate_until(asked((text, greedy)))
    assert bytes(told[0]).decode() == text[-20:], "with room for 12 of 32 tokens"
    assert harness.truncated == before + 1


TASKS = {
    "sentences": """
task: sentences
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
""",
    "sums": """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
""",
}


@pytest.fixture
def tasks(tmp_path, harness):
    choices = [
        {"text": "the polar", "choices": [" factor", " qqqqqq"], "answer": 0},
        {"text": "the gradient is", "choices": [" XXXXX", " the s"], "answer": 1},
        {"text": "the", "choices": [" step ", "#######"], "answer": 1},  # the model will not say so
    ]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, choices)))
    sums = [{"question": "the", "answer": "1"}, {"question": "is", "answer": harness.writer.generate(["is"], max_tokens=8)[0]}]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    return tmp_path / "tasks"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch, request):
    if "harness" in request.fixturenames:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_tasks_of_the_harness_run(muonlab, run, tasks, tmp_path):
    command = ("eval", "lm-eval", run.folder, "--tasks", "sentences,sums", "--include", tasks, "--threads", "1")
    code, out, err = muonlab(*command, "--out", tmp_path / "found.json")
    assert code == 0, err
    assert "sentences: acc (none) 0.6667" in out
    assert "sums: exact_match (none) 0.5000" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["results"]["sentences"]["acc,none"] == pytest.approx(2 / 3)
    assert found["step"] == 12


def test_a_task_that_the_harness_does_not_know_is_named(muonlab, run, tasks, monkeypatch):
    from muonlab.evaluate import harness as adapter

    few = adapter._tasks.TaskManager
    monkeypatch.setattr(adapter._tasks, "TaskManager", lambda **rest: few(**{**rest, "include_defaults": False}))
    code, out, err = muonlab("eval", "lm-eval", run.folder, "--tasks", "sums,nothing", "--include", tasks)
    assert (code, out) == (2, "")
    assert "--tasks: expected names of lm-evaluation-harness's tasks, got nothing" in err


def test_the_harness_finds_the_model_by_its_name(run, tasks):
    import lm_eval

    manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = f"run={run.folder},checkpoint=9"
    found = lm_eval.simple_evaluate("muonlab", arguments, ["sentences"], task_manager=manager, device="cpu", batch_size=2)
    assert found is not None
    assert found["results"]["sentences"]["acc,none"] == pytest.approx(2 / 3)


def test_without_the_package_the_extra_is_named(muonlab, run, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval" or name == "muonlab.evaluate.harness"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = muonlab("eval", "lm-eval", run.folder, "--tasks", "gsm8k")
    assert (code, out) == (2, "")
    assert 'needs the package lm_eval, which is not installed: pip install "muonlab[lm-eval]"' in err
