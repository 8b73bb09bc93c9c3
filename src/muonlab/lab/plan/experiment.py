"""An experiment file: a question, a base recipe, arms (what each changes), grids, seeds, and what decides."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from muonlab.errors import InputError
from muonlab.lab.plan.disguise import find as find_disguises
from muonlab.lab.plan.followups import HeadToHead, Refine, expand
from muonlab.lab.plan.grid import overlap, point_name, read_grid, without_twins
from muonlab.lab.runs.store import run_folder_name
from muonlab.names import did_you_mean
from muonlab.train.layers import explicit, laid
from muonlab.train.recipe import Recipe
from muonlab.train.settings import flat, merge, nested, read_toml, validated, with_overrides

_MOST_SEEDS = 10_000  # a number beyond is a slip, and a list of it would fill the memory


def _counted(value: Any) -> Any:
    if isinstance(value, int) and value > _MOST_SEEDS:
        raise ValueError(f"expected at most {_MOST_SEEDS} seeds, or a list of them in brackets, got {value}")
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


_SEED_LIST = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Seeds = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_counted),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _SEED_LIST]}),
]


Metric = Literal["val_loss", "best_val_loss", "train_loss", "seconds"]


class Budget(BaseModel):
    """What every run of the experiment is given, declared so that the report can say which runs were given something else."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: PositiveInt | None = Field(None, description="optimizer steps")
    tokens: PositiveInt | None = Field(None, description="training tokens")
    seconds: PositiveFloat | None = Field(None, description="seconds of training")

    @model_validator(mode="after")
    def _one_kind(self) -> Budget:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected one of steps, tokens and seconds, such as { steps = 1000 }")
        return self


class ExperimentConfig(BaseModel):
    """The content of an experiment's TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="muonlab experiment")

    question: str = Field(description="what the experiment answers, in a sentence")
    base: str | None = Field(None, description="the recipe that all arms start from, a path relative to this file")
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="name -> what it changes in the recipe, and optionally `grid` and `zip`: key -> list of values"
    )
    grid: dict[str, Any] = Field({}, description="key -> list of values, crossed with every arm")
    zip: dict[str, Any] = Field({}, description="key -> list of values, all of one length, which advance together, in every arm")
    set: dict[str, Any] = Field({}, description="changes of the recipe for all arms")
    seeds: Seeds = Field(description="a list, or a number n for 0 … n−1; one run for each arm and seed")
    metric: Metric = Field("val_loss", description="decides the verdicts; lower is better")
    metrics: tuple[Metric, ...] = Field((), description="further metrics that the report shows")
    target: float | None = Field(None, description="validation loss whose first crossing is timed, in steps and seconds")
    targets: tuple[float, ...] = Field((), description="further targets; without `target` the first of them takes its place")
    baseline: str | None = Field(None, description="the arm that the others are compared with; default: the first, without grids")
    margin: PositiveFloat | None = Field(None, description="differences of the metric below this one do not matter (equivalence)")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of the tests and of the confidence intervals (1 − alpha)")
    budget: Budget | None = Field(None, description="what every run is given: one of steps, tokens and seconds")
    tuned_by: str | tuple[str, ...] | None = Field(
        None,
        description="experiment files that chose these settings; their seeds, and those of what tuned them, may not be used here",
    )
    profiles: dict[str, dict[str, Any]] = Field(
        {}, description="name -> changes of this file, such as another base and longer arms for a GPU: muonlab sweep --profile NAME"
    )
    refine: Refine | None = Field(None, description="instead of base and arms: a finer grid around another experiment's winners")
    head_to_head: HeadToHead | None = Field(None, description="instead of base and arms: another experiment's two best, for longer")

    @model_validator(mode="after")
    def _one_source(self) -> ExperimentConfig:
        given = [key for key in ("refine", "head_to_head") if getattr(self, key) is not None]
        own = [key for key in ("base", "arms", "grid", "zip") if key in self.model_fields_set]
        if given and (own or len(given) > 1):
            raise ValueError(f"{', '.join([*given, *own])}: expected one of refine, head_to_head, and base with arms")
        missing = [] if given else [key for key in ("base", "arms") if key not in own]
        if missing:
            raise ValueError("\n".join(f"{key}: missing; this key is required" for key in missing))
        if not given and not self.arms:
            raise ValueError("arms: expected at least one, got none")
        return self

    @model_validator(mode="after")
    def _seeds_fit(self) -> ExperimentConfig:
        if not self.seeds:
            raise ValueError("seeds: expected at least one seed (three or more for a verdict), got none")
        if len({*self.seeds}) != len(self.seeds):
            raise ValueError(f"seeds: expected different ones, got {list(self.seeds)}")
        for name in self.arms:
            if not 0 < len(name) <= 60 or not name.isprintable():
                raise ValueError(f"arms: expected names of 1 to 60 printable characters, got {name!r}")
        return self

    @property
    def follows(self) -> Refine | HeadToHead | None:
        return self.refine or self.head_to_head

    def all_targets(self) -> list[float]:
        """The targets, each once; the one that the table of arms shows comes first."""
        return list(dict.fromkeys([*([] if self.target is None else [self.target]), *self.targets]))


@dataclass(frozen=True)
class Cell:
    """One thing that is run with every seed: an arm at one point of its grid."""

    name: str
    arm: str
    swept: dict[str, Any]  # dotted key -> value at this point of the grid
    recipe: Recipe


@dataclass(frozen=True)
class Experiment:
    name: str  # the file's stem, and the profile's name
    config: ExperimentConfig
    cells: list[Cell]
    baseline: str | None  # a cell's name
    base: dict[str, Any]  # the recipe that all arms start from, with `set` and overrides
    found: dict[str, Any] = field(default_factory=dict)  # what the plan says beside the configuration


def load_experiment(
    path: str | Path, overrides: tuple[str, ...] = (), profile: str | None = None, *, above: tuple[Path, ...] = ()
) -> Experiment:
    """Reads an experiment and the recipes of all its cells. Raises InputError, all problems at once.

    overrides: "dotted.key=value" changes for all arms, as for a run; not of keys that an arm sets itself. profile: the one of the
    file's profiles that is laid over it. above: the files whose follow-up this is read for.
    """
    path = Path(path)
    above = (*above, path.resolve())
    raw = _profiled(path, read_toml(path), profile)
    config = validated(ExperimentConfig, raw, str(path))
    found: dict[str, Any] = {}
    if config.follows is not None:
        key = "refine" if config.refine else "head_to_head"
        of = _referred_path(path, key, config.follows.of)
        if of.resolve() in above:
            raise InputError(f"{path}: {key}: {config.follows.of} comes from this experiment itself: name an earlier one")
        known = read_toml(of).get("profiles", {})
        earlier = load_experiment(of, profile=profile if profile in known else None, above=above)
        expanded = expand(path, config.follows, earlier)
        found = {key: {**config.follows.model_dump(mode="json"), **expanded.result}}
        base, baseline = expanded.base, config.baseline or expanded.baseline
        config = config.model_copy(update={"arms": expanded.arms, "baseline": baseline, "metric": _metric(config, earlier)})
    else:
        base = read_toml(_referred_path(path, "base", str(config.base)))
    given = with_overrides({}, overrides)
    base = laid(laid(laid({}, base), config.set), given)
    beyond_presets = explicit(given)  # an arm's preset beats that of --set, but not what --set says beside it
    fixed = list(flat(given))
    cells: list[Cell] = []
    problems: list[str] = []
    for arm, changes in config.arms.items():
        changes = dict(changes)
        grid = read_grid({"grid": config.grid, "zip": config.zip}, changes, f"{path}: arms.{arm}", problems)
        if clash := overlap(fixed, [*flat(changes), *grid.keys()]):
            problems.append(f"--set {clash}: arm {arm!r} sets this key itself; change it in {path}")
        if clash := overlap(grid.keys(), list(flat(changes))):
            problems.append(f"{path}: arm {arm!r} both sets and sweeps {clash}")
        if unknown := [key for key in changes if key not in Recipe.model_fields]:
            known = [*Recipe.model_fields, "grid", "zip"]
            problems += [f"{path}: arm {arm!r}: {key}: unknown key; {did_you_mean(key, known)}" for key in unknown]
            continue
        for swept, again in without_twins(grid.points()):
            name = point_name(arm, swept)
            if again is not None:
                problems.append(f"{path}: {point_name(arm, again)!r} is {name!r} once more: the same runs would count twice")
            if any(cell.name == name for cell in cells):
                problems.append(f"{path}: there are two arms {name!r}: the same runs would count twice")
            try:
                settings = merge(laid(base, merge(changes, nested(swept))), beyond_presets)
                recipe = validated(Recipe, settings, f"{path}: arm {name!r}")
                cells.append(Cell(name, arm, swept, recipe))
            except InputError as error:
                problems.extend(error.problems)
    folders = [run_folder_name(cell.name, 0, cell.recipe.run_id(0)) for cell in cells]
    if len({*folders}) < len(folders):
        problems.append(f"{path}: two arms have equal recipes and names too alike for folders of their own: rename one")
    if problems:
        raise InputError(*dict.fromkeys(problems))
    config = config.model_copy(update={"seeds": _fresh_seeds(path, config, counted=isinstance(raw["seeds"], int))})
    name = path.stem if profile is None else f"{path.stem}-{profile}"
    return Experiment(name, config, cells, _baseline(path, config, cells), base, found)


def _profiled(path: Path, raw: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """The file's content with one of its profiles laid over it."""
    if profile is None:
        return raw
    profiles = validated(ExperimentConfig, raw, str(path)).profiles
    if profile not in profiles:
        known = did_you_mean(profile, profiles) if profiles else "this file has none"
        raise InputError(f"{path}: there is no profile {profile!r}; {known}")
    return merge(raw, profiles[profile])


def _metric(config: ExperimentConfig, earlier: Experiment) -> Metric:
    """A follow-up is decided by what chose its settings, unless it says otherwise."""
    return config.metric if "metric" in config.model_fields_set else earlier.config.metric


def _referred_path(path: Path, key: str, name: str) -> Path:
    """The TOML file that a key of the experiment names, relative to it. Raises InputError if it cannot be read."""
    try:
        read_toml(path.parent / name)
    except InputError as error:
        raise InputError(f"{path}: {key}: {error}") from None
    return path.parent / name


class _Follows(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    of: str


class _Earlier(BaseModel):
    """What counts of an experiment or a search that came before: its seeds, where its settings come from, and its profiles."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    seeds: Seeds
    tuned_by: str | tuple[str, ...] | None = None
    refine: _Follows | None = None
    head_to_head: _Follows | None = None
    profiles: dict[str, dict[str, Any]] = {}


def _sources(config: ExperimentConfig | _Earlier) -> list[str]:
    """The files that an experiment's settings come from."""
    named = (config.tuned_by,) if isinstance(config.tuned_by, str) else config.tuned_by or ()
    return [*named, *(follows.of for follows in (config.refine, config.head_to_head) if follows is not None)]


def _fresh_seeds(path: Path, config: ExperimentConfig, *, counted: bool) -> tuple[int, ...]:
    """The experiment's seeds, none of which has tuned its settings. counted: they were given as a number, so the first that
    are free are taken; a list of them is taken as it stands. Raises InputError where one of it was used before."""
    used = _tuning_seeds(path, _sources(config), (path.resolve(),))
    if counted:
        return _free(used, len(config.seeds))
    by_file: dict[str, list[int]] = {}
    for seed in sorted({*config.seeds} & used.keys()):
        by_file.setdefault(used[seed], []).append(seed)
    if by_file:
        raise InputError(
            *(f"{path}: seeds {s} tuned these settings ({file}); confirm them with others" for file, s in by_file.items())
        )
    return config.seeds


def _tuning_seeds(path: Path, sources: list[str], above: tuple[Path, ...]) -> dict[int, str]:
    """Seed -> the file that used it, of all that tuned an experiment: with any of their profiles, and what tuned them included.
    above: this experiment, and the files that led from it to here: a circle ends where it began."""
    found: dict[int, str] = {}
    for name in sources:
        file = path.parent / name
        if file.resolve() in above:
            continue
        raw = read_toml(_referred_path(path, "tuned_by", name))
        profiles = validated(_Earlier, raw, name).profiles.values()
        for settings in (raw, *(merge(raw, profile) for profile in profiles)):
            earlier = validated(_Earlier, settings, name)
            before = _tuning_seeds(file, _sources(earlier), (*above, file.resolve()))
            # a number of seeds may have stepped over others
            seeds = _free(before, len(earlier.seeds)) if isinstance(settings["seeds"], int) else earlier.seeds
            found = before | dict.fromkeys(seeds, name) | found
    return found


def _free(used: dict[int, str], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice((seed for seed in itertools.count() if seed not in used), count))


def _baseline(path: Path, config: ExperimentConfig, cells: list[Cell]) -> str | None:
    names = [cell.name for cell in cells]
    if config.baseline is None:
        return names[0] if len(names) > 1 and not any(cell.swept for cell in cells) else None
    if config.baseline not in names:
        raise InputError(f"{path}: baseline: there is no arm {config.baseline!r}; {did_you_mean(config.baseline, names)}")
    return config.baseline


def plan_of(experiment: Experiment, machine: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's folder says of its experiment (experiment.json): settings, cells with their whole recipes, and the runs,
    seed by seed, so that half a sweep has as many runs of each arm. machine: device, threads and precision of each run."""
    how = {"arms", "grid", "zip", "set", "base", "refine", "head_to_head", "profiles"}  # the cells are made from these
    config = experiment.config.model_dump(mode="json", exclude=how)
    targets = experiment.config.all_targets()
    disguises = {
        d.cell: {"same_as": d.same_as, "because": d.because}
        for d in find_disguises([(c.name, c.recipe.canonical()) for c in experiment.cells])
        if d.same_as is not None
    }
    config |= {"target": targets[0] if targets else None, "targets": targets}
    if (budget := experiment.config.budget) is not None:
        config["budget"] = budget.model_dump(exclude_none=True)
    return {
        "format": 1,
        "name": experiment.name,
        **config,
        **experiment.found,
        "baseline": experiment.baseline,
        "machine": machine,
        "changes": [],  # of the settings above since the first sweep
        "cells": [
            {"name": c.name, "arm": c.arm, "swept": c.swept, "recipe": c.recipe.canonical(), **disguises.get(c.name, {})}
            for c in experiment.cells
        ],
        "runs": [
            {"cell": c.name, "seed": seed, "id": (run_id := c.recipe.run_id(seed)), "folder": run_folder_name(c.name, seed, run_id)}
            for seed in experiment.config.seeds
            for c in experiment.cells
        ],
    }
