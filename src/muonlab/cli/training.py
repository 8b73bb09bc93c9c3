"""Commands about single runs: train, plan, optimizers, schema. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from muonlab.cli import app as application
from muonlab.cli.app import OPTIMIZERS, TRAINING, Ended, app, positive, say, show
from muonlab.cli.asked import Asked
from muonlab.cli.flags import Device, Json, Threads
from muonlab.errors import InputError, RunError

if TYPE_CHECKING:
    from muonlab.data.config import DataConfig
    from muonlab.train.recipe import Recipe


Background = Annotated[
    bool, Parameter(name="--background", negative=(), help="go on without the terminal, once all is ready; see `muonlab runs`")
]

Track = Annotated[
    list[str] | None,
    Parameter(
        name="--track", negative=(), help="tensorboard, wandb or trackio get every row, and so does a resume's; may be repeated"
    ),
]


@app.command(group=TRAINING)
def train(
    recipe: Path | None = None,
    *,
    asked: Asked = Asked(),
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[
        bool, Parameter(negative=(), help="go on with the run in --out, or begin it; also: --resume auto or --resume=auto")
    ] = False,
    background: Background = False,
    device: Device = None,
    threads: Threads = None,
    memory_limit: Annotated[str | None, Parameter(help="what --vram-auto may use, such as 4GB; default: what is free")] = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Train one run of a recipe.

    Parameters
    ----------
    recipe:
        A recipe file, such as recipes/quickstart.toml. It may be left out where --model names a preset.
    seed:
        Decides initial weights and data order.
    out:
        Folder of the run. Default: runs/RECIPE-ID, without a recipe runs/MODEL-ID.
    """
    positive("--threads", threads)
    if background and in_background(json):
        return
    name, loaded = asked.recipe(recipe)
    folder = out or Path("runs") / f"{name}-{loaded.run_id(seed)}"
    options: dict[str, Any] = {"device": device, "threads": threads, "resume": resume, "trackers": track or ()}
    options["memory_limit"] = _memory(memory_limit, loaded)
    train_in(folder, loaded, seed, background=background, json=json, **options)


def train_in(folder: Path, recipe: Recipe, seed: int, *, background: bool, json: bool, **options: Any) -> None:
    """Trains a run (options: those of `train.run.train`) and prints its result; with `background`, in a process that
    `in_background` has started."""
    from muonlab.cli.progress import RunDisplay
    from muonlab.train.background import detach
    from muonlab.train.run import check
    from muonlab.train.run import train as train_run
    from muonlab.train.run_folder import RunFolder

    _, result = check(recipe, seed, folder, **{key: options[key] for key in ("device", "resume", "trackers")})
    if result is None and recipe.data.source == "rows":
        _prepare(recipe.data)
    with RunDisplay(folder.name, bar=not background) as display:
        said: list[str] = []

        def tell(text: str) -> None:
            said.append(text)
            display.say(text)

        def begin() -> None:
            nonlocal json
            if background:
                json = False  # the log is for people
                detach(RunFolder(folder))
                for line in [*said, f"{datetime.now():%Y-%m-%d %H:%M:%S}: process {os.getpid()} trains {folder}"]:
                    display.say(line)

        tell(f"run {recipe.run_id(seed)} in {folder}")
        result = train_run(recipe, seed, folder, **options, audit=True, on_begin=begin, on_progress=display.update, say=tell)
    show({"folder": str(folder), **result}, json, lambda: _result_in_words(folder, result))
    if result["status"] == "diverged":
        raise RunError(f"{folder}: diverged at step {result['steps']}: the loss is no longer finite; lower optimizer.lr or aux_lr")


def in_background(json: bool) -> bool:
    """True: the command line that was typed now runs in the background, and its user is told. False: this process is to do the
    work itself, being that one. Raises Ended if it ended before it could begin."""
    from muonlab.train.background import Started, is_background, outlive_terminal, python_command, start

    if is_background():
        outlive_terminal()
        return False
    started = start(python_command(*application.typed))
    if not isinstance(started, Started):
        raise Ended(started)
    folder, then = started.folder, f"`muonlab logs -f {started.folder}` follows, `muonlab stop {started.folder}` ends it"
    show(asdict(started), json, lambda: f"{folder}: trains in the background, process {started.pid}; {then}")
    return True


def _prepare(config: DataConfig) -> None:
    """Prepares a recipe's rows where they are not yet, before the run and with a bar of its own."""
    from muonlab.cli.progress import PrepareDisplay
    from muonlab.data.folders import folders

    with PrepareDisplay(", ".join(config.files)) as display:
        folders(config, on_progress=display.update, say=display.say)


def _memory(limit: str | None, recipe: Recipe) -> int | None:
    from muonlab.train.memory import parse_size

    if limit is not None and recipe.train.accumulate != "auto":
        raise InputError("--memory-limit: nothing asks for it here: it is for --vram-auto (train.accumulate = auto)")
    return None if limit is None else parse_size(limit)


def _result_in_words(folder: Path, result: dict[str, Any]) -> str:
    loss = "none" if result["val_loss"] is None else f"{result['val_loss']:.4f}"
    best = "none" if result["best_val_loss"] is None else f"{result['best_val_loss']:.4f}"
    skipped = f" {result['skipped']} steps were left out: a gradient was not finite." if result.get("skipped") else ""
    return (
        f"{folder}: {result['status']} after {result['steps']} steps, {result['tokens']:,} tokens, {result['seconds']:.1f} s of "
        f"training. Validation loss {loss} (best {best}).{skipped}"
    )


@app.command(group=OPTIMIZERS)
def plan(
    recipe: Path | None = None,
    *,
    asked: Asked = Asked(),
    hf: Annotated[str | None, Parameter(help="any model of transformers: a config.json, its folder, or a name on the hub")] = None,
    optimizer: Annotated[str, Parameter(help="with --hf: the optimizer of its matrices")] = "muon",
    json: Json = False,
) -> None:
    """Show what a recipe does to each parameter, and why: role, rule, effective learning rate and decay.

    Parameters
    ----------
    recipe:
        A recipe file. It may be left out where --model names a preset, or --hf a model.
    """
    if hf is not None:
        if recipe is not None or asked != Asked():
            raise InputError("--hf: names a model of its own: leave out the recipe and its options")
        _plan_of_hf(hf, optimizer, json)
        return
    import torch

    from muonlab.data.corpus import vocab_size
    from muonlab.models.counting import size_of

    name, loaded = asked.recipe(recipe)
    vocabulary = vocab_size(loaded.data)
    with torch.device("meta"):
        module = loaded.model.build(vocabulary)
    try:
        found = loaded.optimizer.build(module).plan
    except ValueError as error:
        raise InputError(f"{recipe or name}: optimizer: {error}") from None
    size = size_of(loaded.model, vocabulary)
    summary = (
        f"{size.parameters:,} parameters ({size.matmul_parameters:,} in matrix products), "
        f"{size.flops_per_token / 1e6:,.1f} MFLOP a token, {loaded.train.steps * loaded.tokens_per_step:,} tokens"
    )
    show([vars(row) for row in found], json, lambda: f"{found}\n\n{summary}")


def _plan_of_hf(name: str, optimizer: str, json: bool) -> None:
    """On the meta device: no weights are needed, nor memory for them."""
    import warnings

    import muonlab
    from muonlab.evaluate.hub_models import on_meta

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        module = on_meta(name)
        told.clear()
        try:
            found = muonlab.optimizer(module, optimizer).plan
        except ValueError as error:
            raise InputError(f"--hf {name}: {error}") from None
    for warning in told:
        say(f"{warning.message}")
    show([vars(row) for row in found], json, lambda: f"{type(module).__name__}\n{found}")


@app.command(group=OPTIMIZERS)
def optimizers(pattern: str = "*", *, json: Json = False) -> None:
    """List the optimizers: name, formula, source, options with their defaults.

    Parameters
    ----------
    pattern:
        Shell pattern on the name, such as "norm*".
    """
    from muonlab.optim.variants import optimizers as matching

    found = matching(pattern)
    if not found:
        raise InputError(f"no optimizer matches {pattern!r}; known: {', '.join(matching())}")
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


@app.command(group=TRAINING)
def schema(kind: Literal["recipe", "experiment"]) -> None:
    """Print the JSON schema of recipes or experiments, for editors that complete and check TOML.

    Parameters
    ----------
    kind:
        recipe or experiment.
    """
    from muonlab.lab.plan.config import ExperimentConfig
    from muonlab.train.recipe import Recipe
    from muonlab.train.unset import with_the_word

    model = Recipe if kind == "recipe" else ExperimentConfig
    found = with_the_word(model.model_json_schema())
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=1))
