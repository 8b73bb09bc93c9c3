"""How things end that do not end well. The command line prints the message, without a traceback."""

from __future__ import annotations


class InputError(Exception):
    """What a user can put right: exit code 2. What was expected, what came, what to do; one line for each problem, all of a
    file's problems at once."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RunError(Exception):
    """A run that could not go on through no fault of its input (a full disk, say): exit code 1."""


class Interrupted(Exception):
    """A run that was asked to stop by a signal, after it has saved itself: exit code 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
