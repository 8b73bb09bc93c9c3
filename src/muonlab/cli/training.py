"""Commands about single runs: train, plan, optimizers, schema. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from muonlab.cli.app import Device, Json, Set, app, positive, say, show
from muonlab.errors import InputError, RunError

if TYPE_CHECKING:
    from muonlab.train.recipe import Recipe


Model = Annotated[str | None, Parameter(name="--model", help="a model preset instead of the recipe's model: `muonlab presets`")]
Preset = Annotated[str | None, Parameter(name="--preset", help="a training preset instead of the recipe's: `muonlab presets`")]
ScaleSteps = Annotated[
    float | None, Parameter(name="--scale-steps", help="factor on all step counts, such as 0.001 to try a preset in a minute")
]

Track = Annotated[
    list[str] | None,
    Parameter(
        name="--track", negative=(), help="tensorboard, wandb or trackio get every row, and so does a resume's; may be repeated"
    ),
]


@app.command
def train(
    recipe: Path | None = None,
    *,
    model: Model = None,
    preset: Preset = None,
    scale_steps: ScaleSteps = None,
    set: Set = None,
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative=(), help="go on with the run in --out, or start it if there is none")] = False,
    device: Device = None,
    threads: Annotated[int | None, Parameter(help="CPU threads; default: all cores")] = None,
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
    from muonlab.cli.progress import RunDisplay
    from muonlab.train.run import train as train_run

    positive("--threads", threads)
    name, loaded = _recipe(recipe, model, preset, scale_steps, set)
    folder = out or Path("runs") / f"{name}-{loaded.run_id(seed)}"
    say(f"run {loaded.run_id(seed)} in {folder}")
    with RunDisplay(folder.name) as display:
        result = train_run(
            loaded,
            seed,
            folder,
            device=device,
            threads=threads,
            resume=resume,
            trackers=track or (),
            on_progress=display.update,
            say=display.say,
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


def _recipe(
    path: Path | None, model: str | None, preset: str | None, scale_steps: float | None, overrides: list[str] | None
) -> tuple[str, Recipe]:
    """The recipe that a command line asks for, and what to call it. Each flag is a key of the recipe, which --set beats."""
    from muonlab.train.recipe import load_recipe
    from muonlab.train.settings import flat, with_overrides

    flags = {"model.preset": model, "preset": preset, "scale_steps": scale_steps}
    if twice := [
        key for key, value in flags.items() if value is not None and any(o.startswith(f"{key}=") for o in overrides or [])
    ]:
        raise InputError(*(f"--set {key}: it is given by a flag, too: leave one of the two out" for key in twice))
    assignments = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None] + (overrides or [])
    if path is not None:
        return path.stem, load_recipe(path, assignments)
    name = flat(with_overrides({}, assignments)).get("model.preset")
    if name is None:
        raise InputError("expected a recipe file such as recipes/quickstart.toml, or --model with a preset; got neither")
    return str(name), load_recipe(None, assignments)


@app.command
def plan(
    recipe: Path | None = None,
    *,
    model: Model = None,
    preset: Preset = None,
    scale_steps: ScaleSteps = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Show what a recipe does to each parameter, and why: role, rule, effective learning rate and decay.

    Parameters
    ----------
    recipe:
        A recipe file. It may be left out where --model names a preset.
    """
    import torch

    from muonlab.data.corpus import vocab_size
    from muonlab.models.counting import size_of

    name, loaded = _recipe(recipe, model, preset, scale_steps, set)
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


@app.command
def optimizers(pattern: str = "*", *, json: Json = False) -> None:
    """List the optimizers: name, formula, source, options with their defaults.

    Parameters
    ----------
    pattern:
        Shell pattern on the name, such as "norm*".
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
    kind:
        recipe or experiment.
    """
    from muonlab.lab.experiment import ExperimentConfig
    from muonlab.train.recipe import Recipe

    model = Recipe if kind == "recipe" else ExperimentConfig
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}, indent=1))
