"""Worker processes that train, one run at a time each. A killed one is replaced and its run tried again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train.recipe import Recipe
from muonlab.train.run import Progress, train
from muonlab.train.run_folder import Locked, RunFolder
from muonlab.train.signals import stop_requests
from muonlab.train.threads import wait_passively

TRIES = 3  # of a run whose process is killed: memory may have been short for a moment
_PATIENCE = 120.0  # seconds for the workers of a killed runner to save and leave


@dataclass(frozen=True)
class Event:
    """What happened to one run: started, progress, retry, finished, diverged, failed or stopped."""

    cell: str
    seed: int
    kind: str
    progress: Progress | None = None
    message: str = ""


@dataclass(frozen=True)
class Task:
    cell: str
    seed: int
    folder: str
    recipe: dict[str, Any]
    machine: dict[str, Any]  # device, bf16_fast, threads


class _Worker:
    """A process that trains one task at a time, and our end of its pipe."""

    def __init__(self) -> None:
        wait_passively()  # whoever is started from here
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: Task | None = None
        # The terminal's Ctrl-C must reach the runner alone, which then stops each run once: born ignoring it, a
        # worker leaves our process group before it trains.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process: SpawnProcess = context.Process(target=_work, args=(theirs,), daemon=True)
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        self.pipe.send(task)


class Pool:
    def __init__(
        self,
        tasks: list[Task],
        count: int,
        on_event: Callable[[Event], None],
        on_failure: Callable[[Task, str], None] = lambda *_: None,
        more: Callable[[], list[Task]] | None = None,
    ) -> None:
        """count: the most workers at once. more: asked for further tasks whenever all are done, until it has none."""
        self.waiting, self.count = list(tasks), count
        self.on_event, self.on_failure, self.more = on_event, on_failure, more
        self.workers: list[_Worker] = []
        self.lost: Counter[tuple[str, int]] = Counter()
        self.failures: list[str] = []
        self.stopping: int | None = None

    def run(self) -> None:
        """Brings every task to its end. Raises Interrupted after SIGINT or SIGTERM, RunError if runs failed."""
        with stop_requests() as request:
            self._hire()
            self._distribute()
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
            self._fail(task, content)
        else:
            self.on_event(Event(task.cell, task.seed, kind, message=content))
        self._distribute()

    def _fail(self, task: Task, message: str) -> None:
        self.failures.append(message)
        self.on_failure(task, message)
        self.on_event(Event(task.cell, task.seed, "failed", message=message))

    def _lost(self, worker: _Worker) -> None:
        """A worker ended without a word: killed, out of memory, crashed. Its run goes on in a new one, or is given up."""
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        task = worker.task
        if task is None or self.stopping is not None:
            self._distribute()  # idle workers wait for the next round: nobody else would tell them to leave
            return
        self.lost[task.cell, task.seed] += 1
        message = f"{task.cell}, seed {task.seed}: its process ended with exit code {worker.process.exitcode}"
        if self.lost[task.cell, task.seed] < TRIES:
            self.waiting.insert(0, task)
            self.on_event(Event(task.cell, task.seed, "retry", message=f"{message}; it is tried again"))
        else:
            self._fail(task, f"{message}, {TRIES} times in a row (out of memory? try fewer --workers)")
        if self.waiting:
            self.workers.append(_Worker())
        self._distribute()

    def _distribute(self) -> None:
        """Gives every idle worker a task; one that will not get another leaves."""
        if not self.waiting and not any(worker.task for worker in self.workers):
            self._refill()
        for worker in list(self.workers):
            if worker.task is not None or worker not in self.workers:
                continue  # busy; or gone, or given a task, while another was found dead
            if self.waiting and self.stopping is None:
                self._give(worker, self.waiting.pop(0))
            elif self.more is None or self.stopping is not None:
                worker.pipe.close()
                worker.process.join()
                self.workers.remove(worker)

    def _give(self, worker: _Worker, task: Task) -> None:
        try:
            worker.give(task)
        except OSError:  # it died between two tasks
            self._lost(worker)
            return
        self.on_event(Event(task.cell, task.seed, "started"))

    def _refill(self) -> None:
        if self.more is not None and self.stopping is None and not self.failures:
            self.waiting = self.more()
            self._hire()
        if not self.waiting:
            self.more = None

    def _hire(self) -> None:
        """As many workers as can be busy: a round may have more tasks than the one before, and a worker may have died idle."""
        self.workers += [_Worker() for _ in range(min(self.count, len(self.waiting)) - len(self.workers))]

    def _stop_all(self) -> None:
        for worker in self.workers:
            if worker.task is not None and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)


class _Leave:
    """Asks this process to save and stop, once: a second SIGTERM would end it at once."""

    asked = False

    def __call__(self) -> None:
        if not self.asked:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)


def _watch_over(leave: _Leave) -> None:
    """Leaves when the runner is gone, however it ended: nobody would hear of this worker's runs."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(0.2)
    leave()


def _wait_until_free(folder: Path) -> None:
    """A killed runner's worker may still hold the run: it saves and leaves. Raises Locked if it stays."""
    until = time.monotonic() + _PATIENCE
    while folder.exists():
        try:
            with RunFolder(folder).lock():
                return
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _work(pipe: Connection) -> None:
    """A worker's life: tasks come through the pipe, progress and one outcome each go back, until it is closed."""
    os.setpgrp()
    leave = _Leave()
    threading.Thread(target=_watch_over, args=(leave,), daemon=True).start()

    def tell(progress: Progress) -> None:
        try:
            pipe.send(("progress", progress))
        except OSError:
            leave()

    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            _wait_until_free(Path(task.folder))
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
