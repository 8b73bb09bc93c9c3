"""Worked solutions in one style, and what cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from muonlab.data.arithmetic import arithmetic_words
from muonlab.data.cot import Solution, Unfit, read_solution
from muonlab.data.numbers import calculate, read_number, rounds_to, write_number

GSM8K = Path(__file__).parents[1] / "data" / "gsm8k_form.jsonl"
WHOLE = Path(__file__).parents[3] / "shared/data/gsm8k_train_400.jsonl"


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("18", 18), ("1,000", 1000), ("1000", 1000), ("1,000,000", 10**6), ("-5", -5), ("−5", -5), ("18.", 18), ("18.00", 18)),
        *(
            ("$18", 18),
            ("$1,234.50", Fraction("1234.5")),
            ("-$3", -3),
            ("$-3", -3),
            ("50%", 50),
            (".5", Fraction(1, 2)),
            (" 7 ", 7),
        ),
        *(("3/4", Fraction(3, 4)), ("\\frac{3}{4}", Fraction(3, 4)), ("-\\dfrac{1}{2}", Fraction(-1, 2)), ("\\$18", 18), ("€5", 5)),
        *(("0.1", Fraction(1, 10)), ("007", 7), ("5.", 5), ("1\\%", 1), (" 7 ", 7)),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert read_number(text) == value


NO_NUMBERS = ["", ".", ",", "$", "-", "%", "1,00", "12,34,567", "1.2.3", "five", "x", "1e5", "nan", "inf", "1 2", "B"]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "3/0", "1/2/3", "9" * 500])
def test_what_is_no_number_is_none(text):
    assert read_number(text) is None


@settings(deadline=None)
@given(some.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_a_number_that_was_written_is_read_back(value):
    assert read_number(write_number(Fraction(value))) == Fraction(value)
    assert read_number(f"{value:,}") == read_number(str(value)) == Fraction(value)


def test_numbers_are_written_in_one_way():
    written = [write_number(Fraction(text)) for text in ("18.00", "18", "0.50", "1/3", "-2.5", "1000000", "0", "1/8")]
    assert written == ["18", "18", "0.5", "1/3", "-2.5", "1000000", "0", "0.125"]


@settings(deadline=None)
@given(some.text("0123456789+-*/(). ", max_size=20))
def test_sums_are_what_python_says(text):
    found = calculate(text)
    warnings.simplefilter("ignore", SyntaxWarning)  # pytest puts the filters back
    try:
        expected = eval(text.replace("//", "/"), {"__builtins__": {}}) if "**" not in text.replace("//", "/") else None
    except (SyntaxError, ZeroDivisionError, TypeError):
        expected = None
    if isinstance(expected, int | float) and found is not None:
        assert float(found) == pytest.approx(float(expected))
    if found is None and not re.search(r"(?<![\d.])0\d|\*\*", text.replace(" ", "")):
        assert not isinstance(expected, int | float)


NO_SUMS = ["__import__('os')", "1+", "2**9", "a", "1/0", "(1", "1 2", "1_000", "1j", "9" * 9999, "(" * 300 + "1" + ")" * 300]


@pytest.mark.parametrize("text", NO_SUMS)
def test_what_is_no_sum_is_none(text):
    assert calculate(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("20/50%", 40), ("50%", Fraction(1, 2)), ("20*50%", 10), ("100-5.%", Fraction(9995, 100)), ("-.5%", Fraction(-1, 200))),
        *(
            ("2/12.5%/4", 4),
            ("05%", Fraction(1, 20)),
            ("50%%", None),
            ("1.2.3%", None),
            ("2 50%", None),
            ("50%3", None),
            ("%", None),
        ),
    ],
)
def test_a_percent_sign_is_of_its_number_alone(text, value):
    assert calculate(text) == value


def test_a_value_may_be_shown_rounded_or_cut():
    third, two_thirds = calculate("10/3"), calculate("2/3")
    assert all(rounds_to(third, shown) for shown in ("3.33", "3.3", "3", "3.3333333"))
    assert all(rounds_to(two_thirds, shown) for shown in ("0.67", "0.66", ".67", "1"))
    assert not any(rounds_to(two_thirds, shown) for shown in ("0.68", "0.65", "0.666666667001", "2", "x"))


# -- solutions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "6 * 3 = <<6*3=18>>18\n#### 18",
        "6 * 3 = 18\nThe answer is 18.",
        "6 * 3 = 18\n#### 18\nThe answer is: 18",
        "6 * 3 = 18\nSo the answer is $18.00.",
        "6 * 3 = 18\n\nTherefore, the final answer is: $\\boxed{18}$.",
        "6 × 3  = 18\r\n\\boxed{18}\n#### 18",
        "  6 * 3 = 18\nThe answer is 18 dollars",
        "6 * 3 = 18\nthe answer is **18**",
        "6 * 3 = 18\nThe answer is \\(18\\)",
    ],
)
def test_every_way_to_write_an_answer_becomes_one(text):
    lines = read_solution(text).text(spans=False).splitlines()
    assert (lines[0], lines[-1]) == ("6 * 3 = 18", "#### 18")
    assert len(lines) == 2 or lines[1:-1] == ["18"]  # what a \boxed{} on a line of its own held


def test_spans_are_kept_or_dropped():
    solution = read_solution("He pays 2*4=$<<2*4=8>>8.\n#### 8")
    assert solution.text(spans=True) == "He pays 2*4=$<<2*4=8>>8.\n#### 8"
    assert solution.text(spans=False) == "He pays 2*4=$8.\n#### 8"
    assert read_solution(solution.text(spans=True)) == solution


@pytest.mark.parametrize(
    ("step", "numbers"),
    [
        ("That makes 24, so", [24]),
        ("She has 24, and 3.", [24, 3]),
        ("1,200, of 1,200,000.", [1200, 1_200_000]),
        ("1,2,3", [1, 2, 3]),
        ("12,34", [12, 34]),
        ("-1,064.50, .5,", [Fraction("-1064.5"), Fraction(1, 2)]),
    ],
)
def test_a_comma_after_a_number_is_no_part_of_it(step, numbers):
    for number in numbers:
        assert Solution((step,), Fraction(number)).shown
    assert not Solution((step,), Fraction(7)).shown
    value = write_number(Fraction(numbers[0]))
    assert read_solution(f"<<{value}+0={value}>>{step.removeprefix('That makes ').removeprefix('She has ')}\n#### {value}").shown


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("6 * 3 = 18", "no answer"),
        ("6 * 3 = 18, so the answer is 18 and not 19", "the answer is no number"),
        ("Take the first.\nThe answer is B.", "the answer is no number"),
        ("x\n#### eighteen", "the answer is no number"),
        ("x\n####", "the answer is no number"),
        ("x\n#### 1,00", "the answer is no number"),
        ("x\nThe answer is 3 hours and 5 minutes", "the answer is no number"),
        ("6*3=18\n#### 18\nThe answer is 19", "its answers differ"),
        ("x\n#### 18\n#### 1", "its answers differ"),
        ("6*3=<<6*3=19>>19\n#### 19", "a calculator span is wrong"),
        ("10/3=<<10/3=3.34>>3.34\n#### 3", "a calculator span is wrong"),
        ("6*3=<<6*3=18>>19\n#### 19", "a calculator span is wrong"),
        ("<<x+1=2>>2\n#### 2", "a calculator span cannot be read"),
        ("<<18>>18\n#### 18", "a calculator span cannot be read"),
        ("#### 18", "no steps"),
        ("x \\boxed{18\n", "a \\boxed{ that does not end"),
    ],
)
def test_what_cannot_be_used_says_why(text, kind):
    with pytest.raises(Unfit) as error:
        read_solution(text)
    assert error.value.kind == kind


def test_a_sentence_in_the_middle_is_a_step_and_no_answer():
    solution = read_solution("For one box the answer is 5.\nFor two it is 5 * 2 = 10.\n#### 10")
    assert solution.steps == ("For one box the answer is 5.", "For two it is 5 * 2 = 10.")


def test_of_several_boxes_the_last_is_the_answer():
    solution = read_solution("One is $\\boxed{9}$.\nTwo are \\boxed{9 * 2 = {18}}, so\n\\boxed{18}")
    assert solution == Solution(("One is $9$.", "Two are 9 * 2 = {18}, so", "18"), Fraction(18))


def test_a_step_that_comes_to_another_number_is_noticed():
    assert read_solution("48 + 16 = 64\n#### 64").shown
    assert not read_solution("48 + 16 = 64\n#### 66").shown
    assert read_solution("It costs $1,064.50 in all.\n#### 1064.5").shown


def test_the_generated_task_is_in_the_style_already():
    for problem in arithmetic_words(200, levels=(1, 2, 3)):
        solution = read_solution(problem.answer)
        assert solution.text(spans=True) == problem.answer
        assert solution.shown
        assert "<<" not in solution.text(spans=False)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """write(name, text) -> path"""

    def to(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_in_gsm8ks_form_all_parse(muonlab, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        code, out, err = muonlab("data", "cot", GSM8K, "--out", tmp_path / name, "--json")
        assert code == 0, err
    found = json.loads(out)
    rows, given = rows_of(tmp_path / "a.jsonl"), rows_of(GSM8K)
    assert found["kept"] == found["rows"] == len(rows) == len(given)
    assert found["sha256"] == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    for row, was in zip(rows, given, strict=True):
        assert row["question"] == was["question"]
        gold = was["answer"].split("#### ")[1].replace(",", "")  # as GSM8K's own script reads it
        assert Decimal(row["answer"].split("#### ")[1]) == Decimal(gold)


@pytest.mark.skipif(not WHOLE.exists(), reason="400 rows of GSM8K are not on this machine")
def test_of_400_rows_of_gsm8k_all_parse(muonlab, tmp_path):
    code, out, err = muonlab("data", "cot", WHOLE, "--out", tmp_path / "x.jsonl", "--json")
    found = json.loads(out)
    assert (code, found["kept"], found["rejected"]) == (0, 400, None), err
    assert found["unshown"] == [124, 344, 357], "two answers are cents of dollars, and one is wrong: 48 + 16 = 64, #### 66"


MIXED = [
    {"instruction": "a", "output": "2 + 2 = 4\nThe answer is 4", "source": "x"},
    {"instruction": "b", "output": "The answer is B"},
    {"instruction": "c", "output": 7},
    {"instruction": "d"},
    {"instruction": "", "output": "1 + 1 = 2\n#### 2"},
    {"instruction": "f \ud800", "output": "2*3=<<2*3=7>>7\n#### 7"},
    {"instruction": "g", "output": "1 + 1 = 2\n#### 3"},
]


def test_what_cannot_be_read_is_set_aside_with_a_reason(muonlab, write, tmp_path):
    path = write("mixed.jsonl", "\n".join(map(json.dumps, MIXED)))
    code, out, err = muonlab("data", "cot", path, "--out", tmp_path / "x.jsonl", "--columns", "instruction,output")
    assert code == 0
    assert "x.jsonl: 2 of 7 rows" in out
    assert "set aside: 2 rows: a column holds no text" in err
    assert "no step comes to the answer (--strict sets them aside): 1 (row 7)" in err
    assert rows_of(tmp_path / "x.jsonl") == [
        {"instruction": "a", "output": "2 + 2 = 4\n#### 4"},
        {"instruction": "g", "output": "1 + 1 = 2\n#### 3"},
    ]
    aside = rows_of(tmp_path / "x.rejected.jsonl")
    assert [(row["row"], row["reason"]) for row in aside] == [
        (2, "the answer is no number: 'B'"),
        (3, "a column holds no text: output: int"),
        (4, "a column holds no text: output: NoneType"),
        (5, "a column is empty: instruction"),
        (6, "a calculator span is wrong: <<2*3=7>>: it is 6"),
    ]
    assert aside[1]["output"] == 7
    again = muonlab("data", "cot", path, "--out", tmp_path / "y.jsonl", "--columns", "instruction,output", "--strict", "--json")
    assert json.loads(again[1])["reasons"]["no step comes to the answer"] == 1


def test_compressed_tables_are_read_too(muonlab, tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b'question,answer\nHow many?,"1 + 1 = 2\n#### 2"\n'))
    code, _, err = muonlab("data", "cot", tmp_path / "x.csv.gz", "--out", tmp_path / "x.jsonl")
    assert code == 0, err
    assert rows_of(tmp_path / "x.jsonl") == [{"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            '{"question": "a", "answers": "1\\n#### 1"}',
            [],
            "no column 'answer'; did you mean 'answers'? (columns: question, answers)",
        ),
        ('{"question": "a", "answer": "none"}', [], "none of its 1 rows can be used (1: no answer)"),
        ('{"question": "a", "answer": "1\\n#### 1"}\n{"question": "a", "ans', [], "line 2: not JSON"),
        ('{"question": "a"}', ["--columns", "answer,answer"], "--columns: expected names, each once"),
        ("", [], "none of its 0 rows can be used"),
    ],
)
def test_bad_input_leaves_nothing_behind(muonlab, write, tmp_path, text, flags, message):
    path = write("x.jsonl", text)
    code, out, err = muonlab("data", "cot", path, "--out", tmp_path / "new.jsonl", *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_file_is_never_overwritten(muonlab, tmp_path):
    (tmp_path / "x.rejected.jsonl").write_text("mine")
    code, _, err = muonlab("data", "cot", GSM8K, "--out", tmp_path / "x.jsonl")
    assert code == 2
    assert "x.rejected.jsonl: exists already" in err
