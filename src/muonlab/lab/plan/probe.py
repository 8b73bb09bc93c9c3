"""What a sweep would cost: runs, tokens, FLOPs, and a time measured on a few real steps of each kind of recipe."""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.plan.experiment import Experiment, plan_of
from muonlab.lab.plan.machine import check_data, workers_and_machine
from muonlab.lab.runs.store import RunRecord, merged, read_plan, read_runs
from muonlab.models.counting import size_of
from muonlab.train.batch_size import fitted, shared_memory_limit
from muonlab.train.memory import keep_freed_memory
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import ENDED
from muonlab.train.trainer import Trainer, choose_machine

_WARM_UP, _STEPS, _LONG_ENOUGH = 2, 20, 1.0  # steps not counted, most steps counted, seconds after which to stop counting


@dataclass(frozen=True)
class Pace:
    """Seconds that one process needs, while as many others work as in the sweep."""

    build: float  # model and data, before the first step
    step: float
    evaluation: float


@dataclass(frozen=True)
class Estimate:
    runs: int
    found: int  # ended already
    tokens: int  # of training, still to do
    flops: float  # of training, still to do
    workers: int
    seconds: float | None  # wall time; None where nothing is left to do
    shapes: int  # kinds of recipes that were measured
    cells: list[dict[str, Any]]  # name, runs, to_do, tokens, seconds of one whole run


def estimate(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Writes nothing. Raises InputError for bad data, a damaged folder, or one of another experiment."""
    count, machine = workers_and_machine(experiment, workers, device)
    plan = merged(out, read_plan(out), plan_of(experiment, machine))
    runs = read_runs(out, plan).runs
    if damaged := [run.problem for run in runs if run.status == "damaged"]:
        raise InputError(*damaged)
    pending = [run for run in runs if run.status not in ENDED]
    vocabulary = check_data(experiment, None)
    recipes = {cell.name: cell.recipe for cell in experiment.cells}
    needed = {_shape(recipes[run.cell]): recipes[run.cell] for run in pending}
    count = min(count, len(pending)) if pending else count
    if needed:
        say(f"measuring {len(needed)} {'kind' if len(needed) == 1 else 'kinds'} of recipes with {count} workers")
    paces = _measure(needed, plan["machine"], count) if needed else {}
    flops = {name: size_of(r.model, vocabulary[r.data]).flops_per_token for name, r in recipes.items()}
    todo = [(recipes[run.cell].train.steps - _reached(run), run) for run in pending]
    times = [_seconds(recipes[run.cell], steps, paces[_shape(recipes[run.cell])]) for steps, run in todo]
    tokens = {id(run): steps * recipes[run.cell].tokens_per_step for steps, run in todo}
    return Estimate(
        runs=len(runs),
        found=len(runs) - len(pending),
        tokens=sum(tokens.values()),
        flops=sum(tokens[id(run)] * flops[run.cell] for _, run in todo),
        workers=count,
        seconds=_makespan(times, count) if times else None,
        shapes=len(needed),
        cells=[
            {
                "name": name,
                "runs": sum(run.cell == name for run in runs),
                "to_do": sum(run.cell == name for run in pending),
                "tokens": recipe.train.steps * recipe.tokens_per_step,
                "seconds": _seconds(recipe, recipe.train.steps, paces[_shape(recipe)]) if _shape(recipe) in paces else None,
            }
            for name, recipe in recipes.items()
        ],
    )


def _shape(recipe: Recipe) -> str:
    """Equal for recipes that cost the same: what a number only scales, or how long it goes on, does not count."""
    table = recipe.canonical()
    optimizer = {key: value for key, value in table["optimizer"].items() if not isinstance(value, float | dict)}
    train = {key: table["train"][key] for key in ("batch", "accumulate", "precision", "compile", "eval_tokens", "grad_clip")}
    return json.dumps([table["model"], table["data"], optimizer, train], sort_keys=True)


def _reached(run: RunRecord) -> int:
    """The step that an interrupted run has come to; it may have to go back a little, to its checkpoint."""
    return run.rows[-1]["step"] if run.rows else 0


def _seconds(recipe: Recipe, steps: int, pace: Pace) -> float:
    return pace.build + steps * pace.step + math.ceil(steps / recipe.train.eval_every) * pace.evaluation


def _makespan(times: list[float], workers: int) -> float:
    """Each run goes to the worker that is free first."""
    free = [0.0] * workers
    for seconds in times:
        at = free.index(min(free))
        free[at] += seconds
    return max(free)


def _measure(recipes: dict[str, Recipe], machine: dict[str, Any], count: int) -> dict[str, Pace]:
    """Every kind of recipe in `count` processes at once, as the sweep would run them: they share memory and cores."""
    found, machine = {}, machine | shared_memory_limit(recipes.values(), machine["device"], count)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        for shape, recipe in recipes.items():
            paces = list(pool.map(pace_of, [recipe.canonical()] * count, [machine] * count))
            found[shape] = Pace(*(statistics.fmean(getattr(p, key) for p in paces) for key in ("build", "step", "evaluation")))
    return found


def pace_of(recipe: dict[str, Any], machine: dict[str, Any]) -> Pace:
    """Times some optimizer steps and one evaluation in this process."""
    known = Recipe.model_validate(recipe)
    chosen = choose_machine(known, machine["device"], machine["threads"], machine["bf16_fast"])
    chosen = fitted(chosen, known, 0, memory_limit=machine.get("memory_limit"))
    if chosen.device == "cpu":
        keep_freed_memory()
    start = time.perf_counter()
    trainer = Trainer(known, 0, chosen)
    build = time.perf_counter() - start
    for _ in range(_WARM_UP):
        trainer.train_step().item()
    start, steps = time.perf_counter(), 0
    while steps < _STEPS and (steps == 0 or time.perf_counter() - start < _LONG_ENOUGH):
        trainer.train_step().item()
        steps += 1
    step = (time.perf_counter() - start) / steps
    start = time.perf_counter()
    trainer.evaluate()
    return Pace(build, step, time.perf_counter() - start)
