r"""Answers read out of a model's text, by the rules of those who published figures, and votes over them.

official   openai/grade-school-math, dataset.py: the first `#### (\-?[0-9\.\,]+)`, commas removed
strict     lm-evaluation-harness, gsm8k.yaml (version 3), filter strict-match: the first match of the same expression
flexible   the same file, filter flexible-extract: the last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`, that is the last number

lm-eval's exact match compares texts, after removing what `regexes_to_ignore` lists there. muonlab compares values, so that 18 and
18.00 are one answer (`Extraction.answer`), and can say beside it what the rule's own source would (`Extraction.matches`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from muonlab.data.numbers import read_number, write_number

_HASHES = re.compile(r"#### (\-?[0-9\.\,]+)")
_LAST_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LM_EVAL_IGNORES = (",", r"\$", r"(?s).*#### ", r"\.$")


@dataclass(frozen=True)
class Extraction:
    """A named rule. find: text -> its answer as it stands there, None if there is none. clean: what its source makes of that before
    it compares; gold: what it compares with, made of the reference's whole solution."""

    name: str
    find: Callable[[str], str | None]
    clean: Callable[[str], str]
    gold: Callable[[str], str]

    def answer(self, text: str) -> str | None:
        """The value of the text's answer, written in one way; None where there is none, or it is no number."""
        found = self.find(text)
        return None if found is None else value(found)

    def matches(self, text: str, solution: str) -> bool:
        """Is the text's answer right as the source of the rule has it? solution: the reference's, with its `#### N`."""
        found = self.find(text)
        return found is not None and self.clean(found) == self.gold(solution)


def value(answer: str) -> str | None:
    """An answer's value, written in one way: "1,000", "$1000.00" and "1000." are "1000". None if it is no number.

    Commas are removed wherever they stand, as all three rules do.
    """
    number = read_number(_without_commas(answer))
    return None if number is None else write_number(number)


def same_value(answer: str | None, gold: str) -> bool:
    """Both as `value` writes them. An answer that is none is never right."""
    return answer is not None and Fraction(answer) == Fraction(gold)


def _first_hashes(text: str) -> str | None:
    found = _HASHES.search(text)
    return found[1].strip() if found else None


def _without_commas(answer: str) -> str:
    return answer.replace(",", "")


def _last_number(text: str) -> str | None:
    found = _LAST_NUMBER.findall(text)
    return next(group for group in found[-1] if group).strip() if found else None


def _lm_eval(answer: str) -> str:
    for pattern in _LM_EVAL_IGNORES:
        answer = re.sub(pattern, "", answer)
    return answer.lower()


EXTRACTIONS = {
    rule.name: rule
    for rule in (
        Extraction("official", _first_hashes, _without_commas, lambda solution: _without_commas(_first_hashes(solution) or "")),
        Extraction("strict", _first_hashes, _lm_eval, _lm_eval),
        Extraction("flexible", _last_number, _lm_eval, _lm_eval),
    )
}


@dataclass(frozen=True)
class Vote:
    """winner: the answer with most votes, None if none was valid. counts: votes of each answer, the winner first. tied: the answers
    that share the first place, where there are several. samples: all answers; invalid ones (None) have no vote."""

    winner: str | None
    counts: dict[str, int]
    tied: tuple[str, ...]
    samples: int

    @property
    def valid(self) -> int:
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Of the valid votes, those for the winner; 0 without a valid one."""
        return 0.0 if self.winner is None else self.counts[self.winner] / self.valid


def vote(answers: Sequence[str | None]) -> Vote:
    """The majority of answers as `value` writes them. Of answers with equally many votes the one that came first wins."""
    counts: dict[str, int] = {}  # in order of first occurrence
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))  # a stable sort: ties stay in order
    first = tuple(answer for answer, count in ordered.items() if count == max(ordered.values()))
    return Vote(first[0] if first else None, ordered, first if len(first) > 1 else (), len(answers))
