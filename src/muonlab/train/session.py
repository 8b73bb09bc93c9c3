"""What a run's process leaves in the folder for those who look from outside, and what they can tell. Needs no torch.

    .lock         held by the process at work: whether a run is running is asked of the lock, never of a process number
    session.json  of that process, or of the last one: its number, since when, after which step, and how it ended
    .stop         asks the process at work to save and stop; seen by whoever shares the folder, in containers too

A run that ended (result.json) has no session.json. One whose session did not note its end was killed, or its machine went down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train.run_folder import RunFolder, latest, write_json

State = Literal["running", "stopped", "crashed", "finished", "diverged", "damaged"]
_RECENT = 20  # rows that the speed is taken from
_LOOK_EVERY = 0.1  # seconds


@contextmanager
def session(folder: RunFolder) -> Iterator[Callable[[int], None]]:
    """For the process that holds the folder's lock. Yields what it calls with the step after which it begins to train; how it
    ends, if the run does not, is noted for `standing`."""
    folder.stop_file.unlink(missing_ok=True)  # meant for an earlier process
    begun: dict[str, Any] = {}

    def begin(step: int) -> None:
        begun.update(pid=os.getpid(), began=datetime.now(UTC).isoformat(), step=step)
        write_json(folder.session_file, {**begun, "status": "running", "reason": ""})

    try:
        yield begin
        folder.session_file.unlink(missing_ok=True)
    except BaseException as error:
        if begun:
            told = isinstance(error, Interrupted | RunError | InputError)
            reason = str(error) if told else f"{type(error).__name__}: {error}"
            status = "stopped" if isinstance(error, Interrupted) else "crashed"
            with suppress(OSError):  # a full disk is why it ended, maybe; never in the way of the error itself
                write_json(folder.session_file, {**begun, "status": status, "reason": reason[:2000]})
        raise
    finally:
        with suppress(OSError):
            folder.stop_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Standing:
    """How a run stands. Losses are the last ones known; tokens per second those of the last rows, evaluation not counted; the
    seconds left include it. pid: of the process at work, on its own machine. reason: why it is stopped, crashed or damaged."""

    folder: str
    state: State
    step: int = 0
    steps: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    pid: int | None = None
    reason: str = ""


def standing(path: str | Path) -> Standing:
    """How the run in a folder stands now. Raises InputError if there is none."""
    folder = RunFolder(path)
    held = folder.held()  # before its result: a run that ends between the two has one
    try:
        run, result, last = folder.run(), folder.result(), folder.session()
    except InputError as error:
        return Standing(str(path), "damaged", reason=str(error))
    if run is None:
        raise InputError(f"{path}: expected the folder of a run (with run.json); `muonlab runs` lists those in runs/")
    rows = folder.recent_rows()
    if folder.metrics_file.exists() and not any(row.get("val_loss") is not None for row in rows):
        rows = folder.rows()  # the last evaluation is longer ago
    steps = None if "source" in run else run["recipe"]["train"]["steps"]  # another program's run does not say
    state, reason = _state(result, held, last)
    step = result["steps"] if result else max([0, *folder.saved_steps()[-1:], *(row["step"] for row in rows[-1:])])
    return Standing(
        folder=str(path),
        state=state,
        step=step,
        steps=steps,
        train_loss=latest(rows, "train_loss"),
        val_loss=latest(rows, "val_loss"),
        tokens_per_second=_speed(rows),
        seconds_left=_left(folder, rows, steps, last) if state == "running" else None,
        pid=(last or {}).get("pid") if state == "running" else None,
        reason=reason,
    )


def _state(result: dict[str, Any] | None, held: bool, last: dict[str, Any] | None) -> tuple[State, str]:
    if result is not None:
        return result["status"], ""
    if held:
        return "running", ""
    if last is None:
        return "crashed", "its process ended before it trained a step"
    if last["status"] == "running":
        return "crashed", "its process was killed, or its machine went down"
    return last["status"], last["reason"]


def _speed(rows: list[dict[str, Any]]) -> float | None:
    timed = [(row["tokens"], row["seconds"]) for row in rows[-_RECENT:] if "tokens" in row and row.get("seconds")]
    if not timed:
        return None
    first = timed[0] if len(timed) > 1 else (0, 0.0)
    seconds = timed[-1][1] - first[1]
    return (timed[-1][0] - first[0]) / seconds if seconds > 0 else None


def _left(folder: RunFolder, rows: list[dict[str, Any]], steps: int | None, last: dict[str, Any] | None) -> float | None:
    """By the wall clock since the process began: evaluations and checkpoints will come again, too."""
    if steps is None or last is None or not rows or rows[-1]["step"] <= last["step"]:
        return None
    written = folder.metrics_file.stat().st_mtime
    pace = (written - datetime.fromisoformat(last["began"]).timestamp()) / (rows[-1]["step"] - last["step"])
    return max(0.0, pace * (steps - rows[-1]["step"]) - (time.time() - written))


def stop(path: str | Path, timeout: float) -> bool:
    """Asks the process at work on a run to save and stop, and waits until it has. False: there was none. Raises InputError for a
    folder without such a run, RunError if the process is still there after `timeout` seconds."""
    folder = RunFolder(path)
    run = folder.run()
    if run is None:
        raise InputError(f"{path}: expected the folder of a run (with run.json); `muonlab runs` lists those in runs/")
    if "source" in run:
        raise InputError(f"{path}: is logged by a program of your own: stop that")
    if not folder.held():
        return False
    until = time.monotonic() + timeout
    while folder.held():
        if time.monotonic() > until:
            remedy = "it stops after its present step or evaluation; wait for it, or give a longer --timeout"
            raise RunError(f"{path}: still running after {timeout:g} s: {remedy}")
        if not folder.stop_file.exists():  # a process that has just begun removes what it finds
            _touch(folder.stop_file)
        time.sleep(_LOOK_EVERY)
    folder.stop_file.unlink(missing_ok=True)
    return True


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be asked to stop: {error.strerror}") from None
