"""Trackers: TensorBoard, W&B and Trackio get each row of metrics.jsonl as a run writes it. They are no part of what is computed.

A tracker has the shape of accelerate's GeneralTracker: start, store_init_configuration, log, finish. It lives in a thread of its
own behind a bounded queue: it may fail, be slow or hang, and the run does not wait for it, but for a moment at its end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import queue
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Protocol

from muonlab.errors import InputError
from muonlab.names import did_you_mean
from muonlab.train.run_folder import RunFolder, read_json, write_json

CAPACITY = 4096  # rows that wait for a slow tracker; further ones are lost to it
PATIENCE = 15.0  # seconds without a sign of life, at the end of a run, after which a tracker is given up
ENDING = 60.0  # seconds at the end of a run, for all trackers together, after which also one that is only slow is given up

Say = Callable[[str], None]
_hung = False


def hung() -> bool:
    """Whether a tracker was given up that is still busy: its library may then wait for it when the process ends, without end."""
    return _hung


@dataclass(frozen=True)
class Tracked:
    """What a tracker has to know of its run."""

    folder: Path
    id: str  # the same in every session of this run, and no other run's
    first_step: int  # rows of earlier steps have come in earlier sessions; what came of this step or later is computed again


class Tracker(Protocol):
    """accelerate.tracking.GeneralTracker, as far as it is used here. All calls come from one thread."""

    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder: tensorboard --logdir runs."""

    def __init__(self, run: Tracked) -> None:
        self.run, self.where = run, str(run.folder / "tensorboard")

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.where, purge_step=self.run.first_step if self.run.first_step > 1 else None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        table = "".join(f"|{key}|{value}|\n" for key, value in values.items())
        self.writer.add_text("recipe", f"|key|value|\n|---|---|\n{table}", self.run.first_step - 1)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()  # what was logged outlives a kill

    def finish(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases: online, or with WANDB_MODE=offline into the run's folder, for `wandb sync`."""

    where: str | None = None

    def __init__(self, run: Tracked) -> None:
        self.tracked = run

    def start(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        known = wandb.setup().settings  # of the environment and of `wandb offline`
        if known.mode == "online" and not wandb.login(prompt=False, verify=False):  # else it would ask on the terminal
            raise RuntimeError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
        about = {"project": known.project or "muonlab", "name": self.tracked.folder.name, "dir": str(self.tracked.folder)}
        settings: Any = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(id=self.tracked.id, resume="allow", save_code=False, settings=settings, **about)
        self.where = self.run.url if known.mode == "online" else str(self.tracked.folder / "wandb")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.run.config.update(values, allow_val_change=True)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.run.log(values, step=step)

    def finish(self) -> None:
        self.run.finish()


class Trackio:
    """Trackio: local first, see `trackio show`; its environment variables choose a Space or a server."""

    where = "see `trackio show --project muonlab`"

    def __init__(self, run: Tracked) -> None:
        self.tracked = run

    def start(self) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "trackio"]:
            vars(module)["print"] = lambda *_, **__: None  # it prints to stdout, which belongs to a command's result
        name = f"{self.tracked.folder.name}-{self.tracked.id}"  # it knows runs by their names
        self.run = trackio.init("muonlab", name, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.run.config.update(values)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.run.log(values, step)

    def finish(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Tracked], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def check_trackers(names: Iterable[str]) -> None:
    """Raises InputError for trackers that do not exist or whose package is not installed, all at once."""
    problems = []
    for name in names:
        if name not in TRACKERS:
            problems.append(f"--track: unknown tracker {name!r}; {did_you_mean(name, TRACKERS)}")
        elif TRACKERS[name].__module__ == __name__ and importlib.util.find_spec(name) is None:
            problems.append(f"--track {name}: needs the {name} package: pip install 'muonlab[trackers]'")
    if problems:
        raise InputError(*problems)


class Tracking:
    """The trackers of one session of a run, in a `with` block. Which they are is kept in the run's tracking.json, so that a resume
    goes on with them."""

    def __init__(self, folder: RunFolder, names: Sequence[str], about: Mapping[str, Any], step: int, say: Say) -> None:
        """names: trackers to begin with, beside those that the run has already; they get the rows so far. about: the run's
        settings, flat. step: the last step of earlier sessions."""
        self.say = say
        run_id, before = _known(folder, names, say)
        plain = str | int | float | None
        settings = {key: value if isinstance(value, plain) else json.dumps(value) for key, value in about.items()}
        self.lanes = []
        for name in dict.fromkeys([*before, *names]):
            tracked = Tracked(folder.path.resolve(), run_id, step + 1 if name in before else 1)
            self.lanes.append(_Lane(name, tracked, settings, [] if name in before else folder.rows()))

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands a row of metrics.jsonl over. Returns at once."""
        for lane in self.lanes:
            lane.offer(row)
        self._tell()

    def close(self) -> None:
        """Lets the trackers finish, waits while they show signs of life, but no longer than ENDING, and says what was lost."""
        global _hung
        for lane in self.lanes:
            lane.end()
        beats, end = -1, time.monotonic() + ENDING
        while (alive := self._alive()) and beats != self._beats() and time.monotonic() < end:
            beats, until = self._beats(), min(end, time.monotonic() + PATIENCE)
            for lane in alive:
                lane.thread.join(max(0.0, until - time.monotonic()))
        silent = f"it has not answered for {PATIENCE:g} s"
        for lane in alive:
            lane.give_up(silent if beats == self._beats() else f"{ENDING:g} s were not enough at the run's end")
        _hung = _hung or bool(alive)
        self._tell()
        for lane in self.lanes:
            if loss := lane.loss():
                self.say(loss)

    def _alive(self) -> list[_Lane]:
        return [lane for lane in self.lanes if lane.thread.is_alive()]

    def _beats(self) -> int:
        return sum(lane.beats for lane in self.lanes)

    def _tell(self) -> None:
        for lane in self.lanes:
            while lane.news:
                self.say(lane.news.popleft())

    def __enter__(self) -> Tracking:
        for lane in self.lanes:
            lane.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class _Lane:
    """One tracker, its thread and its queue."""

    def __init__(self, name: str, tracked: Tracked, settings: dict[str, Any], history: list[dict[str, Any]]) -> None:
        self.name, self.tracked, self.settings, self.history = name, tracked, settings, history
        self.queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(CAPACITY)
        self.offered, self.taken = len(history), 0
        self.over = self.refused = self.finished = self.given_up = False
        self.beats = 0  # calls that the tracker came back from
        self.problem: str | None = None  # the first
        self.news: deque[str] = deque()  # for the run's own thread to say
        self.thread = Thread(target=self._live, name=f"tracker {name}", daemon=True)

    def offer(self, row: Mapping[str, Any]) -> None:
        self.offered += 1
        try:
            self.queue.put_nowait(row)
        except queue.Full:
            self.problem = self.problem or f"it was too slow: {self.queue.maxsize} rows were waiting"

    def end(self) -> None:
        self.over = True
        with contextlib.suppress(queue.Full):  # then the thread sees that it is over when the queue is empty
            self.queue.put_nowait(None)

    def give_up(self, why: str) -> None:
        """What waits is lost: that is said now, so that it stays so, also where this process goes on."""
        self.given_up, self.problem = True, self.problem or why

    def loss(self) -> str | None:
        """What a run's end says of it; None if nothing was lost, or that has been said."""
        lost = self.offered - self.taken
        if self.refused or (self.finished and not lost):
            return None
        rows = f"{lost} of {self.offered} rows were lost, which metrics.jsonl has"
        what = rows if lost else "all rows were taken, but it did not end"
        return f"tracker {self.name}: {what}: {self.problem}"

    def _live(self) -> None:
        tracker = self._try(lambda: TRACKERS[self.name](self.tracked))
        if tracker is None or self._try(lambda: tracker.start() or True) is None:
            self.refused = True
            self.news.append(f"tracker {self.name}: cannot start: {self.problem}; the run goes on without it")
            return
        if where := getattr(tracker, "where", None):
            self.news.append(f"tracker {self.name}: {where}")
        self._try(lambda: tracker.store_init_configuration(self.settings))
        for row in self._rows():
            if self.given_up:
                return
            self._log(tracker, row)
        self.finished = self._try(lambda: tracker.finish() or True) is not None

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        yield from self.history
        while not (self.over and self.queue.empty()) and (row := self.queue.get()) is not None:
            yield row

    def _log(self, tracker: Tracker, row: Mapping[str, Any]) -> None:
        values = {key: value for key, value in row.items() if key != "step" and value is not None and math.isfinite(value)}
        self.taken += self._try(lambda: tracker.log(values, step=row["step"]) or True) is not None

    def _try(self, call: Callable[[], Any]) -> Any:
        """What the call returns, None if it raised."""
        try:
            return call()
        except BaseException as error:  # a library that exits is no reason to stop either
            self.problem = self.problem or f"{type(error).__name__}: {error}"
            return None
        finally:
            self.beats += 1


def _known(folder: RunFolder, names: Sequence[str], say: Say) -> tuple[str, list[str]]:
    """The id of the tracked run and the trackers that it has already; notes the new ones."""
    path = folder.path / "tracking.json"
    try:
        known = read_json(path, "its trackers begin anew") or {}
    except InputError as error:
        say(str(error))
        known = {}
    before = [name for name in known.get("trackers", []) if name in TRACKERS]
    run_id = known.get("id") or secrets.token_hex(4)
    if new := [name for name in dict.fromkeys(names) if name not in before]:
        write_json(path, {"id": run_id, "trackers": [*before, *new]})
    return run_id, before
