"""A trained model taken along: weights, sizes and tokenizer in a folder of their own, for muonlab or for transformers.

The folder is built beside its place and renamed into it: it is there whole or not at all, and takes nobody's place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file

from muonlab import __version__
from muonlab.data.tokenizers import Tokenizer, about, load_tokenizer
from muonlab.errors import InputError, RunError
from muonlab.evaluate.hub_files import hub_config, hub_files
from muonlab.evaluate.loading import LoadedRun, fill
from muonlab.files import sync_directory
from muonlab.models.family import Model, ModelConfig, families
from muonlab.names import choose
from muonlab.train.checkpoint import own, weights_sha256
from muonlab.train.settings import validated

Form = Literal["safetensors", "hf"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """model: in eval mode. tokenizer: None where the run did not tell what its tokens mean. begins: see TextGenerator. trained: the
    run's id and step, and the weights' hash."""

    folder: Path
    config: ModelConfig
    model: Model
    tokenizer: Tokenizer | None
    begins: bool
    trained: dict[str, Any]


def export(run: LoadedRun, out: str | Path, to: Form = "safetensors") -> dict[str, int]:
    """Writes the run's model into the new folder `out`; returns its files and their sizes in bytes.

    safetensors: for `load_exported`. hf: for transformers, with the model's code beside the weights; of the family gpt alone.
    Raises InputError where something is at `out`, or for another family; RunError where it cannot be written (a full disk).
    """
    out = Path(out)
    refuse_taken(out)
    texts = _own_files(run) if to == "safetensors" else hub_files(run, hub_config(run))
    with _new_folder(out) as building:
        for name, text in texts.items():
            (building / name).write_text(text, encoding="utf-8")
        weights = own(run.model.state_dict())
        save_file(weights, building / WEIGHTS, metadata={"format": "pt"})  # transformers looks for this entry
        shutil.copymode(building / CONFIG, building / WEIGHTS)  # safetensors lets nobody else read it
        if to == "safetensors" and run.known_tokenizer is not None:
            run.known_tokenizer.save(building / "tokenizer.json")
        return {path.name: path.stat().st_size for path in sorted(building.iterdir())}


def refuse_taken(out: Path) -> None:
    """Raises InputError if there is something at `out`, or a file where its parent folder should be."""
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; delete it, or choose another folder with --out")
    above = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{out}: {above} is not a folder; choose another one with --out")


def load_exported(folder: str | Path, device: str = "cpu") -> Exported:
    """What `export` wrote in the form safetensors. Raises InputError for anything else, and where its files do not fit together."""
    folder = Path(folder)
    described = _described(folder)
    family = described["model"].get("family", "gpt")
    try:
        choose("model family", family, families())
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    config = validated(families()[family], described["model"], str(folder / CONFIG))
    if config.vocab_size is None:
        raise InputError(f"{folder / CONFIG}: model.vocab_size: expected a number, got none")
    model = config.build(config.vocab_size)
    fill(model, folder / WEIGHTS)
    if described["window_blocks"] is not None:
        model.set_window(described["window_blocks"])
    tokenizer, known = None, described["tokenizer"]
    if known is not None:
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        if tokenizer.sha256 != known["sha256"]:
            raise InputError(
                f"{folder / 'tokenizer.json'}: does not match the model: expected sha256 {known['sha256'][:12]}…, got "
                f"{tokenizer.sha256[:12]}…"
            )
    begins = described.get("begins", False)
    return Exported(folder, config, model.to(device).eval(), tokenizer, begins, described["trained"])


def _described(folder: Path) -> dict[str, Any]:
    expected = "expected a folder that `muonlab export --to safetensors` made"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {expected}")
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run = "; a run is read by muonlab.evaluate.loading.load_run" if (folder / "run.json").exists() else ""
        raise InputError(f"{folder}: {expected}; it has no {CONFIG}{run}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read: {error}") from None
    if not isinstance(described, dict) or not {"muonlab", "model", "window_blocks", "tokenizer", "trained"} <= described.keys():
        foreign = isinstance(described, dict) and "model_type" in described
        why = "it is one for transformers: AutoModelForCausalLM.from_pretrained reads it" if foreign else "its keys are not those"
        raise InputError(f"{folder / CONFIG}: {expected}; {why}")
    if described["muonlab"] != _FORMAT:
        raise InputError(f"{folder / CONFIG}: expected format {_FORMAT}, got {described['muonlab']}: made by a newer muonlab")
    return described


def _own_files(run: LoadedRun) -> dict[str, str]:
    """config.json and README.md of the form safetensors."""
    config = {
        "muonlab": _FORMAT,
        "made_by": __version__,
        "model": {**run.recipe.model.model_dump(mode="json"), "vocab_size": run.model.vocab_size},
        "window_blocks": run.window_blocks,
        "tokenizer": None if run.known_tokenizer is None else about(run.known_tokenizer),
        **({"begins": True} if run.begins else {}),
        "trained": {"run": run.described["id"], "step": run.step, "weights_sha256": weights_sha256(run.model)},
    }
    return {CONFIG: json.dumps(config, indent=1) + "\n", "README.md": _README.format(run=run, family=run.recipe.model.family)}  # pyright: ignore[reportAttributeAccessIssue]


_README = """# A model of the family {family}

Trained with muonlab, run `{run.described[id]}`, step {run.step}.

```python
from muonlab.evaluate.export import load_exported

exported = load_exported(".")  # this folder
logits = exported.model(tokens)  # (B, T) int64 -> (B, T, {run.model.vocab_size}) float32, T ≤ {run.context}
```

`exported.tokenizer` encodes and decodes, and
`muonlab.evaluate.generation.TextGenerator(exported.model, exported.tokenizer, begins=exported.begins)` writes.
The weights are those of the module, by their names; `config.json` has its family and sizes.
"""


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` when the block ends without an error, flushed to the disk; else nothing does.

    Raises RunError where the disk does not take it.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}.building")
    absent = [parent for parent in path.absolute().parents if not parent.exists()]
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        yield building
        for file in building.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        sync_directory(building)
        refuse_taken(path)  # by now, another may have been there first
        os.rename(building, path)
        sync_directory(path.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        with contextlib.suppress(OSError):  # one that has something in it stays: the folder, if all went well
            for parent in absent:
                parent.rmdir()
