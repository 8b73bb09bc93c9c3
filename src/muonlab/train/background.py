"""A command that goes on without its terminal.

The command starts itself again as a process in a session of its own, which the terminal's end does not reach, and waits. That
process says what is wrong where the user sees it, as ever; only when it is ready to train does it `detach`: from then on it
speaks to the run's log.txt, and the waiting command is told and ends. So bad input has its message and its exit code, and a
run that was started is there, locked, when the command returns. Should the terminal be closed before that, the start goes on
without it. Needs no torch.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train.run_folder import RunFolder
from muonlab.train.signals import stop_requests

_PIPE = "MUONLAB_BACKGROUND"  # environment: the descriptor of the pipe that a waiting command listens at
_LOOK_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Started:
    folder: str
    pid: int
    log: str


def is_background() -> bool:
    """Whether this process is one that `start` has made and that has not detached yet."""
    return _PIPE in os.environ


def start(command: Sequence[str]) -> Started | int:
    """Runs a command in a session of its own until it detaches: then where and as what it runs; or its exit code, if it ended
    before. Raises RunError if it was killed, Interrupted after SIGINT or SIGTERM: then it is ended, too."""
    listen, tell = os.pipe()
    environment = {**os.environ, _PIPE: str(tell)}
    with open(listen) as pipe, stop_requests() as request:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, pass_fds=(tell,), start_new_session=True)
        finally:
            os.close(tell)
        while not select.select([pipe], [], [], _LOOK_EVERY)[0]:
            if request.signum is not None:
                process.terminate()
                process.wait()
                raise Interrupted(request.signum, "interrupted before the run in the background could begin")
        told = pipe.read()
    if told:
        return Started(**json.loads(told))
    if (code := process.wait()) < 0:
        raise RunError(f"the process in the background was killed (signal {-code}) before it could begin")
    return code


def python_command(*arguments: str) -> list[str]:
    """`muonlab` with these arguments, in the Python that runs this. The working folder is on the way to modules only where it is
    here: a file of the user's may be called as a module is."""
    isolated = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    return [sys.executable, *isolated, "-m", "muonlab", *arguments]


class _Terminal(io.FileIO):
    """Output of a process that is to outlive its terminal: what is said to one that is gone is left out."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE) or not is_background():
                raise
            return memoryview(data).nbytes


def outlive_terminal() -> None:
    """Until this process detaches, its stdout and stderr may go away: a terminal that is closed, a reader that ends."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        raw = _Terminal(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, text)


def detach(folder: RunFolder) -> None:
    """Output goes to the run's log.txt from now on, and the waiting command is told. Raises InputError if the log cannot be
    written."""
    pipe = int(os.environ.pop(_PIPE))
    sys.stdout.flush()
    try:
        log = os.open(folder.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise InputError(f"{folder.log_file}: cannot be written: {error.strerror}") from None
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    started = Started(str(folder.path), os.getpid(), str(folder.log_file))
    with suppress(BrokenPipeError):  # whoever waited is gone, with its terminal: the run is here to outlive that
        os.write(pipe, json.dumps(asdict(started)).encode())
    os.close(pipe)
