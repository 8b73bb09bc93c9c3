"""GSM8K and tasks of its form: test problems, prompts, answers of one model or several, votes, figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from muonlab.data.sources import find_sources
from muonlab.data.template import Template
from muonlab.errors import InputError
from muonlab.evaluate.accuracy import accuracy
from muonlab.evaluate.answers import EXTRACTIONS, Vote, same_value, vote
from muonlab.streams import stream_seed

COLUMNS = ("question", "answer")
ZERO_SHOT = Template(COLUMNS).prompt  # what `muonlab data prepare --columns question,answer` trains on
FEW_SHOT_STOPS = ("Question:", "</s>", "<|im_end|>")  # lm-eval's, gsm8k.yaml

Prompt = Callable[[Mapping[str, str]], str]  # a row -> what the model is given


class Generator(Protocol):
    def generate(
        self, prompts: list[str], *, max_tokens: int, temperature: float, top_p: float, seed: int, stop: Sequence[str]
    ) -> list[str]:
        """What follows each prompt, without it, up to the end of the document, a stop text (left out) or max_tokens.
        temperature 0: the likeliest token each time."""
        ...


@dataclass(frozen=True)
class Problem:
    """id: of the question's text, the same in every file. solution: the reference's, which ends in `#### N`; gold: N."""

    id: str
    question: str
    solution: str
    gold: str
    level: int | str | None = None  # 1 to 3 in arithmetic-words

    @property
    def row(self) -> dict[str, str]:
        return dict(zip(COLUMNS, (self.question, self.solution)))


def read_problems(names: Sequence[str], *, subset: str | None = None, split: str | None = None) -> list[Problem]:
    """Problems with the columns question and answer, from files or data sets. Raises InputError for a row without
    them, an answer without `#### N`, a level that is neither a whole number nor text, a question that occurs twice, and where
    there are none."""
    problems: dict[str, Problem] = {}
    for source in find_sources(names, subset=subset, split=split):
        if source.kind in ("text", "bin"):
            raise InputError(f"{source.name}: expected rows with the columns question and answer, got {source.kind}")
        for number, row in source.rows(0, (*COLUMNS, "level")):
            where = f"{source.name}, row {number}"
            if not all(isinstance(row.get(name), str) for name in COLUMNS):
                raise InputError(f"{where}: expected text in the columns question and answer, got the columns {', '.join(row)}")
            gold = EXTRACTIONS["official"].answer(row["answer"])
            if gold is None:
                raise InputError(f"{where}: expected an answer that ends in #### N, as GSM8K's do; see muonlab data cot")
            identity = hashlib.sha256(row["question"].encode(errors="surrogatepass")).hexdigest()[:16]
            if identity in problems:
                raise InputError(f"{where}: this question occurs twice; remove one")
            level = row.get("level")
            if isinstance(level, bool) or not isinstance(level, int | str | None):
                raise InputError(f"{where}: expected a whole number or text in the column level, got {level!r:.60}")
            problems[identity] = Problem(identity, row["question"], row["answer"], gold, level)
    if not problems:
        raise InputError(f"{', '.join(names)}: expected problems, got none")
    return list(problems.values())


def few_shot(examples: Sequence[Problem], tested: Sequence[Problem], k: int, *, seed: int = 0) -> Prompt:
    """lm-eval's prompt: k examples, the same for every problem, then the question. Examples are never problems that are tested.

    Raises InputError where there are fewer than k.
    """
    known = {problem.id for problem in tested}
    free = [example for example in examples if example.id not in known]
    if len(free) < k:
        raise InputError(f"few-shot: expected at least {k} examples that are not tested, got {len(free)}")
    chosen = Random(stream_seed(seed, "few-shot")).sample(free, k)
    shown = "".join(f"Question: {example.question}\nAnswer: {example.solution}\n\n" for example in chosen)
    return lambda row: f"{shown}Question: {row['question']}\nAnswer:"


@dataclass(frozen=True)
class Sampling:
    """samples: answers to each problem, of each model. Raises InputError for values that make no sense together."""

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        for name, number in (("samples", self.samples), ("max-tokens", self.max_tokens)):
            if number < 1:
                problems.append(f"--{name}: expected a number of at least 1, got {number}")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"--temperature: expected a number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            problems.append(f"--top-p: expected a number above 0, at most 1, got {self.top_p}")
        if self.samples > 1 and self.temperature == 0:
            problems.append(f"--samples {self.samples}: without a --temperature above 0 they would all be the same")
        if problems:
            raise InputError(*problems)


@dataclass(frozen=True)
class Sample:
    """One model's text, and the value of its answer."""

    model: str
    text: str
    answer: str | None


@dataclass(frozen=True)
class Result:
    """A problem, what the models said, and their vote: of a single sample, its answer."""

    problem: Problem
    samples: tuple[Sample, ...]
    vote: Vote
    rule: str

    @property
    def correct(self) -> bool:
        return same_value(self.vote.winner, self.problem.gold)

    @property
    def published(self) -> bool:
        """Is the first sample right as the rule's own source compares texts?"""
        return EXTRACTIONS[self.rule].matches(self.samples[0].text, self.problem.solution)

    def row(self) -> dict[str, Any]:
        """As JSON: a line of the file that `muonlab eval compare` reads."""
        return {
            "problem": self.problem.id,
            "level": self.problem.level,
            "gold": self.problem.gold,
            "answer": self.vote.winner,
            "correct": self.correct,
            "votes": self.vote.counts,
            "tied": list(self.vote.tied),
            "rule": self.rule,
            "samples": [vars(sample) for sample in self.samples],
            "question": self.problem.question,
        }


def evaluate(
    problems: Sequence[Problem],
    models: Mapping[str, Generator],
    *,
    prompt: Prompt | Mapping[str, Prompt] = ZERO_SHOT,
    sampling: Sampling | None = None,
    rule: str = "official",
    at_a_time: int = 64,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Every model answers every problem `sampling.samples` times; all of these answers vote, the first model's first.

    prompt: for all models, or for each by its name. A sample's seed depends on the model's place and the sample's number: which of
    the problems go together, `at_a_time`, is not for the answers to depend on. on_progress: is told how many problems are done.
    """
    how, results = sampling or Sampling(), []
    for start in range(0, len(problems), at_a_time):
        some = problems[start : start + at_a_time]
        said: list[list[Sample]] = [[] for _ in some]
        for place, (name, model) in enumerate(models.items()):
            ask = prompt[name] if isinstance(prompt, Mapping) else prompt
            prompts = [ask(problem.row) for problem in some]
            for i in range(how.samples):
                texts = model.generate(
                    prompts,
                    max_tokens=how.max_tokens,
                    temperature=how.temperature,
                    top_p=how.top_p,
                    seed=stream_seed(how.seed, "samples", place, i),
                    stop=how.stop,
                )
                for samples, text in zip(said, texts, strict=True):
                    samples.append(Sample(name, text, EXTRACTIONS[rule].answer(text)))
        for problem, samples in zip(some, said):
            results.append(Result(problem, tuple(samples), vote([sample.answer for sample in samples]), rule))
        on_progress(len(results))
    return results


def summarize(results: Sequence[Result], *, alpha: float = 0.05) -> dict[str, Any]:
    """The figures, as JSON. published: right answers as the rule's own source counts them, of single samples only."""
    parts: dict[str, list[Result]] = {}
    for result in results:
        if result.problem.level is not None:
            parts.setdefault(str(result.problem.level), []).append(result)
    samples = [sample for result in results for sample in result.samples]
    single = all(len(result.samples) == 1 for result in results)
    return {
        **_figures(results, alpha),
        "alpha": alpha,
        "rule": results[0].rule,
        "published": sum(result.published for result in results) if single else None,
        "without_answer": sum(result.vote.winner is None for result in results),
        "invalid_samples": sum(sample.answer is None for sample in samples) / len(samples),
        "ties": sum(bool(result.vote.tied) for result in results),
        "vote_share": None if single else sum(result.vote.share for result in results) / len(results),
        "levels": {level: _figures(parts[level], alpha) for level in sorted(parts, key=_place)} if len(parts) > 1 else {},
    }


def _place(level: str) -> tuple[float, str]:
    """Numbers by their value, then names."""
    return (int(level) if level.isdecimal() else math.inf, level)


def _figures(results: Sequence[Result], alpha: float) -> dict[str, Any]:
    found = accuracy(sum(result.correct for result in results), len(results), alpha=alpha)
    return {"accuracy": found.value, "low": found.low, "high": found.high, "correct": found.correct, "problems": found.n}
