"""Commands about runs that are there: runs, runs show, logs, stop, resume. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from muonlab.cli.app import TRAINING, app, positive, show
from muonlab.cli.flags import Device, Json
from muonlab.cli.training import Background, Track, in_background, train_in
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.train.session import Standing

runs = App(group=TRAINING, name="runs", help="List the runs below a folder; `muonlab runs show RUN` tells all about one.")
app.command(runs)
_FOLLOW_EVERY = 0.2  # seconds


@runs.default
def list_runs(directory: Path = Path("runs"), *, json: Json = False) -> None:
    """List all runs below a folder, those of sweeps, races, searches and imports alike.

    A run is running, stopped (it saved itself), crashed (its process failed or was killed), finished or diverged; `muonlab resume
    RUN` goes on with one that is stopped or crashed. Speed is that of the last steps, and the time left counts evaluations, too.

    Parameters
    ----------
    directory:
        Where to look. An index (index.sqlite) is kept there, made from the run folders and never needed.
    """
    from muonlab.lab.runs.index import runs as indexed

    found = [_live(directory, row) for row in indexed(directory)]
    show(found, json, lambda: _table(found) if found else "no runs")


def _live(directory: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the index with how the run stands now. What has ended stands in the index."""
    from muonlab.train.session import standing

    path = str(directory / row["folder"])
    speed = row["tokens"] / row["seconds"] if row["tokens"] and row["seconds"] else None
    row = {**row, "folder": path, "step": row["steps"], "train_loss": None, "tokens_per_second": speed, "seconds_left": None}
    if row["status"] != "unfinished":
        return row
    now = asdict(standing(path))
    return {**row, "status": now.pop("state"), **now}


def _table(found: list[dict[str, Any]]) -> str:
    from muonlab.cli.progress import duration

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [("status", "step", "train", "val_loss", "tokens/s", "left", "folder")]
    for row in found:
        step = number(row["step"], "d") + ("" if row["steps"] in (None, row["step"]) else f"/{row['steps']}")
        left = "–" if row["seconds_left"] is None else duration(row["seconds_left"])
        speed = number(row["tokens_per_second"], ",.0f")
        losses = (number(row["train_loss"], ".4f"), number(row["val_loss"], ".4f"))
        lines.append((row["status"], step, *losses, speed, left, row["folder"]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:]), line[-1]]) for line in lines)


@runs.command(name="show")
def show_run(run: Path, *, json: Json = False) -> None:
    """Tell all about one run: how it stands, what it trains on what, its checkpoints.

    Parameters
    ----------
    run:
        The folder of a run.
    """
    from muonlab.train.run_folder import RunFolder, best_evaluation
    from muonlab.train.session import standing

    row, folder = standing(run), RunFolder(run)
    if row.state == "damaged":
        raise InputError(row.reason)
    described = folder.run() or {}
    best = best_evaluation(folder.rows())
    details: dict[str, Any] = {
        **asdict(row),
        "id": described["id"],
        "seed": described["seed"],
        "best": best and {"step": best["step"], "val_loss": best["val_loss"]},
        "checkpoints": folder.saved_steps(),
        "log": str(folder.log_file) if folder.log_file.exists() else None,
        **{key: described.get(key) for key in ("model", "machine", "data", "provenance", "recipe")},
        "result": folder.result(),
    }
    show(details, json, lambda: _details(row, details))


def _details(row: Standing, details: dict[str, Any]) -> str:
    from muonlab.cli.progress import duration

    lines = {"run": f"{row.folder} (id {details['id']}, seed {details['seed']})", "state": row.state}
    if row.pid is not None:
        lines["process"] = str(row.pid)
    if row.reason:
        lines["why"] = row.reason
    lines["step"] = f"{row.step}" if row.steps is None else f"{row.step} of {row.steps}"
    if row.seconds_left is not None:
        lines["left"] = duration(row.seconds_left)
    losses = [f"{name} {loss:.4f}" for name, loss in (("train", row.train_loss), ("validation", row.val_loss)) if loss is not None]
    if best := details["best"]:
        losses.append(f"best {best['val_loss']:.4f} at step {best['step']}")
    lines["loss"] = ", ".join(losses) or "none yet"
    if row.tokens_per_second is not None:
        lines["speed"] = f"{row.tokens_per_second:,.0f} tokens/s"
    lines["checkpoints"] = ", ".join(map(str, details["checkpoints"])) or "none"
    lines["log"] = details["log"] or "none: it was not started with --background"
    if model := details["model"]:
        lines["model"] = f"{model['parameters']:,} parameters"
    if machine := details["machine"]:
        lines["machine"] = f"{machine['device']}, {machine['precision']}, {machine['threads']} threads"
    if began := (details["provenance"] or {}).get("started"):
        lines["began"] = began
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


@app.command(group=TRAINING)
def logs(
    run: Path,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative=(), help="go on until the run's process ends")] = False,
    lines: Annotated[int | None, Parameter(name=["--lines", "-n"], help="only the last so many; default: all")] = None,
) -> None:
    """Print what a run in the background has said.

    Parameters
    ----------
    run:
        The folder of a run that was started with --background.
    """
    from muonlab.train.run_folder import RunFolder
    from muonlab.train.session import standing

    positive("--lines", lines)
    standing(run)  # complains if there is no run
    folder = RunFolder(run)
    if not folder.log_file.exists():
        raise InputError(f"{folder.log_file}: there is none: only a run that is started with --background writes it")
    with open(folder.log_file, encoding="utf-8", errors="replace") as file:
        written = file.readlines()
        sys.stdout.writelines(written[-lines:] if lines else written)
        while follow:
            sys.stdout.flush()
            running = folder.held()  # before the file is read: what was said last is printed
            if text := file.read():
                sys.stdout.write(text)
            elif not running:
                break
            time.sleep(_FOLLOW_EVERY if running else 0)


@app.command(group=TRAINING)
def stop(
    run: Path, *, timeout: Annotated[float, Parameter(help="seconds to wait for its process")] = 600.0, json: Json = False
) -> None:
    """Let a run save and stop, and wait until it has. `muonlab resume RUN` goes on with it.

    Parameters
    ----------
    run:
        The folder of a run, in the background or not.
    """
    from muonlab.train.session import standing
    from muonlab.train.session import stop as stop_run

    if not timeout > 0:
        raise InputError(f"--timeout: expected a number of seconds above 0, got {timeout:g}")
    asked = stop_run(run, timeout)
    row = standing(run)
    how = f"{row.state} after step {row.step}"
    words = how if asked else f"was not running: {how}"
    show({"was_running": asked, **asdict(row)}, json, lambda: f"{row.folder}: {words}")


@app.command(group=TRAINING)
def resume(
    run: Path,
    *,
    device: Device = None,
    threads: Annotated[int | None, Parameter(help="CPU threads; default: as before")] = None,
    track: Track = None,
    background: Background = False,
    json: Json = False,
) -> None:
    """Go on with a run that was stopped or crashed, as its folder describes it. A finished one is reported.

    Paths of data are taken from the working folder, as when it began.

    Parameters
    ----------
    run:
        The folder of a run.
    """
    positive("--threads", threads)
    if background and in_background(json):
        return
    from muonlab.train.recipe import Recipe
    from muonlab.train.run_folder import RunFolder
    from muonlab.train.settings import validated

    described = RunFolder(run).run()
    if described is None:
        raise InputError(f"{run}: expected the folder of a run (with run.json); `muonlab runs` lists those in runs/")
    if "source" in described:
        raise InputError(f"{run}: is logged by a program of your own: go on with it there")
    recipe = validated(Recipe, described["recipe"], str(RunFolder(run).run_file))
    options: dict[str, Any] = {"device": device, "threads": threads, "resume": True, "trackers": track or ()}
    train_in(run, recipe, described["seed"], background=background, json=json, **options)
