"""Answers in a model's text: the published rules, their traps, votes."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from muonlab.evaluate.answers import EXTRACTIONS, same_value, value, vote

GOLD = "6 * 3 = <<6*3=18>>18\n#### 18"


# -- the published programs, written as they are --------------------------------------------------------------------


def openai_extract_answer(completion):
    """openai/grade-school-math, grade_school_math/dataset.py."""
    match = re.compile(r"#### (\-?[0-9\.\,]+)").search(completion)
    if match:
        return match.group(1).strip().replace(",", "")
    return "[invalid]"


def lm_eval_regex_filter(response, pattern=r"#### (\-?[0-9\.\,]+)", group_select=0):
    """EleutherAI/lm-evaluation-harness, lm_eval/filters/extraction.py, RegexFilter."""
    match = re.compile(pattern).findall(response)
    if not match:
        return "[invalid]"
    match = match[group_select]
    if isinstance(match, tuple):
        match = [m for m in match if m][0]  # noqa: RUF015 (as it stands there)
    return match.strip()


def lm_eval_exact_match(prediction, reference):
    """exact_match with gsm8k.yaml's metric_list: ignore_case, regexes_to_ignore."""
    for pattern in (",", r"\$", "(?s).*#### ", r"\.$"):
        prediction, reference = re.sub(pattern, "", prediction), re.sub(pattern, "", reference)
    return prediction.lower() == reference.lower()


def published(rule, text, solution):
    """Is it right, as the rule's own program has it?"""
    if rule == "official":
        found = openai_extract_answer(text)
        return found != "[invalid]" and found == openai_extract_answer(solution)
    options = {"pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1} if rule == "flexible" else {}
    return lm_eval_exact_match(lm_eval_regex_filter(text, **options), solution)


COMPLETIONS = [
    *["#### 18", "so 18\n#### 18.", "#### 18\n#### 19", "#### 1\n#### 18", "#### 18.00", "####18", "#### $18", "#### -18"],
    *["The answer is 18", "The answer is 18.", "The answer is 18, I think", "18", "8", "It is $18.", "It is $18.00", "...18..."],
    *[
        "",
        "no number",
        "..",
        "5-18",
        "1,8",
        "#### 1,8",
        "#### ,",
        "#### .",
        "####  18",
        "#### 18\r\n",
        "18 - or 1.",
        "$",
        "$$ 18 $$",
    ],
    *["18 %", "#### 18 dollars"],
]


@pytest.mark.parametrize("rule", EXTRACTIONS)
def test_each_rule_judges_as_its_published_program_does(rule):
    for text in COMPLETIONS:
        for solution in (GOLD, "#### 8", "#### 1,080", "x $3\n#### -18"):
            assert EXTRACTIONS[rule].matches(text, solution) == published(rule, text, solution), (text, solution)


@settings(deadline=None)
@given(
    some.text("#0123456789.,-$ \nax", max_size=30), some.sampled_from(["#### 1", "#### 12", "#### 1,000", "#### -3", "#### 2.5"])
)
def test_each_rule_judges_any_text_as_its_published_program_does(text, solution):
    for rule in EXTRACTIONS:
        assert EXTRACTIONS[rule].matches(text, solution) == published(rule, text, solution)


@pytest.mark.parametrize(
    ("text", "official", "flexible"),
    [
        ("The answer is 18", None, "18"),  # not 1, and not 8
        ("The answer is 18.", None, "18"),
        ("6 * 3 = 18\n#### 18", "18", "18"),
        ("#### 1,080 seats in 9 blocks", "1080", "9"),
        ("She pays $1,234.50.", None, "1234.5"),
        ("#### -5", "-5", "-5"),
        ("#### 18\nQuestion: 7 more?\n#### 25", "18", "25"),
        ("nothing", None, None),
        ("18 ...", None, None),  # the last match has no digit: lm-eval calls it wrong
        ("#### ,", None, None),
    ],
)
def test_what_the_rules_read(text, official, flexible):
    assert EXTRACTIONS["official"].answer(text) == EXTRACTIONS["strict"].answer(text) == official
    assert EXTRACTIONS["flexible"].answer(text) == flexible


def test_values_are_one_however_they_are_written():
    assert {value(text) for text in ("1,000", "1000", "$1000", "1000.00", "1000.", "$1,000.0", "01000")} == {"1000"}
    assert value("50%") == "50"
    assert value("1,8") == "18", "the rules remove commas wherever they stand"
    assert [value(text) for text in ("..", ",", "", "1.2.3", "$")] == [None] * 5
    assert same_value("0.5", "1/2")
    assert not same_value(None, "0")


# -- votes ----------------------------------------------------------------------------------------------------------


def test_the_same_number_written_twice_is_one_answer():
    answers = [value(text) for text in ("1,000", "7", "1000", "7", "$1000.00")]
    found = vote(answers)
    assert (found.winner, found.counts, found.tied) == ("1000", {"1000": 3, "7": 2}, ())
    assert found.share == 3 / 5


def test_invalid_answers_have_no_vote():
    found = vote([None, None, None, "7"])
    assert (found.winner, found.valid, found.samples, found.share) == ("7", 1, 4, 1.0)
    nothing = vote([None, None])
    assert (nothing.winner, nothing.counts, nothing.tied, nothing.share) == (None, {}, (), 0.0)
    assert vote([]).winner is None


def test_of_a_tie_the_answer_that_came_first_wins_and_the_tie_is_told():
    found = vote(["3", "9", "9", "3", "5"])
    assert (found.winner, found.tied) == ("3", ("3", "9"))
    assert vote(["9", "3", "5", "3", "9"]).winner == "9"
    assert vote(["5", "3", "3"]).tied == ()


@settings(deadline=None)
@given(some.lists(some.sampled_from([None, "1", "2", "3"])))
def test_the_winner_has_the_most_votes(answers):
    found = vote(answers)
    valid = [answer for answer in answers if answer is not None]
    assert found.valid == len(valid)
    assert all(found.counts[answer] == answers.count(answer) for answer in set(valid))
    if valid:
        assert answers.count(found.winner) == max(answers.count(answer) for answer in valid)
        assert Fraction(found.share).limit_denominator(1000) == Fraction(answers.count(found.winner), len(valid))
