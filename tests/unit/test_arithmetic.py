"""arithmetic-words: every answer recomputed from the worked solution, and from the question alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import pairwise

import pytest

from muonlab.data import arithmetic_grammar as grammar
from muonlab.data.arithmetic import arithmetic_words, work
from muonlab.data.arithmetic_grammar import Story
from muonlab.errors import InputError
from tests.reference.word_problems import solve

LEVELS = (1, 2, 3)


def made(rows, **options):
    return list(arithmetic_words(rows, **options))


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_step_of_every_worked_solution_is_right(split):
    for problem in made(3000, levels=LEVELS, seed=3, split=split):
        *steps, last = problem.answer.split("\n")
        values = []
        for step in steps:
            shown, span, value = re.fullmatch(r"(\d+ [+\-*/] \d+) = <<(.*)>>(\d+)", step).groups()
            assert span == shown.replace(" ", "") + "=" + value
            x, sign, y = shown.split()
            assert {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y), "/": int(x) / int(y)}[sign] == int(value)
            values.append(value)
        assert last == f"#### {values[-1]}"
        assert min(map(int, values)) >= 0


@pytest.mark.parametrize("level", LEVELS)
def test_the_answer_is_what_the_question_asks_for(level):
    for problem in made(3000, levels=(level,), seed=level):
        assert problem.answer.endswith(f"\n#### {solve(problem.question)}"), problem.question


def test_an_operation_is_worked_out_place_by_place_to_its_own_value():
    for x in [*range(0, 1000, 7), 4999]:
        for y in range(1, 100, 3):
            assert work(x, "+", y)[-1][3] == x + y
            assert work(x * y, "/", y)[-1][3] == x if x else True
            assert work(x, "*", y)[-1][3] == x * y
            assert x < y or work(x, "-", y)[-1][3] == x - y
    assert work(27, "+", 45) == [(27, "+", 40, 67), (67, "+", 5, 72)]
    assert work(252, "/", 7)[-1] == (30, "+", 6, 36)


def test_train_and_test_share_no_question_and_no_operation_whatever_their_seeds():
    train = [p for seed in range(3) for p in made(4000, levels=LEVELS, seed=seed)]
    test = [p for seed in range(3) for p in made(1000, levels=LEVELS, seed=seed, split="test")]
    hashes = [{hashlib.sha256(p.question.encode()).digest() for p in side} for side in (train, test)]
    assert not hashes[0] & hashes[1]
    trained = {operation for p in train for operation in p.operations}
    trained |= {(y, sign, x) for x, sign, y in trained if sign in "+*"}
    for p in test:
        assert any(operation not in trained for operation in p.operations)
        if p.level == 1:
            assert len(p.operations) == 1


def test_equal_arguments_give_equal_problems_and_a_longer_list_begins_with_the_shorter():
    assert made(50, levels=LEVELS, seed=5) == made(200, levels=LEVELS, seed=5)[:50]
    assert made(50, levels=LEVELS, seed=5) != made(50, levels=LEVELS, seed=6)


def test_there_is_variety():
    problems = made(20_000, levels=LEVELS, seed=1)
    assert len({p.question for p in problems}) == len(problems)
    wordings = Counter(p.level for p in problems)
    assert max(wordings.values()) < 1.05 * min(wordings.values())
    one = [p for p in problems if p.level == 1]
    assert len({p.operations for p in one}) > 3500  # of 8,800 sums and differences that are not held out
    assert 0.45 < sum(p.operations[0][1] == "+" for p in one) / len(one) < 0.55
    two, three = ([p for p in problems if p.level == level] for level in (2, 3))
    assert {len(p.operations) for p in two} == {2, 3}
    assert {len(p.operations) for p in three} == {2, 3, 4}
    assert {sign for p in three for _, sign, _ in p.operations} == set("+-*/")


def test_numbers_stay_as_small_as_their_level_says():
    for level, most in ((1, 99), (2, 299), (3, 9999)):
        numbers = [int(n) for p in made(3000, levels=(level,)) for n in re.findall(r"\d+", p.question + p.answer)]
        assert max(numbers) <= most


def test_sentences_are_clean():
    for problem in made(5000, levels=LEVELS, seed=2):
        assert re.fullmatch(r"(?:[A-Z][A-Za-z0-9 ,']+\. )+[A-Z][A-Za-z ]+\?", problem.question), problem.question
        assert problem.question.isascii()
        words = problem.question.split()
        assert all(first != second for first, second in pairwise(words)), problem.question


def test_a_question_is_asked_once(monkeypatch):
    for name, few in (("_HER", ("Mia",)), ("_HIM", ("Ben",)), ("_THINGS", ("pens", "cups"))):
        monkeypatch.setattr(grammar, name, few)  # so few that questions would repeat
    problems = made(4000)
    assert len({p.question for p in problems}) == 4000


def test_no_more_problems_than_there_are(monkeypatch):
    with pytest.raises(InputError, match="level: expected some of 1, 2, 3, got 4"):
        made(1, levels=(4,))
    monkeypatch.setattr(grammar, "one_step", lambda random: Story(["How many?"], [(2, "+", random.randint(2, 9))]))
    with pytest.raises(InputError, match="no more different questions after 1; ask for fewer rows"):
        made(2)


def test_the_command_writes_the_same_file_twice_and_never_over_another(muonlab, tmp_path):
    for name in ("a", "b"):
        code, out, err = muonlab("data", "arithmetic-words", "--out", tmp_path / name, "--rows", 40, "--level", "1-3", "--json")
        assert code == 0, err
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads(out)["sha256"] == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert [(p.question, p.answer, p.level) for p in made(40, levels=LEVELS)] == [tuple(row.values()) for row in rows]
    assert list(rows[0]) == ["question", "answer", "level"]
    code, _, err = muonlab("data", "arithmetic-words", "--out", tmp_path / "a")
    assert code == 2
    assert "exists already" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--level", "0"], "--level: expected 1, 2, 3 or a range such as 1-3, got '0'"),
        (["--level", "3-1"], "--level: expected 1, 2, 3 or a range"),
        (["--rows", "0"], "--rows: expected a number of at least 1, got 0"),
    ],
)
def test_wrong_arguments_get_one_clear_message(muonlab, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = muonlab("data", "arithmetic-words", "--out", "x.jsonl", *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())
    code, _, err = muonlab("data", "arithmetic-words", "--out", "none/x.jsonl")
    assert code == 2
    assert "none/x.jsonl: no such folder: none" in err
