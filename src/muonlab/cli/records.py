"""Commands about other people's logs and about records: import, certify, verify. Heavy imports wait until a command needs them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from muonlab.cli.app import RECORDS, app, say, show
from muonlab.cli.flags import Json
from muonlab.errors import InputError, RunError

if TYPE_CHECKING:
    from muonlab.lab.importers import Imported

_MAP_HELP = (
    "KEY=COLUMN, for tables whose columns have other names; keys: arm, run, seed, step, total_steps, val_loss, train_loss, tokens, "
    "seconds, ms, lr; may be repeated"
)

UnpackLimit = Annotated[str | None, Parameter(help="what one packed log may unpack to, such as 4GiB; default: 1GiB")]


def _unpack_limit(given: str | None) -> int:
    from muonlab.lab.importers.log import UNPACK_LIMIT
    from muonlab.train.memory import parse_size

    return UNPACK_LIMIT if given is None else parse_size(given, "--unpack-limit")


@app.command(name="import", group=RECORDS)
def import_(
    *logs: str,
    out: Path,
    arm: str | None = None,
    map: Annotated[list[str] | None, Parameter(name="--map", help=_MAP_HELP, negative=())] = None,
    unpack_limit: UnpackLimit = None,
    json: Json = False,
) -> None:
    """Bring other people's logs into a folder of runs that `report` and `certify` read.

    Reads modded-nanogpt's text logs, exports of W&B (CSV, JSONL) and TensorBoard (CSV, event files), and CSV, JSONL or
    Parquet with a row for each evaluation; also packed (.gz, .bz2, .xz, .zst). All of the logs are imported or none.

    Parameters
    ----------
    logs:
        Files, folders or patterns.
    out:
        Folder of the runs, new or with runs already.
    arm:
        Name of the arm for all of them. Default: what a log says, else its folder (text logs) or file name (tables).
    """
    from muonlab.cli.progress import ImportDisplay
    from muonlab.lab.importers import import_logs
    from muonlab.lab.importers.columns import parse_map

    if not logs:
        raise InputError("import: expected logs, got none: name files, folders or patterns, such as logs/*.txt")
    options = {"arm": arm, "columns": parse_map(map or []), "unpack_limit": _unpack_limit(unpack_limit)}
    with ImportDisplay() as display:
        imported = import_logs(logs, out, **options, on_progress=display.update)
    for run in imported:
        if run.status != "finished":
            say(f"{run.name} ({run.arm}, seed {run.seed}): {run.status}{f': {run.note}' if run.note else ''}")
    show({"folder": str(out), "runs": [asdict(run) for run in imported]}, json, lambda: _imported_in_words(imported, out))


def _imported_in_words(imported: list[Imported], out: Path) -> str:
    lines = []
    for arm in dict.fromkeys(run.arm for run in imported):
        counts = Counter(run.status for run in imported if run.arm == arm)
        lines.append(f"{arm}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    return "\n".join([*lines, f"{len(imported)} run{'' if len(imported) == 1 else 's'} in {out}; go on with: muonlab report {out}"])


@app.command(group=RECORDS)
def certify(
    directory: Path,
    *,
    rule: Literal["speedrun", "optimization-benchmark"],
    target: float,
    out: Path,
    arm: str | None = None,
    steps: int | None = None,
    against: Path | None = None,
    unpack_limit: UnpackLimit = None,
    json: Json = False,
) -> None:
    """Write a record: the runs of one arm, their figures, and whether they meet a rule.

    speedrun: one-sided t-test, mean below the target, p < 0.01. optimization-benchmark: (target - mean) * sqrt(n) >= 0.004 at
    the declared number of steps. The record is written in either case; exit code 1 says that the rule is not met.

    Parameters
    ----------
    directory:
        Folder of a sweep, or of logged or imported runs.
    rule:
        speedrun or optimization-benchmark.
    target:
        Validation loss to be below.
    out:
        Folder of the record; a new one.
    arm:
        Which arm, where there are several.
    steps:
        Declared number of steps: the evaluation at this step counts. Default: the last one.
    against:
        An earlier record, to be beaten by the pairwise rule as well.
    """
    from muonlab.lab.records import certify as write_record

    done = write_record(
        directory, rule=rule, target=target, out=out, arm=arm, steps=steps, against=against,
        unpack_limit=_unpack_limit(unpack_limit),
    )  # fmt: skip
    show({"record": str(out), **done.content}, json, lambda: _figures_in_words(done.content, out))
    if not done.met:
        raise RunError(f"{out}: written, and the rule is not met\n" + "\n".join(f"missing: {line}" for line in done.missing))


def _figures_in_words(content: dict[str, Any], out: Path) -> str:
    from muonlab.lab.records.content import figure_rows

    lines = [f"{name}: {value}" for name, value in figure_rows(content)]
    return "\n".join([*lines, f"rule {content['rule']}: {'met' if content['figures']['met'] else 'not met'}", f"Record: {out}"])


@app.command(group=RECORDS)
def verify(record: Path, *, against: Path | None = None, unpack_limit: UnpackLimit = None, json: Json = False) -> None:
    """Compute a record again from its files; exit code 1 names every difference.

    Parameters
    ----------
    record:
        Folder that `muonlab certify` wrote.
    against:
        The earlier record that it was compared with, if it is at hand.
    """
    from muonlab.lab.records import verify as check

    found = check(record, against=against, unpack_limit=_unpack_limit(unpack_limit))
    for note in found.notes:
        say(f"note: {note}")
    answer = {"record": str(record), "verified": not found.differences, "differences": found.differences, "notes": found.notes}
    if json or not found.differences:
        show(answer, json, lambda: _verified_in_words(found.content, record))
    if found.differences:
        raise RunError("\n".join([f"{record}: does not verify", *(f"  {difference}" for difference in found.differences)]))


def _verified_in_words(content: dict[str, Any], record: Path) -> str:
    figures = content["figures"]
    rule = f"rule {content['rule']} {'met' if figures['met'] else 'not met'}"
    return f"{record}: verified, {figures['runs']} run{'' if figures['runs'] == 1 else 's'}, {rule}"
