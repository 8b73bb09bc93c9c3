"""`muonlab presets`: what models and trainings there are, and what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from muonlab.cli.app import TRAINING, app, positive, say, show
from muonlab.cli.flags import Device, Json
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.train.footprint import Footprint

_OPTIMIZERS = ("adamw", "muon")


@app.command(group=TRAINING)
def presets(
    pattern: str = "*",
    *,
    batch: Annotated[int, Parameter(help="sequences of the model's context that are trained on at once")] = 8,
    precision: Annotated[
        Literal["float32", "bf16"] | None, Parameter(help="default: bf16 where the device is fast at it, as in training")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """List the presets of models, with what training them needs, and of trainings.

    Memory is that of a training step's tensors at its peak: weights, as much again for gradients, the optimizer's state, and
    activations. FLOPs are of a forward and a backward pass. `muonlab train --model NAME --preset NAME` trains one.

    Parameters
    ----------
    pattern:
        Shell pattern on the name, such as "gpt-*" or "muon_*".
    """
    from muonlab.names import did_you_mean
    from muonlab.presets import matching
    from muonlab.presets import presets as names
    from muonlab.train.recipe import Recipe
    from muonlab.train.trainer import choose_machine

    positive("--batch", batch)
    models, trainings = matching("model", pattern), matching("training", pattern)
    if not models and not trainings:
        raise InputError(f"no preset matches {pattern!r}; {did_you_mean(pattern, [*names('model'), *names('training')])}")
    machine = choose_machine(Recipe.model_validate({"train": {"precision": precision or "auto"}}), device)
    at = {"batch": batch, "device": machine.device, "precision": machine.precision}
    model_rows = [_model_row(name, **at) for name in models]
    training_rows = [_training_row(name) for name in trainings]
    show({**at, "models": model_rows, "training": training_rows}, json, lambda: _in_words(model_rows, training_rows, at))


def _model_row(name: str, *, batch: int, device: str, precision: str) -> dict[str, Any]:
    """What a model is, and what training it needs with each optimizer. Takes some seconds."""
    from muonlab.data.tokenizer import VOCAB_SIZE
    from muonlab.models.counting import size_of
    from muonlab.train.footprint import footprints
    from muonlab.train.recipe import OptimizerConfig, Recipe

    say(f"{name}: following a training step")
    model = Recipe.model_validate({"model": {"preset": name}}).model
    size = size_of(model, VOCAB_SIZE)
    optimizers = {optimizer: OptimizerConfig.model_validate({"name": optimizer}) for optimizer in _OPTIMIZERS}
    memory = footprints(model, optimizers, batch=batch, vocab_size=VOCAB_SIZE, device=device, precision=precision)
    return {
        "name": name,
        "family": model.model_dump()["family"],
        "parameters": size.parameters,
        "vocab_size": model.vocab_size or VOCAB_SIZE,
        "context": model.context,
        "flops_per_token": size.flops_per_token,
        "bytes": {optimizer: _bytes(found) for optimizer, found in memory.items()},
    }


def _bytes(found: Footprint) -> dict[str, int]:
    return {**vars(found), "total": found.total}


def _training_row(name: str) -> dict[str, Any]:
    from muonlab.train.recipe import Recipe

    recipe = Recipe.model_validate({"preset": name})
    optimizer = recipe.optimizer.canonical()
    kept = {key: optimizer[key] for key in ("lr", "aux_lr", "weight_decay")}
    return {"name": name, "optimizer": optimizer["name"], **kept, "steps": recipe.train.steps,
            "warmup_steps": recipe.schedule.warmup_steps}  # fmt: skip


def _in_words(models: list[dict[str, Any]], trainings: list[dict[str, Any]], at: dict[str, Any]) -> str:
    blocks = []
    if models:
        head = f"{'model':<22} {'family':<7}{'params':>7}{'context':>8}{'MFLOP/tok':>10}{'weights':>9}{'grads':>7}"
        above = f"{'':{len(head)}}" + "".join(f"{f'-- with {name} --':>24}" for name in ("AdamW", "Muon"))
        head += f"{'state':>8}{'activ.':>8}{'total':>8}" * len(_OPTIMIZERS)
        note = f"GiB at {at['batch']} sequences of the context, {at['precision']} on {at['device']}; FLOPs forward and backward"
        blocks.append("\n".join([above, head, *map(_model_in_words, models), note]))
    if trainings:
        keys = ("optimizer", "lr", "aux_lr", "weight_decay", "steps", "warmup_steps")
        rows = [f"{row['name']:<22} " + "".join(f"{row[key]:>13}" for key in keys) for row in trainings]
        blocks.append("\n".join([f"{'training':<22} " + "".join(f"{key:>13}" for key in keys), *rows]))
    return "\n\n".join(blocks)


def _model_in_words(row: dict[str, Any]) -> str:
    memory = [row["bytes"][optimizer] for optimizer in _OPTIMIZERS]
    parts = [f"{_gib(memory[0]['weights']):>9}{_gib(memory[0]['gradients']):>7}"]
    parts += [f"{_gib(m['optimizer_state']):>8}{_gib(m['activations']):>8}{_gib(m['total']):>8}" for m in memory]
    size = f"{row['parameters'] / 1e6:>6.1f}M{row['context']:>8}{row['flops_per_token'] / 1e6:>10,.0f}"
    return f"{row['name']:<22} {row['family']:<7}{size}{''.join(parts)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.{2 if size >= 2**27 else 3}f}"
