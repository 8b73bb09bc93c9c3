"""`muonlab`: the application, and what its commands share. The commands stand in the files beside this."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cyclopts import App, Group

import muonlab
from muonlab.cli.progress import Log
from muonlab.errors import InputError

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

# what a command is for: `muonlab --help` lists them so
OPTIMIZERS = Group("The optimizers", sort_key=1)
TRAINING = Group("Train, watch, go on", sort_key=2)
QUESTIONS = Group("Is it better?", sort_key=3)
RECORDS = Group("Logs of others, records for others", sort_key=4)
MODELS = Group("What a model can do", sort_key=5)
DATA = Group("Data", sort_key=6)
_OPTIONS = Group("Options", sort_key=7)
for flag in ("--help", "--version", "--install-completion"):
    app[flag].group = _OPTIONS


class Ended(Exception):
    """A command that has ended in a process of its own, which has told why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


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
