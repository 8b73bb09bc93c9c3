"""The recipe that a command line asks for: a file, and flags that are keys of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from muonlab.cli.flags import Set, listed
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.train.recipe import Recipe


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """Each flag is a key of the recipe, laid over what the file says."""

    model: Annotated[str | None, Parameter(help="a model preset instead of the recipe's model: `muonlab presets`")] = None
    preset: Annotated[str | None, Parameter(help="a training preset instead of the recipe's: `muonlab presets`")] = None
    scale_steps: Annotated[float | None, Parameter(help="factor on all step counts: 0.001 tries a preset in a minute")] = None
    dataset: Annotated[
        str | None,
        Parameter(help="a data set's name on the Hugging Face hub, a file, a folder or a pattern, prepared before the run"),
    ] = None
    subset: Annotated[str | None, Parameter(help="its subset (configuration), such as main")] = None
    split: Annotated[str | None, Parameter(help="its split; default: train")] = None
    columns: Annotated[
        str | None,
        Parameter(help="its columns: PROMPT,ANSWER (the loss counts on the answer), or one with plain text; default: text"),
    ] = None
    vram_auto: Annotated[
        bool, Parameter(negative=(), help="train.accumulate = auto: batches in the largest micro-batches that fit into memory")
    ] = False
    set: Set = None

    def recipe(self, path: Path | None) -> tuple[str, Recipe]:
        """The recipe, and what to call it. Raises InputError where a flag and --set say the same key, or without file and model."""
        from muonlab.train.recipe import load_recipe
        from muonlab.train.settings import flat, with_overrides

        flags, overrides = self._flags(), self.set or []
        if twice := [key for key in flags if any(o.startswith(f"{key}=") for o in overrides)]:
            raise InputError(*(f"--set {key}: it is given by a flag, too: leave one of the two out" for key in twice))
        assignments = [f"{key}={json.dumps(value)}" for key, value in flags.items()] + overrides
        if path is not None:
            return path.stem, load_recipe(path, assignments)
        name = flat(with_overrides({}, assignments)).get("model.preset")
        if name is None:
            raise InputError("expected a recipe file such as recipes/quickstart.toml, or --model with a preset; got neither")
        return str(name), load_recipe(None, assignments)

    def _flags(self) -> dict[str, Any]:
        """key -> value of the flags that are given."""
        found: dict[str, Any] = {"model.preset": self.model, "preset": self.preset, "scale_steps": self.scale_steps}
        if self.dataset is not None:
            found |= {"data.source": "rows", "data.files": [self.dataset]}
        columns = None if self.columns is None else list(listed("--columns", self.columns))
        found |= {"train.accumulate": "auto" if self.vram_auto else None}
        found |= {"data.subset": self.subset, "data.split": self.split, "data.columns": columns}
        return {key: value for key, value in found.items() if value is not None}
