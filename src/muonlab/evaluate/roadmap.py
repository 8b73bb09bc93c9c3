"""A roadmap: what does each stage add on the same problems: a larger model, several seeds that vote, several answers that vote?

A TOML file names a recipe, models (changes of the recipe), seeds, problems, and stages. Runs are trained where they are not there
yet; each run answers every problem once for each way of sampling, and all stages are made of these answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from muonlab.data.writing import new_file
from muonlab.errors import InputError, RunError
from muonlab.evaluate.answers import EXTRACTIONS, vote
from muonlab.evaluate.gsm8k import Problem, Result, Sample, Sampling, evaluate, read_problems
from muonlab.evaluate.seen import in_words, problems_seen
from muonlab.evaluate.team import Team, gather
from muonlab.names import did_you_mean
from muonlab.train.layers import laid
from muonlab.train.recipe import Recipe
from muonlab.train.run import Progress, train
from muonlab.train.run_folder import RunFolder
from muonlab.train.settings import merge, read_toml, validated

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Problems(BaseModel):
    """What is asked."""

    model_config = _STRICT

    data: tuple[str, ...] = Field(min_length=1, description="files, or names of data sets, with the columns question and answer")
    subset: str | None = Field(None, description="a data set's subset")
    split: str | None = Field(None, description="a data set's split, such as test")
    limit: PositiveInt | None = Field(None, description="only so many, the first ones")
    rule: Literal["official", "strict", "flexible"] = Field("official", description="how answers are read out of texts")
    max_tokens: PositiveInt = Field(512, description="longest answer")


class Stage(BaseModel):
    """One way to answer: each run of a model by itself, or its runs together; one answer of each, or several that vote."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    model: str = Field(description="a name of [models]")
    seeds: tuple[NonNegativeInt, ...] | None = Field(None, description="default: all")
    together: Literal["each", "vote", "average"] = Field(
        "each", description="each: every seed by itself, the figure is their mean; vote: their answers; average: their logits"
    )
    samples: PositiveInt = Field(1, description="answers of each run; they vote")
    temperature: float = Field(0.0, ge=0, description="0: the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    against: str | None = Field(None, description="the stage that it is compared with; default: the one before")


class RoadmapConfig(BaseModel):
    """The file."""

    model_config = _STRICT

    question: str
    recipe: Path = Field(description="a recipe file, relative to this one")
    set: dict[str, Any] = Field(default_factory=dict, description="changes of the recipe for all models, as tables")
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, description="each model is trained with each of them")
    models: dict[str, dict[str, Any]] = Field(min_length=1, description="name -> changes of the recipe, as tables")
    problems: Problems
    stages: tuple[Stage, ...] = Field(min_length=1)
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of tests (after Holm's correction) and intervals")
    margin: float | None = Field(None, gt=0, lt=1, description="smaller differences do not matter: equivalent, uncorrected")
    profiles: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name -> changes of this file, as tables; a model is replaced"
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> RoadmapConfig:
        problems: list[str] = []
        before: list[str] = []
        odd = [name for name in self.models if not re.fullmatch(r"\w[\w.-]*", name)]
        problems += [f"models: {name!r}: expected letters, digits, -, _ and . in a name: folders have it" for name in odd]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds: expected each once, got {list(self.seeds)}")
        for stage in self.stages:
            if stage.name in before:
                problems.append(f"stages: {stage.name!r} is there twice")
            if stage.model not in self.models:
                problems.append(f"stages.{stage.name}: unknown model {stage.model!r}; {did_you_mean(stage.model, self.models)}")
            if len(set(stage.seeds or ())) < len(stage.seeds or ()):
                problems.append(f"stages.{stage.name}: seeds: expected each once, got {list(stage.seeds or ())}")
            if "|" in stage.name or "\n" in stage.name:
                problems.append(f"stages.{stage.name!r}: a name goes into a table: expected no | and no line end")
            if foreign := [seed for seed in stage.seeds or () if seed not in self.seeds]:
                problems.append(f"stages.{stage.name}: seeds: expected some of {list(self.seeds)}, got {foreign}")
            if stage.together != "each" and len(self.seeds_of(stage)) < 2:
                problems.append(f"stages.{stage.name}: together: there is one run; name several seeds")
            if stage.samples > 1 and not stage.temperature:
                problems.append(f"stages.{stage.name}: samples: with temperature 0 they would all be the same")
            if stage.against is not None and stage.against not in before:
                problems.append(f"stages.{stage.name}: against: expected an earlier stage, got {stage.against!r}")
            before.append(stage.name)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def seeds_of(self, stage: Stage) -> tuple[int, ...]:
        return stage.seeds or self.seeds

    def before(self, stage: Stage) -> Stage | None:
        """The stage that this one is compared with; None: it is the first."""
        names = [s.name for s in self.stages]
        if stage.against is not None:
            return self.stages[names.index(stage.against)]
        place = names.index(stage.name)
        return self.stages[place - 1] if place else None


@dataclass(frozen=True)
class Roadmap:
    """The file, and the recipe of each model."""

    config: RoadmapConfig
    recipes: dict[str, Recipe]


def load_roadmap(path: str | Path, *, profile: str | None = None) -> Roadmap:
    """Raises InputError, all problems of the file at once."""
    path, raw = Path(path), read_toml(path)
    if profile is not None:
        known = raw.get("profiles", {})
        if profile not in known:
            raise InputError(f"{path}: unknown profile {profile!r}; {did_you_mean(profile, known) if known else 'it has none'}")
        raw = merge(raw, known[profile])
        raw = {**raw, "models": {**raw.get("models", {}), **known[profile].get("models", {})}}  # of a model, nothing is left
    config = validated(RoadmapConfig, raw, str(path))
    base = laid(laid({}, read_toml(path.parent / config.recipe)), config.set)
    recipes = {name: validated(Recipe, laid(base, of), f"{path}: models.{name}") for name, of in config.models.items()}
    return Roadmap(config, recipes)


@dataclass(frozen=True)
class _Way:
    """Who answers, and how: what answers are kept by. Several seeds: their logits averaged."""

    model: str
    seeds: tuple[int, ...]
    samples: int
    temperature: float
    top_p: float

    @property
    def name(self) -> str:
        how = "" if self.samples == 1 and not self.temperature else f"-{self.samples}x{self.temperature:g}"
        return f"{self.model}-{'+'.join(map(str, self.seeds))}{how}" + (f"-p{self.top_p:g}" if self.top_p < 1 else "")


@dataclass(frozen=True)
class Answers:
    """Of one way: results, and the work behind them."""

    results: list[Result]
    work: dict[str, Any]


@dataclass(frozen=True)
class Travelled:
    """All that a report is made of. runs: result.json and run.json of each (model, seed). stages: of each its members, one of each
    seed, or one of all."""

    roadmap: Roadmap
    runs: dict[tuple[str, int], dict[str, Any]]
    stages: dict[str, list[Answers]]
    seen: int | None = None  # problems that the models were trained on


def travel(
    roadmap: Roadmap,
    out: Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 64,
    training: Callable[[str, Progress], None] = lambda *_: None,
    answering: Callable[[str, int, int], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Travelled:
    """Trains and asks what is not there yet in `out`: runs in MODEL-SEED, answers in answers/.

    training is told a run's name and how far it is; answering who answers, problems done, and all.

    Raises InputError for runs or answers there that are not this roadmap's, RunError for a run that diverged, Interrupted.
    """
    config = roadmap.config
    asked = config.problems
    problems = read_problems(asked.data, subset=asked.subset, split=asked.split)[: asked.limit]
    runs = {}
    for model, seed in _runs(config):
        folder = out / f"{model}-{seed}"
        tell = partial(training, folder.name)
        options: dict[str, Any] = {"device": device, "threads": threads, "on_progress": tell, "say": say}
        result = train(roadmap.recipes[model], seed, folder, resume=True, **options)
        if result["status"] != "finished":
            raise RunError(f"{folder}: {result['status']} at step {result['steps']}: lower its learning rate in the roadmap")
        runs[model, seed] = {**(RunFolder(folder).run() or {}), **result}

    def answers(way: _Way) -> Answers:
        def gathered() -> Team:
            folders = [out / f"{way.model}-{seed}" for seed in way.seeds]
            together = "average" if len(folders) > 1 else None
            return gather(folders, together=together, device=device, threads=threads, batch=batch)

        weights = [runs[way.model, seed]["weights_sha256"] for seed in way.seeds]
        return _kept(out / "answers" / f"{way.name}.jsonl", way, asked, problems, weights, gathered, batch, answering, say)

    stages = {}
    for stage in config.stages:
        found = [answers(way) for way in _ways(config, stage)]
        stages[stage.name] = [_together(found)] if stage.together == "vote" else found
    seen = problems_seen(runs.values(), problems)
    if warning := in_words(seen, len(problems), "the models"):
        say(warning)
    return Travelled(roadmap, runs, stages, seen)


def _runs(config: RoadmapConfig) -> list[tuple[str, int]]:
    """All (model, seed) that some stage asks, each once."""
    asked = {(stage.model, seed) for stage in config.stages for seed in config.seeds_of(stage)}
    return [(model, seed) for model in config.models for seed in config.seeds if (model, seed) in asked]


def _ways(config: RoadmapConfig, stage: Stage) -> Iterator[_Way]:
    seeds = config.seeds_of(stage)
    for group in [seeds] if stage.together == "average" else [(seed,) for seed in seeds]:
        yield _Way(stage.model, group, stage.samples, stage.temperature, stage.top_p)


def _together(parts: list[Answers]) -> Answers:
    """The votes over all answers to each problem."""
    results = []
    for some in zip(*(part.results for part in parts), strict=True):
        samples = tuple(sample for result in some for sample in result.samples)
        results.append(Result(some[0].problem, samples, vote([sample.answer for sample in samples]), some[0].rule))
    keys = ("tokens", "seconds")
    return Answers(results, {key: sum(part.work[key] for part in parts) for key in keys})


def _kept(
    path: Path,
    way: _Way,
    asked: Problems,
    problems: list[Problem],
    weights: list[str],
    gathered: Callable[[], Team],
    batch: int,
    answering: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Answers:
    """The answers in the file; asked for now where there is none. Its first line says whose they are, and to what."""
    ids = hashlib.sha256("".join(problem.id for problem in problems).encode()).hexdigest()
    about = {"weights": weights, "problems": ids, "way": [way.samples, way.temperature, way.top_p, asked.max_tokens]}
    if path.exists():
        return _read(path, about, asked.rule, problems)
    team = gathered()
    for line in team.told:
        say(line)
    results = evaluate(
        problems,
        team.models,
        prompt=team.prompts,
        sampling=Sampling(samples=way.samples, temperature=way.temperature, top_p=way.top_p, max_tokens=asked.max_tokens),
        rule=asked.rule,
        at_a_time=batch,
        on_progress=lambda n: answering(way.name, n, len(problems)),
    )
    for line in team.warnings():
        say(line)
    work = team.as_json()["work"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        for line in ({**about, "work": work}, *([sample.text for sample in result.samples] for result in results)):
            file.write(json.dumps(line) + "\n")
    return _read(path, about, asked.rule, problems)


def _read(path: Path, about: dict[str, Any], rule: str, problems: list[Problem]) -> Answers:
    try:
        first, *texts = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        work = first.pop("work")
        if first != about:
            raise InputError(f"{path}: other answers than this roadmap asks for: choose another folder with --out, or delete it")
        if len(texts) != len(problems):
            raise ValueError
        samples = [tuple(Sample(path.stem, text, EXTRACTIONS[rule].answer(text)) for text in some) for some in texts]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; delete it, and its problems are asked again") from None
    results = [Result(p, some, vote([s.answer for s in some]), rule) for p, some in zip(problems, samples, strict=True)]
    return Answers(results, work)
