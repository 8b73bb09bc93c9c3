"""Commands about arms × seeds: sweep, report. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from muonlab.cli.app import Device, Json, Profile, Set, app, positive


@app.command
def sweep(
    experiment: Path,
    *,
    set: Set = None,
    profile: Profile = None,
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
    loaded = load_experiment(experiment, tuple(set or ()), profile)
    folder = out or Path("runs") / loaded.name
    with SweepDisplay([cell.name for cell in loaded.cells], list(loaded.config.seeds)) as display:
        run_sweep(loaded, folder, workers=workers, device=device, on_event=display.hear)
    _report(folder, None, json)


@app.command
def report(directory: Path, *, out: Path | None = None, json: Json = False) -> None:
    """Write the report of a sweep, finished or not: report.html, report.md, PNGs, results.json.

    Parameters
    ----------
    directory: Folder of a sweep, such as runs/quickstart.
    out: Where to write. Default: DIRECTORY/report.
    """
    _report(directory, out, json)


def _report(directory: Path, out: Path | None, as_json: bool) -> None:
    from muonlab.cli.progress import print_results
    from muonlab.lab.report import as_json as figures
    from muonlab.lab.report import write_report

    page, results = write_report(directory, out)
    if as_json:
        print(json.dumps({"report": str(page), **figures(results)}, indent=1))
    else:
        print_results(results)
        print(f"\nReport: {page}")
