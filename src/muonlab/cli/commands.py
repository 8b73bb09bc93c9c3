"""`muonlab`: the commands, and what becomes of errors. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import muonlab
from muonlab.cli.progress import Log
from muonlab.errors import InputError, Interrupted, RunError

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

Set = Annotated[
    list[str] | None,
    Parameter(name="--set", help="KEY=VALUE, a dotted key of the recipe such as optimizer.lr=0.02; may be repeated", negative=()),
]
Device = Annotated[str | None, Parameter(help="cpu, cuda or cuda:N; default: CUDA where there is one")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON", negative=())]


def main() -> None:
    """The console script: runs a command and turns its end into an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except InputError as error:
        complain(str(error))
        return 2
    except CycloptsError as error:
        error.verbose = False
        complain(f"{error}\nSee muonlab {' '.join(error.command_chain or ())} --help".replace("muonlab  --", "muonlab --"))
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
        complain(f"cannot write: {error.strerror or error}")
        _silence()
        return 1
    return 0


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


@app.command
def train(
    recipe: Path,
    *,
    set: Set = None,
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative=(), help="go on with the run in --out, or start it if there is none")] = False,
    device: Device = None,
    threads: Annotated[int | None, Parameter(help="CPU threads; default: all cores")] = None,
    json: Json = False,
) -> None:
    """Train one run of a recipe.

    Parameters
    ----------
    recipe: A recipe file, such as recipes/quickstart.toml.
    seed: Decides initial weights and data order.
    out: Folder of the run. Default: runs/RECIPE-ID.
    """
    from muonlab.cli.progress import RunDisplay
    from muonlab.train.recipe import load_recipe
    from muonlab.train.run import train as train_run

    _positive("--threads", threads)
    loaded = load_recipe(recipe, set or [])
    folder = out or Path("runs") / f"{recipe.stem}-{loaded.run_id(seed)}"
    say(f"run {loaded.run_id(seed)} in {folder}")
    with RunDisplay(folder.name) as display:
        result = train_run(
            loaded, seed, folder, device=device, threads=threads, resume=resume, on_progress=display.update, say=display.say
        )
    show({"folder": str(folder), **result}, json, lambda: _result_in_words(folder, result))
    if result["status"] == "diverged":
        raise RunError(f"{folder}: diverged at step {result['steps']}: the loss is no longer finite; lower optimizer.lr or aux_lr")


def _result_in_words(folder: Path, result: dict[str, Any]) -> str:
    loss = "none" if result["val_loss"] is None else f"{result['val_loss']:.4f}"
    best = "none" if result["best_val_loss"] is None else f"{result['best_val_loss']:.4f}"
    skipped = f" {result['skipped']} steps were left out: a gradient was not finite." if result.get("skipped") else ""
    return (
        f"{folder}: {result['status']} after {result['steps']} steps, {result['tokens']:,} tokens, {result['seconds']:.1f} s of "
        f"training. Validation loss {loss} (best {best}).{skipped}"
    )


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

    _positive("--workers", workers)
    loaded = load_experiment(experiment, tuple(set or ()))
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


@app.command
def plan(recipe: Path, *, set: Set = None, json: Json = False) -> None:
    """Show what a recipe does to each parameter, and why: role, rule, effective learning rate and decay.

    Parameters
    ----------
    recipe: A recipe file.
    """
    import torch

    from muonlab.data.tokenizer import VOCAB_SIZE
    from muonlab.models.counting import size_of
    from muonlab.train.recipe import load_recipe

    loaded = load_recipe(recipe, set or [])
    with torch.device("meta"):
        model = loaded.model.build(VOCAB_SIZE)
    try:
        found = loaded.optimizer.build(model).plan
    except ValueError as error:
        raise InputError(f"{recipe}: optimizer: {error}") from None
    size = size_of(loaded.model, VOCAB_SIZE)
    summary = (
        f"{size.parameters:,} parameters ({size.matmul_parameters:,} in matrix products), "
        f"{size.flops_per_token / 1e6:,.1f} MFLOP a token, {loaded.train.steps * loaded.tokens_per_step:,} tokens"
    )
    show([vars(row) for row in found], json, lambda: f"{found}\n\n{summary}")


@app.command
def optimizers(pattern: str = "*", *, json: Json = False) -> None:
    """List the optimizers: name, formula, source, options with their defaults.

    Parameters
    ----------
    pattern: Shell pattern on the name, such as "norm*".
    """
    from muonlab.optim.variants import optimizers as names
    from muonlab.optim.variants import variant

    found = [variant(name) for name in names(pattern)]
    if not found:
        raise InputError(f"no optimizer matches {pattern!r}; known: {', '.join(names())}")
    rows = [
        {
            "name": v.name,
            "formula": v.formula,
            "source": v.source,
            "lr": v.lr,
            "options": {k: p.default for k, p in v.options().items()},
        }
        for v in found
    ]
    show(rows, json, lambda: "\n\n".join(_optimizer_in_words(row) for row in rows))


def _optimizer_in_words(row: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in row["options"].items())
    return f"{row['name']}\n  {row['formula']}\n  source: {row['source']}\n  options: lr={row['lr']!r}, {options}"


@app.command
def schema(kind: Literal["recipe", "experiment"]) -> None:
    """Print the JSON schema of recipes or experiments, for editors that complete and check TOML.

    Parameters
    ----------
    kind: recipe or experiment.
    """
    from muonlab.lab.experiment import ExperimentConfig
    from muonlab.train.recipe import Recipe

    model = Recipe if kind == "recipe" else ExperimentConfig
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}, indent=1))


def _positive(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"{flag}: expected a number of at least 1, got {value}")
