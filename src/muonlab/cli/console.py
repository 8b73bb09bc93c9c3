"""The console script: runs a command line and turns its end, errors included, into an exit code."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from cyclopts import CycloptsError

from muonlab.cli import app as application
from muonlab.cli import (  # imported to register their commands  # noqa: F401
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
from muonlab.cli.app import Ended, complain
from muonlab.errors import InputError, Interrupted, RunError
from muonlab.extras import LAB, no_lab
from muonlab.train.threads import wait_passively


def main() -> None:
    """The console script: runs a command and turns its end into an exit code."""
    wait_passively()
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
    arguments = _without_auto(arguments)
    application.typed = arguments
    try:
        application.app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
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
