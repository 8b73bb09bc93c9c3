"""Test problems, prompts, votes of several models, the file of an evaluation and the comparison of two."""

from __future__ import annotations

import json
from random import Random

import pytest
from scipy import stats

from muonlab.data.arithmetic import arithmetic_words, write_arithmetic_words
from muonlab.data.prepare import Plan, prepare
from muonlab.errors import InputError
from muonlab.evaluate.gsm8k import FEW_SHOT_STOPS, ZERO_SHOT, Sampling, evaluate, few_shot, read_problems, summarize
from muonlab.evaluate.results import write_results
from tests.reference.word_problems import solve


class Solver:
    """Solves arithmetic-words by its verbs. `wrong` of its answers are off by one; sampled, it errs anew for each seed."""

    def __init__(self, wrong=0.0, form="#### {}", silent=0.0):
        self.wrong, self.form, self.silent = wrong, form, silent
        self.calls = []

    def generate(self, prompts, *, max_tokens, temperature, top_p, seed, stop):
        self.calls.append((len(prompts), max_tokens, temperature, top_p, seed, stop))
        return [self.say(prompt, seed if temperature else 0) for prompt in prompts]

    def say(self, prompt, seed):
        question = prompt.split("Question: ")[-1].removesuffix("\nAnswer:").strip()
        random = Random(f"{seed} {question}")
        answer = solve(question) + (random.random() < self.wrong)
        return "I do not know." if random.random() < self.silent else "So\n" + self.form.format(f"{answer:,}")


@pytest.fixture
def test_file(tmp_path):
    write_arithmetic_words(tmp_path / "test.jsonl", 150, levels=(1, 2, 3), seed=4, split="test")
    return tmp_path / "test.jsonl"


@pytest.fixture
def problems(test_file):
    return read_problems([str(test_file)])


def test_a_solver_of_the_task_is_always_right(problems):
    results = evaluate(problems, {"solver": Solver()})
    figures = summarize(results)
    assert (figures["correct"], figures["problems"], figures["published"], figures["without_answer"]) == (150, 150, 150, 0)
    assert set(figures["levels"]) == {"1", "2", "3"}
    assert sum(part["problems"] for part in figures["levels"].values()) == 150
    low = stats.binomtest(150, 150).proportion_ci(method="wilson").low
    assert figures["low"] == pytest.approx(low)


def test_answers_are_counted_one_by_one(problems):
    results = evaluate(problems, {"solver": Solver(wrong=0.3, silent=0.1)})
    for result in results:
        text = result.samples[0].text
        said = int(text.split("#### ")[1].replace(",", "")) if "####" in text else None
        assert result.correct == (said == solve(result.problem.question))
        assert result.vote.winner == (None if said is None else str(said))
    figures = summarize(results)
    assert figures["correct"] == sum(result.correct for result in results) < 120
    assert figures["without_answer"] == sum("####" not in result.samples[0].text for result in results) > 0


def test_a_vote_of_several_samples_is_right_more_often(problems):
    once = evaluate(problems, {"solver": Solver(wrong=0.3)}, sampling=Sampling(temperature=1.0))
    often = evaluate(problems, {"solver": Solver(wrong=0.3)}, sampling=Sampling(samples=9, temperature=1.0))
    assert all(len(result.samples) == 9 for result in often)
    assert sum(r.correct for r in often) > sum(r.correct for r in once) + 10
    figures = summarize(often)
    assert figures["published"] is None, "a vote is no text"
    assert 0.6 < figures["vote_share"] < 0.85
    again = evaluate(problems, {"solver": Solver(wrong=0.3)}, sampling=Sampling(samples=9, temperature=1.0))
    assert [r.row() for r in again] == [r.row() for r in often]
    other = evaluate(problems, {"solver": Solver(wrong=0.3)}, sampling=Sampling(samples=9, temperature=1.0, seed=1))
    assert [r.row() for r in other] != [r.row() for r in often]


def test_models_vote_together_the_first_breaks_ties(problems):
    right, wrong, silent = Solver(), Solver(wrong=1.0), Solver(silent=1.0)
    results = evaluate(problems, {"wrong": wrong, "right": right})
    assert not any(result.correct for result in results)
    assert all(len(result.vote.tied) == 2 for result in results)
    assert summarize(results)["ties"] == 150
    assert all(r.correct for r in evaluate(problems, {"right": right, "wrong": wrong}))
    assert all(r.correct for r in evaluate(problems, {"silent": silent, "right": right})), "no answer is no vote"
    three = evaluate(problems, {"wrong": wrong, "right": right, "dollars": Solver(form="#### {}.00")})
    assert all(r.correct and r.vote.counts[r.problem.gold] == 2 for r in three), "18 and 18.00 vote together"
    assert [sample.model for sample in three[0].samples] == ["wrong", "right", "dollars"]


def test_rules_read_texts_differently(problems):
    talker = {"talker": Solver(form="The answer is {}.")}
    assert summarize(evaluate(problems, talker, rule="flexible"))["correct"] == 150
    strict = summarize(evaluate(problems, talker, rule="strict"))
    assert (strict["correct"], strict["without_answer"], strict["invalid_samples"]) == (0, 150, 1.0)
    cents = summarize(evaluate(problems, {"cents": Solver(form="#### {}.00")}))
    assert (cents["correct"], cents["published"]) == (150, 0), "GSM8K's own script compares texts"


def test_settings_reach_the_model(problems):
    model = Solver()
    told = []
    sampling = Sampling(samples=2, temperature=0.7, top_p=0.9, max_tokens=99, stop=("x",))
    evaluate(problems, {"m": model}, sampling=sampling, on_progress=told.append)
    assert told == [64, 128, 150]
    assert [call[:4] + call[5:] for call in model.calls[:2]] == [(64, 99, 0.7, 0.9, ("x",))] * 2
    assert len({call[4] for call in model.calls}) == 2, "each sample has a stream of its own"


# -- prompts --------------------------------------------------------------------------------------------------------


def test_the_prompt_is_what_preparation_trains_on(test_file, problems, tmp_path):
    done = prepare(Plan((str(test_file),), columns=("question", "answer"), held_out=0.0), tmp_path / "prepared")
    for i, problem in enumerate(problems):
        tokens, leading = done.train.tokens(i), done.train.masked(i)
        assert done.tokenizer.decode(tokens[:leading]) == ZERO_SHOT(problem.row)
        assert done.tokenizer.decode(tokens[leading:]) == problem.solution


def test_few_shot_prompts_are_lm_evals(problems):
    examples = problems[:20]
    prompt = few_shot(examples, problems[20:], 2, seed=3)(problems[25].row)
    first, second, asked = prompt.split("\n\n")
    shown = [f"Question: {p.question}\nAnswer: {p.solution}" for p in examples]
    assert first in shown
    assert second in shown
    assert first != second
    assert asked == f"Question: {problems[25].question}\nAnswer:"
    assert few_shot(examples, problems[20:], 2, seed=3)(problems[25].row) == prompt
    assert few_shot(examples, problems[20:], 2, seed=4)(problems[25].row) != prompt
    assert "Question:" in FEW_SHOT_STOPS
    results = evaluate(problems[20:], {"solver": Solver()}, prompt=few_shot(examples, problems[20:], 5))
    assert all(result.correct for result in results)


def test_an_example_is_never_a_problem_that_is_tested(problems):
    for seed in range(20):
        assert problems[0].question not in few_shot(problems[:6], problems[:1], 5, seed=seed)(problems[0].row).rpartition("\n\n")[0]
    with pytest.raises(InputError, match="expected at least 5 examples that are not tested, got 4"):
        few_shot(problems[:5], problems[:1], 5)


# -- files ----------------------------------------------------------------------------------------------------------


def test_problems_are_read_as_gsm8k_has_them(tmp_path):
    rows = [{"question": "a?", "answer": "x = 1\n#### 1,080"}, {"question": "b?", "answer": "#### -2"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_problems([str(tmp_path / "x.jsonl")])
    assert [(p.question, p.solution, p.gold, p.level) for p in found] == [
        ("a?", "x = 1\n#### 1,080", "1080", None),
        ("b?", "#### -2", "-2", None),
    ]


def test_levels_are_numbers_or_names_in_one_order(tmp_path):
    class One:
        def generate(self, prompts, **how):
            return ["#### 1"] * len(prompts)

    levels = ["hard", 10, 2, None, "easy", "2"]  # 2 and "2" are one
    rows = [{"question": f"{i}?", "answer": "#### 1", "level": level} for i, level in enumerate(levels)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = read_problems([str(tmp_path / "x.jsonl")])
    assert [problem.level for problem in problems] == levels
    found = summarize(evaluate(problems, {"m": One()}))["levels"]
    assert {level: part["problems"] for level, part in found.items()} == {"2": 2, "10": 1, "easy": 1, "hard": 1}
    for way in (rows, rows[::-1]):
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, way)))
        found = summarize(evaluate(read_problems([str(tmp_path / "x.jsonl")]), {"m": One()}))
        assert list(found["levels"]) == ["2", "10", "easy", "hard"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a?", "answer": "The answer is 1"}', "row 1: expected an answer that ends in #### N"),
        ('{"question": "a?"}', "row 1: expected text in the columns question and answer, got the columns question"),
        ('{"question": "a?", "answer": 1}', "expected text in the columns question and answer"),
        ('{"question": "a?", "answer": "#### 1", "level": [1]}', r"row 1: expected a whole number or text in .* level, got \[1\]"),
        ('{"question": "a?", "answer": "#### 1", "level": true}', "row 1: expected a whole number or text in the column level"),
        ('{"question": "a?", "answer": "#### 1"}\n' * 2, "row 2: this question occurs twice"),
        ("", "expected problems, got none"),
    ],
)
def test_what_is_no_test_is_refused(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_problems([str(tmp_path / "x.jsonl")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 5}, "--samples 5: without a --temperature above 0 they would all be the same"),
        ({"samples": 0}, "--samples: expected a number of at least 1, got 0"),
        ({"temperature": -1.0}, "--temperature: expected a number of at least 0"),
        ({"temperature": float("nan")}, "--temperature: expected a number of at least 0"),
        ({"top_p": 0.0}, "--top-p: expected a number above 0, at most 1"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


# -- comparison -----------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(problems, tmp_path):
    """evaluated(name, **how it errs) -> the file of its evaluation"""

    def run(name, *, rule="official", **errs):
        write_results(tmp_path / name, evaluate(problems, {name: Solver(**errs)}, rule=rule))
        return tmp_path / name

    return run


def test_two_models_are_compared_problem_by_problem(muonlab, evaluated):
    good, bad = evaluated("good", wrong=0.2), evaluated("bad", wrong=0.5)
    code, out, err = muonlab("eval", "compare", bad, good, "--json")
    assert code == 0, err
    found = json.loads(out)
    right = [[json.loads(line)["correct"] for line in path.read_text().splitlines()] for path in (bad, good)]
    gained, lost = (sum(x == (k, 1 - k) for x in zip(*right, strict=True)) for k in (False, True))
    assert (found["paired"]["gained"], found["paired"]["lost"]) == (gained, lost)
    assert found["paired"]["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert (found["a"]["correct"], found["b"]["correct"]) == (sum(right[0]), sum(right[1]))
    assert found["paired"]["verdict"] == "better"
    code, out, _ = muonlab("eval", "compare", good, bad)
    assert code == 0
    assert f"{bad} against {good}: worse (difference -" in out
    assert f"({sum(right[0])} of 150)" in out
    assert "undecided" in muonlab("eval", "compare", good, good)[1]
    assert "equivalent" in muonlab("eval", "compare", good, good, "--margin", "0.05")[1]


def test_what_differs_besides_is_told(muonlab, evaluated, problems, tmp_path):
    a, b = evaluated("a"), evaluated("b", rule="flexible")
    assert "note: answers were read by different rules: official and flexible" in muonlab("eval", "compare", a, b)[2]
    write_results(tmp_path / "c", evaluate(problems, {"m": Solver()}, sampling=Sampling(samples=3, temperature=1.0)))
    assert "note: votes of different size: 1 and 3 samples" in muonlab("eval", "compare", a, tmp_path / "c")[2]


def test_files_of_other_problems_are_not_compared(muonlab, evaluated, tmp_path):
    a = evaluated("a")
    lines = a.read_text().splitlines()
    (tmp_path / "b").write_text("\n".join(lines[:-2]))
    code, out, err = muonlab("eval", "compare", a, tmp_path / "b")
    assert (code, out) == (2, "")
    assert "got 148 in both, 2 only in" in err
    (tmp_path / "c").write_text(a.read_text().replace('"gold": "', '"gold": "1', 1))
    assert "different right answers to the same problem" in muonlab("eval", "compare", a, tmp_path / "c")[2]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("", [], "expected the answers to some problems, got an empty file"),
        ("{}", [], "line 1: expected a line of muonlab eval gsm8k's --out, got '{}'"),
        ('{"problem": "a", "correct": 1}', [], "line 1: expected a line of"),
        ('{"problem": "a", "correct": true, "samples": null}', [], "line 1: expected a line of"),
        ('{"problem": "a", "correct": true, "samples": 3}', [], "line 1: expected a line of"),
        ('{"problem": "a", "correct": true}\n' * 2, [], "line 2: the problem a for a second time"),
        ("", ["--alpha", "5"], "--alpha: expected a level between 0 and 0.5"),
        ("", ["--margin", "2"], "--margin: expected a difference between 0 and 1"),
    ],
)
def test_bad_files_get_one_clear_message(muonlab, tmp_path, text, flags, message):
    (tmp_path / "x").write_text(text)
    code, out, err = muonlab("eval", "compare", tmp_path / "x", tmp_path / "x", *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert "cannot be read: No such file" in muonlab("eval", "compare", tmp_path / "none", tmp_path / "x")[2]
    assert len(list(arithmetic_words(1))) == 1
