"""Commands about arms × seeds: sweep, report. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from muonlab.cli.app import Device, Json, Set, app, positive
from muonlab.errors import InputError


@app.command
def sweep(
    experiment: Path,
    *,
    set: Set = None,
    out: Path | None = None,
    workers: Annotated[int | None, Parameter(help="processes at once; default: one a core (CPU) or one (CUDA)")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Run what is missing of an experiment, then write its report.

    Finished runs are never done again; interrupted ones go on. Delete a run's folder to redo it.

    Parameters
    ----------
    experiment: An experiment file, such as experiments/quickstart.toml.
    out: Folder of the sweep. Default: runs/EXPERIMENT.
    """
    from muonlab.cli.progress import SweepDisplay
    from muonlab.lab.experiment import load_experiment
    from muonlab.lab.runner import sweep as run_sweep

    positive("--workers", workers)
    loaded = load_experiment(experiment, tuple(set or ()))
    folder = out or Path("runs") / loaded.name
    with SweepDisplay([cell.name for cell in loaded.cells], list(loaded.config.seeds)) as display:
        run_sweep(loaded, folder, workers=workers, device=device, on_event=display.hear)
    _report(folder, None, json)


@app.command
def report(
    directory: Path,
    *,
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

    Parameters
    ----------
    directory: Folder of a sweep, such as runs/quickstart, or of runs that were imported or logged.
    out: Where to write. Default: DIRECTORY/report.
    baseline: Of collected runs: the arm that the others are compared with. A sweep's experiment says its own.
    target: Of collected runs: a validation loss whose first crossing is timed.
    margin: Of collected runs: differences below this do not matter.
    metric: Of collected runs: val_loss (default), best_val_loss, train_loss or seconds.
    svg: Write each chart as SVG too.
    curves: Write every logged row as curves.csv too.
    parquet: Write the tables as Parquet too.
    """
    options = {"baseline": baseline, "target": target, "margin": margin, "metric": metric}
    given = {name: value for name, value in options.items() if value is not None}
    _report(directory, out, json, given, svg=svg, curves=curves, parquet=parquet)


def _report(directory: Path, out: Path | None, as_json: bool, options: dict[str, Any] | None = None, **files: bool) -> None:
    from muonlab.cli.progress import print_results
    from muonlab.lab.report import as_json as figures
    from muonlab.lab.report import write_report
    from muonlab.lab.store import load_sweep, read_plan

    options = options or {}
    if read_plan(directory) is None and any(directory.glob("*/run.json")):
        from muonlab.lab.collection import collect

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
