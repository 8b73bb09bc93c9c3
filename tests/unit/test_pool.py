"""The pool of workers, with workers that are no processes: who gets which task, who leaves, and when."""

from __future__ import annotations

import multiprocessing
import os
import signal
import types

import pytest

from muonlab.errors import Interrupted
from muonlab.lab.run import pool
from muonlab.lab.run.pool import Pool, Task


class Made:
    """A worker that ends each task at once, unless its name is in `mute` (it stays busy) or it is `dead` (its pipe is broken)."""

    def __init__(self, mute=()):
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.task, self.mute, self.done, self.dead = None, mute, [], False
        self.process = types.SimpleNamespace(join=lambda: None, pid=None, exitcode=-9)

    def give(self, task):
        self.task = task
        if self.dead:
            raise BrokenPipeError
        self.done.append(task.cell)
        if task.cell not in self.mute:
            self.theirs.send(("finished", ""))


@pytest.fixture
def made(monkeypatch):
    """The workers that a pool makes, in their order."""
    workers = []

    def make():
        workers.append(Made(mute=("slow",)))
        return workers[-1]

    monkeypatch.setattr(pool, "_Worker", make)
    return workers


def tasks(*names):
    return [Task(name, 0, "", {}, {}) for name in names]


def test_a_round_with_more_tasks_than_the_first_gets_more_workers(made):
    rounds = [tasks("b", "c", "d"), []]
    Pool(tasks("a"), 3, lambda _: None, more=lambda: rounds.pop(0)).run()
    assert len(made) == 3
    assert sorted(name for worker in made for name in worker.done) == ["a", "b", "c", "d"]


def test_idle_workers_leave_when_the_last_busy_one_dies_during_a_stop(made):
    def hear(event):
        if event.cell == "quick" and event.kind == "finished":
            os.kill(os.getpid(), signal.SIGINT)
        if event.cell == "quick" and event.kind == "started":
            next(worker for worker in made if worker.done == ["slow"]).process.pid = -1  # stands for a process

    killed = []

    def kill(pid, signum):
        """The stopped worker is killed before it can answer."""
        if pid == -1:
            killed.append(signum)
            next(worker for worker in made if worker.done == ["slow"]).theirs.close()
        else:
            real(pid, signum)

    real = os.kill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.os, "kill", kill)
        pool_of_two = Pool(tasks("slow", "quick"), 2, hear, more=lambda: [])
        with pytest.raises(Interrupted):
            pool_of_two.run()
    assert killed == [signal.SIGTERM]
    assert pool_of_two.workers == []


def test_a_worker_that_is_found_dead_leaves_its_task_to_another_and_nobody_gets_two(made):
    """Three idle workers wait for a round; the first has died unseen."""
    held = Pool(tasks(), 3, lambda _: None, more=lambda: [])
    held.workers = [pool._Worker() for _ in range(3)]
    held.waiting = tasks("slow", "slow", "slow", "slow")
    made[0].dead = True
    held._distribute()
    assert [worker.done for worker in made] == [[], ["slow"], ["slow"], ["slow"]]
    assert len(held.waiting) == 1
