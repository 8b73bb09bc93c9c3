"""A trained run, read back from its folder: the model with a checkpoint's weights, the tokenizer, the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from muonlab.data.template import Template
from muonlab.data.tokenizers import Tokenizer, load_tokenizer
from muonlab.errors import InputError
from muonlab.models.family import Model
from muonlab.train import checkpoint as checkpoints
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import RunFolder
from muonlab.train.settings import validated
from muonlab.train.trainer import Machine, autocast, choose_machine

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class LoadedRun:
    """model: in eval mode on machine.device, with the weights after `step` optimizer steps. described: run.json."""

    folder: Path
    recipe: Recipe
    step: int
    model: Model
    machine: Machine
    described: dict[str, Any]
    known_tokenizer: Tokenizer | None

    @property
    def tokenizer(self) -> Tokenizer:
        """What the tokens mean. Raises InputError where the run does not tell: token shards do not."""
        if self.known_tokenizer is None:
            raise InputError(f"{self.folder}: trained on token shards, which do not say what their tokens mean: give --tokenizer")
        return self.known_tokenizer

    @property
    def begins(self) -> bool:
        """Whether each document that it was trained on began with the token that ends one. Windows of a text may begin anywhere."""
        manifests = self.described["data"].get("manifests", [])
        return bool(manifests) and all(manifest.get("begins", False) for manifest in manifests)

    @property
    def context(self) -> int:
        """Tokens that a position can see, itself included."""
        return self.recipe.model.context

    @property
    def window_blocks(self) -> int | None:
        """The long window of the model's last optimizer step, in blocks; None: it has no sliding windows."""
        schedule, whole = self.recipe.schedule, self.recipe.model.window_blocks
        if schedule.windows is None or whole is None:
            return whole
        return schedule.window_at(max(0, self.step - 1), self.recipe.train.steps, whole)

    def templates(self) -> list[Template]:
        """How the prompts were made that it was trained on, each once; none for a run that was trained on plain text."""
        manifests = self.described["data"].get("manifests", [])
        made = [Template(m["columns"], m["template"]) for m in manifests if len(m["columns"]) > 1]
        return list({(template.columns, template.text): template for template in made}.values())

    def computing(self) -> AbstractContextManager[object]:
        """What logits are computed in: the run's own precision where the device is of the kind it was trained on."""
        return autocast(self.machine.device, self.machine.precision)


def load_run(
    folder: str | Path,
    device: str | None = None,
    *,
    checkpoint: str = "last",
    tokenizer: str | Path | None = None,
    threads: int | None = None,
) -> LoadedRun:
    """The run in `folder`, on the device (default: CUDA where there is one).

    checkpoint: last (the newest that is whole), best (of the lowest validation loss), or a step.
    tokenizer: of a run on token shards; of another it must be the one that it was trained with.
    Raises InputError for what is not a run, has no checkpoint yet, or where weights, recipe and tokenizer do not fit together.
    """
    folder = Path(folder)
    described = _described(folder)
    recipe = validated(Recipe, described["recipe"], str(folder / "run.json"))
    found = _tokenizer(folder, described, tokenizer)
    path = checkpoints.chosen(RunFolder(folder), checkpoint)
    before = described["machine"]
    machine = choose_machine(recipe, device, threads, before["bf16_fast"])
    same_kind = machine.device.partition(":")[0] == before["device"].partition(":")[0]
    machine = Machine(machine.device, before["precision"] if same_kind else "float32", machine.threads, machine.bf16_fast)
    model = _built(recipe, described, found, folder)
    fill(model, path / "model.safetensors")
    run = LoadedRun(folder, recipe, checkpoints.step_of(path), model.to(machine.device).eval(), machine, described, found)
    if run.window_blocks is not None:
        model.set_window(run.window_blocks)
    return run


def _described(folder: Path) -> dict[str, Any]:
    """run.json of a run that `muonlab train` made."""
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; expected that of a run, as muonlab train --out made it")
    described = RunFolder(folder).run()
    if described is None:
        inside = sorted(str(file.parent) for file in folder.glob("**/run.json"))
        those = f"; there are runs in it, such as {', '.join(inside[:_SHOWN])}" if inside else ""
        raise InputError(f"{folder}: expected the folder of a run, as muonlab train --out made it; it has no run.json{those}")
    if not {"recipe", "machine", "model", "data"} <= described.keys() or not isinstance(described["recipe"], dict):
        raise InputError(f"{folder}: a run that another program logged or that was imported: its weights are not here")
    if described.get("format") != 1:
        raise InputError(f"{folder}: expected format 1, got {described.get('format')}: made by a newer muonlab")
    return described


def _tokenizer(folder: Path, described: Mapping[str, Any], given: str | Path | None) -> Tokenizer | None:
    trained = described["data"].get("tokenizer")
    if trained is None:
        return None if given is None else load_tokenizer(given)
    found = load_tokenizer(folder / "tokenizer.json" if given is None else given)
    if found.sha256 != trained["sha256"]:
        where = folder / "tokenizer.json" if given is None else f"--tokenizer {given}"
        raise InputError(
            f"{where}: does not match the model: expected the tokenizer that it was trained with ({trained['name']}, "
            f"{trained['vocab_size']:,} tokens, sha256 {trained['sha256'][:12]}…), got one of {found.vocab_size:,} tokens, sha256 "
            f"{found.sha256[:12]}…"
        )
    return found


def _built(recipe: Recipe, described: Mapping[str, Any], tokenizer: Tokenizer | None, folder: Path) -> Model:
    vocabulary = recipe.model.vocab_size or described["data"].get("tokenizer", {}).get("vocab_size")
    if vocabulary is None:
        raise InputError(f"{folder}: run.json says neither model.vocab_size nor which tokenizer the run was trained with")
    if tokenizer is not None and tokenizer.vocab_size > vocabulary:
        raise InputError(
            f"tokenizer {tokenizer.name}: does not match the model: it has {tokenizer.vocab_size:,} tokens, and the model knows "
            f"{vocabulary:,}"
        )
    return recipe.model.build(vocabulary)


def fill(model: Model, file: Path) -> None:
    """Gives the model the file's weights. Raises InputError, with what differs, where they are another model's."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if problem := _misfit(model.state_dict(), weights):
        raise InputError(f"{file}: not the weights of this model ({type(model).__name__}): {problem}")
    model.load_state_dict(weights)


def _misfit(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str | None:
    missing, foreign = ([key for key in x if key not in y] for x, y in ((expected, got), (got, expected)))
    if missing or foreign:
        parts = [f"{_some(names)} {word}" for names, word in ((missing, "missing"), (foreign, "not part of it")) if names]
        return f"a checkpoint of another architecture: {'; '.join(parts)}"
    wrong = [
        f"{key}: expected {tuple(value.shape)}, got {tuple(got[key].shape)}"
        for key, value in expected.items()
        if value.shape != got[key].shape
    ]
    return f"other sizes: {_some(wrong, '; ')}" if wrong else None


def _some(names: list[str], between: str = ", ") -> str:
    rest = len(names) - _SHOWN
    return between.join(names[:_SHOWN]) + (f"{between}and {rest} more" if rest > 0 else "")
