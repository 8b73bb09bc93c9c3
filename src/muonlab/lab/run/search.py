"""Hyperparameter search through Optuna's ask and tell: as many trials for each arm, every trial an ordinary run of a sweep.

Nothing is stored but the runs. A search that goes on asks again from the first trial, and tells what the runs on disk say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from muonlab.errors import InputError
from muonlab.lab.plan.config import ExperimentConfig, Metric, Seeds
from muonlab.lab.plan.experiment import Cell, Experiment, plan_of
from muonlab.lab.plan.grid import overlap, point_name
from muonlab.lab.run.pool import Event
from muonlab.lab.run.runner import sweep
from muonlab.lab.runs.store import read_plan, read_runs
from muonlab.streams import stream_seed
from muonlab.train.layers import explicit, laid
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import ENDED
from muonlab.train.settings import flat, merge, nested, read_toml, validated, with_overrides


class Range(BaseModel):
    """Between two numbers; whole numbers where both are whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"expected low below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected low above 0 with log = true, got {self.low}")
        return self


Space = dict[str, Range | list[Any]]  # dotted key -> where its value is looked for


class SearchConfig(BaseModel):
    """The content of a search's TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="muonlab search")

    question: str = Field(description="what the search is for, in a sentence")
    base: str = Field(description="the recipe that all arms start from, a path relative to this file")
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> what it changes in the recipe, and `space`: key -> {low, high, log} or a list of values"
    )
    space: dict[str, Any] = Field({}, description="key -> {low, high, log} or a list of values, for every arm")
    set: dict[str, Any] = Field({}, description="changes of the recipe for all arms")
    seeds: Seeds = Field(description="each trial is run with all of them: a list, or a number n for 0 … n−1")
    trials: PositiveInt = Field(description="of each arm: all have the same budget, trials × seeds runs")
    together: PositiveInt = Field(1, description="trials of each arm that are asked for before their results are told")
    search_seed: int = Field(0, ge=0, description="decides what is tried")
    metric: Metric = Field("val_loss", description="what is minimized; the mean over the seeds")
    target: float | None = Field(None, description="validation loss whose first crossing is timed")


@dataclass(frozen=True)
class Search:
    name: str
    config: SearchConfig
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]]  # what each changes
    spaces: dict[str, Space]
    overrides: dict[str, Any]  # explicit ones, which beat presets that arms name

    def cell(self, arm: str, point: Mapping[str, Any]) -> Cell:
        recipe = merge(laid(self.base, merge(self.arms[arm], nested(point))), self.overrides)
        name = point_name(arm, point)
        return Cell(name, arm, dict(point), validated(Recipe, recipe, f"{self.name}: arm {name!r}"))


def load_search(path: str | Path, overrides: tuple[str, ...] = ()) -> Search:
    """Reads a search. Raises InputError, all problems at once; the ends of each range are tried as recipes."""
    path = Path(path)
    config = validated(SearchConfig, read_toml(path), str(path))
    try:
        base = read_toml(path.parent / config.base)
    except InputError as error:
        raise InputError(f"{path}: base: {error}") from None
    given = with_overrides({}, overrides)
    base = laid(laid(laid({}, base), config.set), given)
    problems: list[str] = []
    arms, spaces = {}, {}
    for arm, changes in config.arms.items():
        arms[arm] = {key: value for key, value in changes.items() if key != "space"}
        spaces[arm] = _space(config.space, f"{path}: space", problems)
        spaces[arm] |= _space(changes.get("space", {}), f"{path}: arms.{arm}.space", problems)
        fixed = [*flat(arms[arm]), *flat(given)]
        if clash := overlap(list(spaces[arm]), fixed):
            problems.append(f"{path}: arm {arm!r} both sets and searches {clash}")
        if not spaces[arm] and not problems:
            problems.append(f"{path}: arms.{arm}: expected a space such as space.optimizer.lr = {{ low = 1e-3, high = 1e-1 }}")
    if problems:
        raise InputError(*dict.fromkeys(problems))
    search = Search(path.stem, config, base, arms, spaces, explicit(given))
    for arm, space in spaces.items():
        ends = {key: [s.low, s.high] if isinstance(s, Range) else s for key, s in space.items()}
        for i in range(max(map(len, ends.values()))):
            try:
                search.cell(arm, {key: values[i % len(values)] for key, values in ends.items()})
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return search


def _space(table: Any, where: str, problems: list[str], prefix: str = "") -> Space:
    found: Space = {}
    if not isinstance(table, Mapping):
        problems.append(f"{where}: expected a table of keys, got {table!r}")
        return found
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            found |= _space(value, where, problems, f"{name}.")
        elif isinstance(value, Mapping):
            try:
                found[name] = Range.model_validate(value)
            except ValidationError:
                try:
                    validated(Range, value, f"{where}: {name}")
                except InputError as error:
                    problems += error.problems
        elif isinstance(value, list) and value:
            found[name] = value
        else:
            problems.append(f"{where}: {name}: expected a list of values or {{ low, high, log }}, got {value!r}")
    return found


# -- ask, run, tell -----------------------------------------------------------------------------------------------------


@dataclass
class _Rounds:
    """What has been asked so far."""

    search: Search
    cells: dict[str, Cell] = field(default_factory=dict)

    def experiment(self) -> Experiment:
        config = self.search.config
        shared = {key: getattr(config, key) for key in ("question", "base", "seeds", "metric", "target")}
        as_experiment = ExperimentConfig.model_validate({**shared, "arms": {arm: {} for arm in config.arms}})
        found = {"search": {"trials": config.trials, "together": config.together, "search_seed": config.search_seed}}
        return Experiment(self.search.name, as_experiment, list(self.cells.values()), None, self.search.base, found)


def run_search(
    search: Search,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    on_cells: Callable[[list[str]], None] = lambda _: None,
) -> None:
    """Brings every trial to its end, in the folder `out`, which is that of a sweep. Raises what `sweep` raises, and InputError
    where Optuna is not installed, or the folder's trials are not those that this search asks for."""
    optuna = _optuna()
    config, rounds = search.config, _Rounds(search)
    known = read_plan(out)
    before = [cell["name"] for cell in known["cells"]] if known is not None else []
    studies = {
        arm: optuna.create_study(sampler=optuna.samplers.TPESampler(seed=stream_seed(config.search_seed, "search", arm) % 2**32))
        for arm in config.arms
    }
    for start in range(0, config.trials, config.together):
        asked = []
        for _ in range(min(config.together, config.trials - start)):
            for arm, study in studies.items():
                trial = study.ask()
                cell = search.cell(arm, {key: _suggested(trial, key, space) for key, space in search.spaces[arm].items()})
                rounds.cells.setdefault(cell.name, cell)
                asked.append((study, trial, cell.name))
        names = list(rounds.cells)
        if before[: len(names)] != names[: len(before)]:
            raise InputError(f"{out}: its trials are not those of this search (another file, other results, or another version of "
                             "Optuna): choose another folder with --out")  # fmt: skip
        on_cells(names)
        values = _values(out, rounds.experiment(), {name for *_, name in asked})
        if any(value is None for value in values.values()):
            sweep(rounds.experiment(), out, workers=workers, device=device, on_event=on_event)
            values = _values(out, rounds.experiment(), {name for *_, name in asked})
        for study, trial, name in asked:
            study.tell(trial, values[name])


def _suggested(trial: Any, key: str, space: Range | list[Any]) -> Any:
    """Four digits are enough for a setting, and leave names that can be read."""
    if isinstance(space, list):
        return space[trial.suggest_categorical(key, range(len(space)))]
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(key, space.low, space.high, log=space.log)
    value = trial.suggest_float(key, space.low, space.high, log=space.log)
    return min(max(float(f"{value:.4g}"), space.low), space.high)


def _values(out: Path, experiment: Experiment, names: set[str]) -> dict[str, float | None]:
    """Mean metric of each cell; infinite where a run diverged, None where runs are not done."""
    plan = plan_of(experiment, {})
    runs = read_runs(out, {**plan, "runs": [run for run in plan["runs"] if run["cell"] in names]})
    found: dict[str, float | None] = {}
    for name in names:
        of = runs.of(name)
        ended = all(run.status in ENDED for run in of)
        values = [run.value(experiment.config.metric) for run in of]
        finite = [math.inf if value is None else value for value in values]
        found[name] = statistics.fmean(finite) if ended else None
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("muonlab search needs Optuna: pip install 'muonlab[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
