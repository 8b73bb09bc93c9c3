"""Commands about what trained models can do: `muonlab eval ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from muonlab.cli.app import Json, app, say, show
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.evaluate.accuracy import Accuracy

evaluation = App(name="eval", help="What trained models can do, and whether one can do more than another.")
app.command(evaluation)


@evaluation.command
def compare(
    a: Path,
    b: Path,
    *,
    alpha: Annotated[float, Parameter(help="level of the test, 1 − alpha of the intervals")] = 0.05,
    margin: Annotated[float | None, Parameter(help="differences below it do not matter: equivalent; 0.02 is two points")] = None,
    json: Json = False,
) -> None:
    """Say whether B answers more of the same problems than A: McNemar's exact test over those that changed.

    Parameters
    ----------
    a:
        File that `muonlab eval gsm8k --out` wrote.
    b:
        Another, of the same problems.
    """
    from muonlab.evaluate.results import compare_files

    if not 0 < alpha < 0.5:
        raise InputError(f"--alpha: expected a level between 0 and 0.5, such as 0.05, got {alpha:g}")
    if margin is not None and not 0 < margin < 1:
        raise InputError(f"--margin: expected a difference between 0 and 1, such as 0.02, got {margin:g}")
    found = compare_files(a, b, alpha=alpha, margin=margin)
    for note in found.notes:
        say(f"note: {note}")
    names = {"a": str(a), "b": str(b), "alpha": alpha, "margin": margin}
    details: dict[str, Any] = asdict(found)
    details["files"] = names

    def in_words() -> str:
        lines = [f"{name}: {accuracy_in_words(part, alpha)}" for name, part in ((a, found.a), (b, found.b))]
        return "\n".join([*lines, f"{b} against {a}: {found.paired.verdict} ({found.paired.reason})"])

    show(details, json, in_words)


def accuracy_in_words(found: Accuracy, alpha: float) -> str:
    interval = f"{100 * (1 - alpha):g} % CI {100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{100 * found.value:.1f} % right ({found.correct} of {found.n}), {interval}"
