"""Runs what is missing of a sweep, in worker processes. Finished runs stay, interrupted ones go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from muonlab.data import corpus
from muonlab.data.config import DataConfig
from muonlab.data.corpus import Corpus
from muonlab.errors import InputError
from muonlab.lab.plan.experiment import Experiment, plan_of
from muonlab.lab.run.pool import Event, Pool, Task
from muonlab.lab.run.race import Standing, check, next_runs, standings
from muonlab.lab.runs.store import RunRecord, Sweep, merged, note_failure, read_plan, read_runs, write_plan
from muonlab.train.batch_size import shared_memory_limit
from muonlab.train.footprint import footprints
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import ENDED, RunFolder
from muonlab.train.trainer import Machine, batches, choose_machine

# On one GPU. A guess until `benchmarks/gpu.py --only sweep` has been run on one: that part says what to put here.
GPU_RUNS = 4
GPU_SHARE = 0.8  # of the free memory: what the runs' estimates may fill together
GPU_PROCESS = 1 << 30  # bytes that a process takes beside its tensors: CUDA's context and libraries, the allocator's gaps; a guess


def sweep(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> None:
    """Brings every run of the experiment to its end, in the folder `out`.

    workers: processes that train at once; default: one for each core (CPU), or up to four where the GPU's memory allows (CUDA). The
    first sweep decides device, threads and precision of the runs, later ones keep them: a run done again computes what it computed
    before. Raises InputError for bad input, Interrupted after SIGINT or SIGTERM (all runs saved), RunError if runs failed.
    """
    _run(experiment, out, workers, device, on_event, lambda state, _: [run for run in state.runs if run.status not in ENDED])


def race(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    on_look: Callable[[dict[str, Standing]], None] = lambda _: None,
) -> None:
    """Runs one seed after the other, of the baseline and of every arm whose verdict is open, in the folder `out`.

    The experiment's seeds are the most that it may use. on_look: told where the arms stand, after every seed. Everything else is
    as for `sweep`; a race that was broken off goes on.
    """

    def needed(state: Sweep, count: int) -> list[RunRecord]:
        on_look(standings(state))
        return next_runs(state, count)

    check(plan_of(experiment, {}), experiment.name)
    _run(experiment, out, workers, device, on_event, needed, race=True)


def _run(
    experiment: Experiment,
    out: Path,
    workers: int | None,
    device: str | None,
    on_event: Callable[[Event], None],
    needed: Callable[[Sweep, int], list[RunRecord]],
    race: bool = False,
) -> None:
    """needed: the runs that are to be done now, of those planned, with so many workers; a race asks again after each round."""
    count, machine = workers_and_machine(experiment, workers, device)
    known = read_plan(out)
    if known is None:
        check_data(experiment, None)  # nothing is written for what cannot run
    elif device is not None and device != known["machine"]["device"]:
        raise InputError(f"{out}: its runs are computed on {known['machine']['device']}: choose another folder with --out")
    with RunFolder(out).lock():
        plan = plan_of(experiment, machine) | ({"race": True} if race else {})
        state = read_runs(out, merged(out, read_plan(out), plan))
        if damaged := [run.problem for run in state.runs if run.status == "damaged"]:
            raise InputError(*damaged)
        if known is not None and any(run.status not in ENDED for run in state.runs):
            check_data(experiment, state)
        write_plan(out, plan)
        for run in state.runs:
            if run.status in ENDED:
                on_event(Event(run.cell, run.seed, run.status))
        recipes = {cell.name: cell.recipe.canonical() for cell in experiment.cells}
        settings = state.plan["machine"]
        settings = settings | shared_memory_limit((cell.recipe for cell in experiment.cells), settings["device"], count)

        def tasks(state: Sweep) -> list[Task]:
            runs = needed(state, count)
            return [Task(run.cell, run.seed, str(out / "runs" / run.folder), recipes[run.cell], settings) for run in runs]

        def failed(task: Task, why: str) -> None:
            note_failure(out, Path(task.folder).name, why)

        if first := tasks(state):
            more = (lambda: tasks(read_runs(out, state.plan))) if race else None
            Pool(first, count, on_event, failed, more).run()


def workers_and_machine(experiment: Experiment, workers: int | None, device: str | None) -> tuple[int, dict[str, Any]]:
    """How many processes train at once, and what a plan says of the machine: device, bf16_fast and threads of each run."""
    cores = len(os.sched_getaffinity(0))
    chosen = choose_machine(experiment.cells[0].recipe, device)
    total = len(experiment.cells) * len(experiment.config.seeds)
    if workers is None and torch.device(chosen.device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(chosen.device)
        workers = runs_on_a_gpu(free, needed_memory((cell.recipe for cell in experiment.cells), chosen), cores, total)
    count = workers or min(cores, total)
    return count, {"device": chosen.device, "bf16_fast": chosen.bf16_fast, "threads": max(1, cores // count)}


def runs_on_a_gpu(free: int, needed: int | None, cores: int, runs: int) -> int:
    """How many runs to do at once on a GPU with `free` bytes, each of which needs `needed` bytes; None: nobody knows how many."""
    if needed is None:
        return 1
    return max(1, min(GPU_RUNS, int(GPU_SHARE * free) // max(1, needed), cores, runs))


def needed_memory(recipes: Iterable[Recipe], machine: Machine) -> int | None:
    """Bytes on the device that the largest of the recipes needs, in a process of its own. None: one of them takes what there is
    (train.accumulate = "auto"), or cannot be followed."""
    largest, known = 0, set[str]()
    for recipe in recipes:
        if recipe.train.accumulate == "auto":
            return None
        table = recipe.canonical()
        # What is only a number of the optimizer's changes nothing: a grid of learning rates is followed once.
        optimizer = {key: value for key, value in table["optimizer"].items() if not isinstance(value, float | dict)}
        shape = json.dumps([table["model"], table["data"], optimizer, table["train"]["batch"], table["train"]["accumulate"]])
        if shape in known:
            continue
        known.add(shape)
        needed = _followed(recipe, machine)
        if needed is None:
            return None
        largest = max(largest, needed)
    return largest + GPU_PROCESS


def _followed(recipe: Recipe, machine: Machine) -> int | None:
    """Bytes of a step's tensors. None: it cannot be followed, for whatever reason (an optimizer that looks at its values): what is
    only a default may not fail where the runs would not."""
    parts = recipe.train.accumulate
    batch = -(-recipe.train.batch // (1 if parts == "auto" else parts))
    at = {"batch": batch, "vocab_size": corpus.vocab_size(recipe.data), "precision": machine.precision}
    for device in (machine.device, "cpu"):  # tensors without memory are least at home on a GPU; the sizes are nearly the same
        try:
            return footprints(recipe.model, {"": recipe.optimizer}, device=device, **at)[""].total
        except Exception:
            continue
    return None


def check_data(experiment: Experiment, known: Sweep | None) -> dict[DataConfig, int]:
    """Loads each corpus once and fits it to each recipe: what every run would stumble over is said once, before all runs. Runs
    on different versions of a corpus cannot be compared: raises InputError if one has changed since the first of `known`. Returns
    the size of each corpus's vocabulary."""
    corpora: dict[DataConfig, Corpus] = {}
    for cell in experiment.cells:
        data = cell.recipe.data
        if data not in corpora:
            corpora[data] = corpus.load(data)
        batches(cell.recipe, corpora[data], experiment.config.seeds[0])
        for run in known.of(cell.name) if known is not None else []:
            if run.run and run.run["data"]["sha256"] != corpora[data].provenance["sha256"]:
                raise InputError(f"{run.folder}: the corpus has changed since this run: sweep into another folder with --out")
    return {data: text.vocab_size for data, text in corpora.items()}
