"""Settings in layers: a recipe's file, the arm of an experiment, the command line. Each may name presets.

A preset stands below the layer that names it and above the layers before: what a recipe says beside `preset = "..."` beats the
preset, and a preset that an arm or the command line names beats what the recipe's file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muonlab.presets import Kind, preset, presets
from muonlab.train.settings import merge


def laid(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with a layer over it. A training preset replaces the tables optimizer and schedule, of which half would make no
    sense, and of train the keys that it has; a model preset replaces the table model. A preset that does not exist stays, for
    the recipe to complain about. batch = "auto" says how a batch is split, not how large it is: that stays as it is below."""
    below, layer = dict(below), dict(layer)
    if (train := _table(layer, "train")).get("batch") == "auto" and train.get("accumulate", "auto") == "auto":
        layer["train"] = {key: value for key, value in train.items() if key != "batch"} | {"accumulate": "auto"}
    if _known("training", layer.get("preset")):
        tables = preset("training", layer.pop("preset"))
        below.pop("preset", None)
        below |= {**tables, "train": merge(_table(below, "train"), tables["train"])}
    model = _table(layer, "model")
    if _known("model", model.get("preset")):
        below["model"] = preset("model", model["preset"])
        layer["model"] = {key: value for key, value in model.items() if key != "preset"}
    return merge(below, layer)


def explicit(layer: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer says itself, without the presets that it names."""
    own = {key: value for key, value in layer.items() if key != "preset"}
    model = {key: value for key, value in _table(own, "model").items() if key != "preset"}
    return {**own, "model": model} if _table(own, "model") else own


def _known(kind: Kind, name: Any) -> bool:
    return isinstance(name, str) and name in presets(kind)


def _table(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, Mapping) else {}


_EXACT = 2**53  # beyond it a float cannot hold a count


def scaled(settings: Mapping[str, Any], factor: float, defaults: Mapping[str, Mapping[str, int | None]]) -> dict[str, Any]:
    """`settings` with every step count multiplied, rounded, and at least 1 (no warm-up stays none). defaults: table -> key ->
    what counts where nothing is said (None: nothing); they name the keys. What is no number stays, for the recipe to complain
    about."""
    changed = dict(settings)
    for table, keys in defaults.items():
        if not isinstance(settings.get(table, {}), Mapping):
            continue
        counts = {key: settings.get(table, {}).get(key, default) for key, default in keys.items()}
        counts = {key: value for key, value in counts.items() if isinstance(value, int) and not isinstance(value, bool)}
        changed = merge(changed, {table: {key: max(1, round(n * factor)) if 0 < n < _EXACT else n for key, n in counts.items()}})
    return changed


def is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1000
