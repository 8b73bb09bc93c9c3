"""What an experiment asks of the machine: how many runs at once, on which device, and data that every recipe can be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch

from muonlab.data import corpus
from muonlab.data.config import DataConfig
from muonlab.data.corpus import Corpus
from muonlab.errors import InputError
from muonlab.lab.plan.experiment import Experiment
from muonlab.lab.runs.store import Sweep
from muonlab.train.footprint import footprints
from muonlab.train.recipe import Recipe
from muonlab.train.threads import own_cores, told_threads
from muonlab.train.trainer import Machine, batches, choose_machine

# On one GPU. A guess until `benchmarks/gpu.py --only sweep` has been run on one: that part says what to put here.
GPU_RUNS = 4
GPU_SHARE = 0.8  # of the free memory: what the runs' estimates may fill together
GPU_PROCESS = 1 << 30  # bytes that a process takes beside its tensors: CUDA's context and libraries, the allocator's gaps; a guess


def workers_and_machine(experiment: Experiment, workers: int | None, device: str | None) -> tuple[int, dict[str, Any]]:
    """How many processes train at once, and what a plan says of the machine: device, bf16_fast and threads of each run."""
    cores = len(own_cores())
    chosen = choose_machine(experiment.cells[0].recipe, device, threads=told_threads() or cores)
    total = len(experiment.cells) * len(experiment.config.seeds)
    if workers is None and torch.device(chosen.device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(chosen.device)
        workers = runs_on_a_gpu(free, needed_memory((cell.recipe for cell in experiment.cells), chosen), cores, total)
    count = workers or min(cores, total)
    threads = min(told_threads() or cores, max(1, cores // count))  # no more together than there are cores
    return count, {"device": chosen.device, "bf16_fast": chosen.bf16_fast, "threads": threads}


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
