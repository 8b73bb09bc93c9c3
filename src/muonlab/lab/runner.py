"""Runs what is missing of a sweep, in worker processes. Finished runs stay, interrupted ones go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from muonlab.data import corpus
from muonlab.data.corpus import Corpus, DataConfig
from muonlab.errors import InputError, Interrupted, RunError
from muonlab.lab.experiment import Experiment, plan_of
from muonlab.lab.store import Sweep, load_sweep, read_plan, write_plan
from muonlab.train.recipe import Recipe
from muonlab.train.run import Progress, train
from muonlab.train.run_folder import ENDED, RunFolder
from muonlab.train.signals import stop_requests
from muonlab.train.trainer import batches, choose_machine


@dataclass(frozen=True)
class Event:
    """What happened to one run: started, progress, finished, diverged, failed or stopped."""

    cell: str
    seed: int
    kind: str
    progress: Progress | None = None
    message: str = ""


@dataclass(frozen=True)
class _Task:
    cell: str
    seed: int
    folder: str
    recipe: dict[str, Any]
    machine: dict[str, Any]  # device, bf16_fast, threads


def sweep(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> None:
    """Brings every run of the experiment to its end, in the folder `out`.

    workers: processes that train at once; default: one for each core (CPU) or one (CUDA). The first sweep decides device, threads
    and precision of the runs, later ones keep them: a run done again computes what it computed before. Raises InputError for
    bad input, Interrupted after SIGINT or SIGTERM (all runs saved), RunError if runs failed.
    """
    cores = len(os.sched_getaffinity(0))
    chosen = choose_machine(experiment.cells[0].recipe, device)
    total = len(experiment.cells) * len(experiment.config.seeds)
    count = workers or (1 if chosen.device != "cpu" else min(cores, total))
    machine = {"device": chosen.device, "bf16_fast": chosen.bf16_fast, "threads": max(1, cores // count)}
    known = load_sweep(out) if read_plan(out) is not None else None
    if known is not None and device is not None and device != known.plan["machine"]["device"]:
        raise InputError(f"{out}: its runs are computed on {known.plan['machine']['device']}: choose another folder with --out")
    if known is None or any(run.status not in ENDED for run in known.runs):  # nothing is written for what cannot run
        _check_data(experiment, known)
    with RunFolder(out).lock():
        write_plan(out, plan_of(experiment, machine))
        state = load_sweep(out)
        for run in state.runs:
            if run.status in ENDED:
                on_event(Event(run.cell, run.seed, run.status))
        pending = [run for run in state.runs if run.status not in ENDED]
        if damaged := [run.folder for run in pending if run.status == "damaged"]:
            raise InputError(*(f"{out / 'runs' / name}: damaged; delete this folder to redo the run" for name in damaged))
        recipes = {cell.name: cell.recipe.canonical() for cell in experiment.cells}
        settings = state.plan["machine"]
        tasks = [_Task(run.cell, run.seed, str(out / "runs" / run.folder), recipes[run.cell], settings) for run in pending]
        if tasks:
            _Pool(tasks, min(count, len(tasks)), on_event).run()


def _check_data(experiment: Experiment, known: Sweep | None) -> None:
    """Loads each corpus once and fits it to each recipe: what every run would stumble over is said once, before all runs. Runs
    on different versions of a corpus cannot be compared: raises InputError if one has changed since the first of `known`."""
    corpora: dict[DataConfig, Corpus] = {}
    for cell in experiment.cells:
        data = cell.recipe.data
        if data not in corpora:
            corpora[data] = corpus.load(data)
        batches(cell.recipe, corpora[data], experiment.config.seeds[0])
        for run in known.of(cell.name) if known is not None else []:
            if run.run and run.run["data"]["sha256"] != corpora[data].provenance["sha256"]:
                raise InputError(f"{run.folder}: the corpus has changed since this run: sweep into another folder with --out")


class _Worker:
    """A process that trains one task at a time, and our end of its pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: _Task | None = None
        # The terminal's Ctrl-C must reach the runner alone, which then stops each run once: born ignoring it, a
        # worker leaves our process group before it trains.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process: SpawnProcess = context.Process(target=_work, args=(theirs,), daemon=True)
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()

    def give(self, task: _Task) -> None:
        self.task = task
        self.pipe.send(task)


class _Pool:
    def __init__(self, tasks: list[_Task], count: int, on_event: Callable[[Event], None]) -> None:
        self.waiting, self.on_event = list(tasks), on_event
        self.count = count
        self.workers: list[_Worker] = []
        self.failures: list[str] = []
        self.stopping: int | None = None

    def run(self) -> None:
        with stop_requests() as request:
            self.workers = [_Worker() for _ in range(self.count)]
            for worker in list(self.workers):
                self._next(worker)
            while self.workers:
                if request.signum is not None and self.stopping is None:
                    self.stopping = request.signum
                    self._stop_all()
                by_pipe = {worker.pipe: worker for worker in self.workers}
                for pipe in wait(list(by_pipe), timeout=0.2):
                    self._hear(by_pipe[pipe])  # pyright: ignore[reportArgumentType]
        if self.stopping is not None:
            message = "\n".join([*self.failures, "stopped; all runs are saved: the same command goes on"])
            raise Interrupted(self.stopping, message)
        if self.failures:
            raise RunError("\n".join([*self.failures, "The other runs are done; the same command tries these again."]))

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        task = worker.task
        assert task is not None
        if kind == "progress":
            self.on_event(Event(task.cell, task.seed, "progress", progress=content))
            return
        worker.task = None
        if kind == "failed":
            self.failures.append(content)
        self.on_event(Event(task.cell, task.seed, kind, message=content))
        self._next(worker)

    def _lost(self, worker: _Worker) -> None:
        """A worker ended without a word: killed, out of memory, crashed. Its run is left to the next sweep."""
        worker.process.join()
        self.workers.remove(worker)
        if worker.task is not None and self.stopping is None:
            message = f"{worker.task.cell}, seed {worker.task.seed}: its process ended with exit code {worker.process.exitcode}"
            self.failures.append(message)
            self.on_event(Event(worker.task.cell, worker.task.seed, "failed", message=message))
            if self.waiting:
                replacement = _Worker()
                self.workers.append(replacement)
                self._next(replacement)

    def _next(self, worker: _Worker) -> None:
        if self.waiting and self.stopping is None:
            task = self.waiting.pop(0)
            try:
                worker.give(task)
            except OSError:  # it died between two tasks
                self._lost(worker)
                return
            self.on_event(Event(task.cell, task.seed, "started"))
        else:
            worker.pipe.close()
            worker.process.join()
            self.workers.remove(worker)

    def _stop_all(self) -> None:
        for worker in self.workers:
            if worker.task is not None and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)


def _work(pipe: Connection) -> None:
    """A worker's life: tasks come through the pipe, progress and one outcome each go back, until it is closed."""
    os.setpgrp()

    def tell(progress: Progress) -> None:
        try:
            pipe.send(("progress", progress))
        except OSError:  # the runner is gone: save and stop
            os.kill(os.getpid(), signal.SIGTERM)

    while True:
        try:
            task: _Task = pipe.recv()
        except EOFError:
            return
        try:
            recipe = Recipe.model_validate(task.recipe)
            result = train(recipe, task.seed, task.folder, **task.machine, resume=True, on_progress=tell)
            outcome: tuple[str, Any] = (result["status"], "")
        except Interrupted as stopped:
            outcome = ("stopped", str(stopped))
        except (InputError, RunError) as error:
            outcome = ("failed", f"{task.cell}, seed {task.seed}: {error}")
        except Exception as error:  # a bug or no memory: the traceback goes to stderr, the other runs go on
            traceback.print_exc()
            outcome = ("failed", f"{task.cell}, seed {task.seed}: {type(error).__name__}: {error}")
        try:
            pipe.send(outcome)
        except OSError:
            return
