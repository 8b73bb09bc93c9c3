"""`muonlab`: the application, what its commands share, and what becomes of errors. The commands stand in the files beside this."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import muonlab
from muonlab.cli.progress import Log
from muonlab.errors import InputError, Interrupted, RunError
from muonlab.extras import LAB, no_lab

app = App(
    name="muonlab",
    help="""Train with the Muon family of optimizers, and know whether a change is better.

    Begin with one run, then compare:

        muonlab train recipes/quickstart.toml --set optimizer.lr=0.02 --out runs/first

        muonlab sweep experiments/quickstart.toml

    A recipe (TOML) is one training run, an experiment (TOML) is a question: arms × seeds. `muonlab plan` shows what a
    recipe does to each parameter, `muonlab schema` lets your editor complete both files. Ctrl-C saves; a sweep goes on
    by the same command, a run by the same command with `--resume`.
    Exit codes: 0 done, 1 failed, 2 bad input, 130 / 143 stopped by SIGINT / SIGTERM.
    """,
    version=muonlab.__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(name="--install-completion")

typed: list[str] = []  # the arguments of this command line, for a command that starts itself again: --background
Set = Annotated[
    list[str] | None,
    Parameter(name="--set", help="KEY=VALUE, a dotted key of the recipe such as optimizer.lr=0.02; may be repeated", negative=()),
]
Profile = Annotated[str | None, Parameter(help="one of the file's profiles, such as gpu")]
Device = Annotated[str | None, Parameter(help="cpu, cuda or cuda:N; default: CUDA where there is one")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON", negative=())]


class Ended(Exception):
    """A command that has ended in a process of its own, which has told why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> None:
    """The console script: runs a command and turns its end into an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show ← or η shows a question mark; files are UTF-8 whatever the terminal is
        if isinstance(stream, TextIOWrapper) and "utf" not in (stream.encoding or "").lower():
            stream.reconfigure(errors="replace")
    code = run(sys.argv[1:])
    tracking = sys.modules.get("muonlab.train.tracking")  # not loaded for this: most commands need no torch
    if tracking is not None and tracking.hung():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the library of a tracker that hangs would wait for it
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    # imported to register their commands
    from muonlab.cli import (  # noqa: F401
        bench,
        data,
        data_tasks,
        evaluation,
        experiments,
        export,
        generation,
        presets,
        records,
        roadmap,
        runs,
        statistics,
        training,
    )

    global typed
    typed = arguments = _without_auto(arguments)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except Ended as ended:
        return ended.code
    except InputError as error:
        complain(str(error))
        return 2
    except CycloptsError as error:
        error.verbose = False
        complain(f"{error}\nSee muonlab {' '.join(error.command_chain or ())} --help".replace("muonlab  --", "muonlab --"))
        return 2
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in LAB:
            raise
        complain(no_lab("this command", [package]))
        return 2
    except RunError as error:
        complain(str(error))
        return 1
    except Interrupted as stopped:
        complain(str(stopped))
        return 128 + stopped.signum
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        _silence()
        return 0
    except OSError as error:
        reason = error.strerror or str(error)
        complain(f"cannot write: {reason}" if error.filename is None else f"{_name(error.filename)}: {reason}")
        _silence()
        return 1
    return 0


def _without_auto(arguments: list[str]) -> list[str]:
    """`--resume auto` and `--resume=auto` are `--resume`, which takes no word."""
    plain = ["--resume" if word.lower() == "--resume=auto" else word for word in arguments]
    pairs = zip(["", *arguments], plain, strict=False)
    return [word for before, word in pairs if (before, word.lower()) != ("--resume", "auto")]


def _name(file: object) -> str:
    """Of a file in an OSError, which may be the number of an open one."""
    return os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else f"file {file}"


def _silence() -> None:
    """Lets what is still buffered for stdout go nowhere: it has no reader, or no room."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    for line in text.splitlines():
        say(f"muonlab: {line}")


def say(text: str) -> None:
    """A line on stderr."""
    Log().print(text, markup=False)


def show(value: Any, as_json: bool, text: Callable[[], str]) -> None:
    """The one thing that a command prints on stdout."""
    print(json.dumps(value, indent=1) if as_json else text())


def positive(flag: str, value: int | None) -> None:
    """Raises InputError unless the flag's value is at least 1, or not given."""
    if value is not None and value < 1:
        raise InputError(f"{flag}: expected a number of at least 1, got {value}")
