"""Commands about arms × seeds: sweep, search, report. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from muonlab.cli.app import QUESTIONS, app, say, show
from muonlab.cli.flags import Json, Launch, Profile
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.lab.plan.probe import Estimate


@app.command(group=QUESTIONS)
def sweep(
    experiment: Path,
    *,
    profile: Profile = None,
    launch: Launch = Launch(),
    dry_run: Annotated[bool, Parameter(help="only say what would be run, and how long it would take", negative=())] = False,
    json: Json = False,
) -> None:
    """Run what is missing of an experiment, then write its report.

    Finished runs are never done again; interrupted ones go on. Delete a run's folder to redo it.

    Parameters
    ----------
    experiment:
        An experiment file, such as experiments/quickstart.toml.
    """
    from muonlab.cli.progress import SweepDisplay
    from muonlab.lab.plan.loading import load_experiment
    from muonlab.lab.run.runner import sweep as run_sweep

    how = launch.how()
    loaded = load_experiment(experiment, launch.overrides(), profile)
    folder = launch.out or Path("runs") / loaded.name
    if dry_run:
        from muonlab.lab.plan.probe import estimate

        found = estimate(loaded, folder, **how, say=say)
        show(asdict(found), json, lambda: _estimate_in_words(found))
        return
    with SweepDisplay([cell.name for cell in loaded.cells], list(loaded.config.seeds)) as display:
        run_sweep(loaded, folder, **how, on_event=display.hear)
    _report(folder, None, json)


@app.command(group=QUESTIONS)
def race(experiment: Path, *, profile: Profile = None, launch: Launch = Launch(), json: Json = False) -> None:
    """Run seed after seed of an experiment, only until the answer is clear, then write its report.

    After each seed every arm is compared with the baseline, by a test that allows looking as often as one likes. An arm that is
    better, worse or equivalent stops; the experiment's seeds are the most that may be used. The same command goes on with a race.

    Parameters
    ----------
    experiment:
        An experiment file with a baseline, such as experiments/quickstart.toml.
    """
    from muonlab.cli.progress import SweepDisplay
    from muonlab.lab.plan.loading import load_experiment
    from muonlab.lab.run.runner import race as run_race

    how = launch.how()
    loaded = load_experiment(experiment, launch.overrides(), profile)
    folder = launch.out or Path("runs") / f"{loaded.name}-race"
    with SweepDisplay([cell.name for cell in loaded.cells], list(loaded.config.seeds), at_most=True) as display:
        run_race(loaded, folder, **how, on_event=display.hear, on_look=display.look)
    _report(folder, None, json)


def _estimate_in_words(found: Estimate) -> str:
    from muonlab.cli.progress import duration

    lines = [
        f"{cell['name']}: {cell['to_do']} of {cell['runs']} runs to do, {cell['tokens']:,} tokens each"
        + ("" if cell["seconds"] is None else f", {duration(cell['seconds'])} each")
        for cell in found.cells
    ]
    if found.seconds is None:
        return "\n".join([*lines, f"all {found.runs} runs are done"])
    workers = f"{found.workers} {'worker' if found.workers == 1 else 'workers'}"
    return "\n".join(
        [
            *lines,
            f"{found.runs} runs: {found.found} done, {found.runs - found.found} to do. {found.tokens:,} tokens and "
            f"{found.flops:.3g} FLOP of training, about {duration(found.seconds)} with {workers}, measured on a few steps.",
        ]
    )


@app.command(group=QUESTIONS)
def search(search: Path, *, launch: Launch = Launch(), json: Json = False) -> None:
    """Look for the best settings of each arm, with equally many trials for all, then write the report.

    Every trial is an ordinary run of a sweep. The same command goes on with a search that was stopped. Needs the extra
    `search` (Optuna).

    Parameters
    ----------
    search:
        A search file: an experiment with `space` and `trials` in place of grids.
    """
    from muonlab.cli.progress import SweepDisplay
    from muonlab.lab.run.search import load_search, run_search

    how = launch.how()
    loaded = load_search(search, launch.overrides())
    folder = launch.out or Path("runs") / loaded.name
    cells: list[str] = []

    def take(names: list[str]) -> None:
        cells[:] = names

    trials = len(loaded.arms) * loaded.config.trials
    with SweepDisplay(cells, list(loaded.config.seeds), trials) as display:
        run_search(loaded, folder, **how, on_event=display.hear, on_cells=take)
    _report(folder, None, json)


@app.command(group=QUESTIONS)
def report(
    directory: Path,
    *further: Path,
    out: Path | None = None,
    baseline: str | None = None,
    target: float | None = None,
    margin: float | None = None,
    metric: str | None = None,
    svg: Annotated[bool, Parameter(negative=())] = False,
    curves: Annotated[bool, Parameter(negative=())] = False,
    parquet: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Write the report of a sweep or of collected runs, finished or not: report.html, report.md, PNGs, results.json, runs.csv.

    Of several sweeps: one page, index.html with results.json in --out, that says of each how far it is and what its best arm
    does, shows all final losses in one picture, and leads to each sweep's own report, which is written where there is none.

    Parameters
    ----------
    directory:
        Folder of a sweep, such as runs/quickstart, or of runs that were imported or logged.
    further:
        More such folders, for one page over all of them.
    out:
        Where to write. Default: DIRECTORY/report. Required for several sweeps.
    baseline:
        Of collected runs: the arm that the others are compared with. Default: the one called "baseline", else the one that came
        first. A sweep's experiment says its own.
    target:
        Of collected runs: a validation loss whose first crossing is timed.
    margin:
        Of collected runs: differences below this do not matter.
    metric:
        Of collected runs: val_loss (default), best_val_loss, train_loss or seconds.
    svg:
        Write each chart as SVG too.
    curves:
        Write every logged row as curves.csv too.
    parquet:
        Write the tables as Parquet too.
    """
    options = {"baseline": baseline, "target": target, "margin": margin, "metric": metric}
    given = {name: value for name, value in options.items() if value is not None}
    if further:
        files = {"svg": svg, "curves": curves, "parquet": parquet}
        _overview([directory, *further], out, json, [*given, *(name for name, wanted in files.items() if wanted)])
        return
    _report(directory, out, json, given, svg=svg, curves=curves, parquet=parquet)


def _report(directory: Path, out: Path | None, as_json: bool, options: dict[str, Any] | None = None, **files: bool) -> None:
    from muonlab.cli.progress import print_results
    from muonlab.lab.runs.collection import collect, is_collection
    from muonlab.lab.runs.store import load_sweep
    from muonlab.lab.show.report import as_json as figures
    from muonlab.lab.show.report import write_report

    options = options or {}
    if is_collection(directory):
        sweep = collect(directory, **options)
    else:
        sweep = load_sweep(directory)
        if options:
            flags = ", ".join(f"--{name}" for name in options)
            raise InputError(f"{flags}: the experiment of {directory} decides this: change it in its file, and sweep again")
    page, results = write_report(directory, out, sweep=sweep, **files)
    if as_json:
        print(json.dumps({"report": str(page), **figures(results)}, indent=1))
    else:
        print_results(results)
        print(f"\nReport: {page}")


def _overview(directories: list[Path], out: Path | None, as_json: bool, refused: list[str]) -> None:
    """One page over several sweeps."""
    from muonlab.cli.progress import print_overview
    from muonlab.lab.show.overview import write_overview

    if refused:
        flags = ", ".join(f"--{name}" for name in refused)
        raise InputError(
            f"{flags}: of one sweep's own report, got {len(directories)} sweeps: muonlab report {directories[0]} {flags}"
        )
    if out is None:
        raise InputError(f"--out: missing; a page over {len(directories)} sweeps needs a folder of its own")
    page, entries, figures = write_overview(directories, out)
    if as_json:
        print(json.dumps({"page": str(page), **figures}, indent=1))
    else:
        print_overview(entries, figures["sweeps"])
        print(f"\nPage: {page}")
