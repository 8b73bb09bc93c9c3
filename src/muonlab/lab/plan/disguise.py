"""Arms that are the same thing under different names: by their recipes, or by what their weight decay really does.

Only what holds exactly, up to rounding, is claimed. Works on canonical recipes as plain tables; needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# These apply an update by its factor alone. `geodesic` turns by the learning rate itself, which no mode of decay reaches.
_BY_FACTOR = ("none", "unit_norm", "sphere", "geodesic_by_norm")


@dataclass(frozen=True)
class Disguise:
    """cell trains as `same_as` does, or, where that is None, as an arm that is not in the experiment."""

    cell: str
    same_as: str | None
    because: str


def find(cells: Sequence[tuple[str, dict[str, Any]]]) -> list[Disguise]:
    """cells: (name, canonical recipe). One entry for each cell that is an earlier one, or something else, in disguise."""
    first: dict[str, str] = {}
    whole: dict[str, str] = {}
    found = []
    plain = dict(cells)
    keys = {name: _text(_effective(recipe)) for name, recipe in cells}
    # What is written as it acts comes first, so that the disguised cell is the one that is named.
    for name, recipe in sorted(cells, key=lambda cell: _acts_otherwise(cell[1])):
        twin = whole.setdefault(_text(recipe), name)
        if twin != name:
            found.append(Disguise(name, twin, f"{name} and {twin} are the same recipe under different names"))
            continue
        same = first.setdefault(keys[name], name)
        if same != name:
            found.append(Disguise(name, same, f"{name} trains as {same} does, up to rounding: {_why(recipe, plain[same])}"))
        elif _acts_otherwise(recipe):
            found.append(Disguise(name, None, f"{name}: {_why(recipe, recipe)}"))
    order = [name for name, _ in cells]
    return sorted(found, key=lambda disguise: order.index(disguise.cell))


def _effective(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its decay as it acts: in mode `update`, η(1+w) without decay; in mode `both`, W(1 − ηw) − η(1+w)U, which is
    `param` at η(1+w) with w/(1+w). Without decay the mode says nothing."""
    optimizer = recipe.get("optimizer", {})
    if "decay" not in optimizer:
        return recipe
    lr, wd = optimizer["lr"], optimizer["weight_decay"]
    if _acts_otherwise(recipe):
        acts = {"lr": lr * (1 + wd), "weight_decay": 0.0 if optimizer["decay"] == "update" else wd / (1 + wd), "decay": "param"}
    elif wd == 0:
        acts = {"weight_decay": 0.0, "decay": "param"}
    else:
        return recipe
    return {**recipe, "optimizer": {**optimizer, **acts}}


def _acts_otherwise(recipe: dict[str, Any]) -> bool:
    """True where the mode of decay changes the learning rate. With a wd_mul the factor differs from matrix to matrix."""
    optimizer = recipe.get("optimizer", {})
    return (
        optimizer.get("decay") in ("update", "both")
        and optimizer["weight_decay"] != 0
        and optimizer["weight_decay"] > -1
        and optimizer.get("constraint", "none") in _BY_FACTOR
        and all(factor == 1 for factor in optimizer.get("wd_mul", {}).values())
    )


def _why(recipe: dict[str, Any], other: dict[str, Any]) -> str:
    optimizer = recipe["optimizer"]
    if not _acts_otherwise(recipe):
        modes = f"{optimizer['decay']!r} and {other['optimizer']['decay']!r}"
        return f"without weight decay its modes ({modes}) do the same"
    acts = _effective(recipe)["optimizer"]
    lr, wd, mode = optimizer["lr"], optimizer["weight_decay"], optimizer["decay"]
    decay = "no decay" if mode == "update" else f"weight_decay {acts['weight_decay']:.6g}"
    only = "only multiplies" if mode == "update" else "also multiplies"
    return (
        f"decay {mode!r} {only} the learning rate by 1 + weight_decay, so that lr {lr:g} with weight_decay {wd:g} is lr "
        f"{acts['lr']:.6g} with {decay}"
    )


def _text(recipe: dict[str, Any]) -> str:
    """Equal for equal recipes. In tables of patterns the order counts: the last one that matches wins."""
    optimizer = dict(recipe.get("optimizer", {}))
    for key in ("roles", "lr_mul", "wd_mul"):
        optimizer[key] = list(optimizer.get(key, {}).items())
    for key in ("lr", "weight_decay"):
        if isinstance(optimizer.get(key), float):
            optimizer[key] = float(f"{optimizer[key]:.12g}") + 0.0  # 0.02 · 0.6 is 0.012, and −0 is 0
    return json.dumps({**recipe, "optimizer": optimizer}, sort_keys=True)
