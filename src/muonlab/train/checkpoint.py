"""Checkpoints: a directory with safetensors, JSON, and a manifest of SHA-256 sums that is written last.

A directory is built under another name, fsynced and renamed: one that is there is whole, unless a disk damaged it
later, and then its manifest says so and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muonlab.errors import InputError
from muonlab.files import sha256_of, sync_directory
from muonlab.train.run_folder import RunFolder, best_evaluation

_MANIFEST = "manifest.json"


@dataclass
class Checkpoint:
    model: dict[str, Tensor]
    optimizer: dict[str, Any]  # as Optimizer.state_dict
    random: dict[str, Tensor]  # states of torch's global generators
    progress: dict[str, Any]  # step, seconds, loader position


def save(directory: Path, step: int, checkpoint: Checkpoint, keep: int, also: Callable[[int], bool] = lambda _: False) -> Path:
    """Writes `directory`/step-…, then deletes all but the newest `keep` and those whose step `also` names. On OSError nothing is
    left behind."""
    directory.mkdir(exist_ok=True)
    final = directory / name_of(step)
    if final.exists():  # this process has just written it; a whole checkpoint is never deleted to be written again
        return final
    building = directory / f".building-{step:08d}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        groups = _pack(checkpoint.optimizer)[1]
        for name, tensors in tensors_of(checkpoint).items():
            save_file(own(tensors), building / f"{name}.safetensors")
        (building / "state.json").write_text(json.dumps({"progress": checkpoint.progress, "groups": groups}), encoding="utf-8")
        files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(building.iterdir())}
        (building / _MANIFEST).write_text(json.dumps({"format": 1, "step": step, "files": files}, indent=1), encoding="utf-8")
        for path in building.iterdir():
            _sync_file(path)
        sync_directory(building)
        os.rename(building, final)
        sync_directory(directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    for old in checkpoints(directory)[keep:]:
        if not also(step_of(old)):
            shutil.rmtree(old, ignore_errors=True)
    return final


def tensors_of(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """By the file that they are saved in."""
    return {"model": checkpoint.model, "optimizer": _pack(checkpoint.optimizer)[0], "random": checkpoint.random}


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The optimizer steps that were done when a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    found = [path for path in directory.glob("step-*") if path.name[5:].isdigit()] if directory.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def discard_after(directory: Path, step: int) -> None:
    """Removes what a resume from `step` has no use for: half-built checkpoints, and damaged ones of later steps."""
    for path in directory.glob(".building-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in checkpoints(directory):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def load_newest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, None if there never was one, and a sentence for each damaged one passed over.

    Raises InputError if there are checkpoints and all are damaged.
    """
    problems = []
    found = checkpoints(directory)
    for path in found:
        problem = damage(path)
        if problem is None:
            return _load(path), problems
        problems.append(f"checkpoint {path.name} is damaged ({problem})")
    if found:
        raise InputError(f"{directory}: no whole checkpoint is left: {'; '.join(problems)}. Delete the run's folder to redo it.")
    return None, problems


def chosen(folder: RunFolder, which: str | int) -> Path:
    """A whole checkpoint of a run: "last", "best" (that of the lowest validation loss), or that of a step. Raises InputError if
    there is none such."""
    found = checkpoints(folder.checkpoints)
    if not found:
        raise InputError(f"{folder.path}: has no checkpoint: expected the folder of a run that has saved one")
    if which == "last":
        if whole := next((path for path in found if damage(path) is None), None):
            return whole
        raise InputError(f"{folder.checkpoints}: no whole checkpoint is left: {found[0].name}: {damage(found[0])}")
    best = best_evaluation(folder.rows()) if which == "best" else None
    if which == "best" and best is None:
        raise InputError(f"{folder.path}: nothing is known to be best: there was no evaluation yet; take `last`")
    wanted = str(which) if best is None else str(best["step"])
    there = f"there are {', '.join(str(step_of(path)) for path in reversed(found))}"
    if not wanted.isdigit():
        raise InputError(f"{folder.path}: checkpoint: expected last, best or a step, got {which!r}; {there}")
    path = folder.checkpoints / name_of(int(wanted))
    if path not in found:
        why = "" if best is None else f", the best (validation loss {best['val_loss']:.4f})"
        remedy = "" if best is None else "; train with train.keep_best=true to keep it"
        raise InputError(f"{folder.path}: has no checkpoint of step {wanted}{why}: {there}{remedy}")
    if problem := damage(path):
        raise InputError(f"{path}: damaged ({problem}); {there}")
    return path


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if nothing is."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} of {expected['bytes']} bytes"
            if sha256_of(path / name) != expected["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    return None


def weights_sha256(model: nn.Module) -> str:
    """A hash of all weights, by name: equal if and only if the models are, to the bit."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        return Checkpoint(
            model=load_file(path / "model.safetensors"),
            optimizer=_unpack(load_file(path / "optimizer.safetensors"), state["groups"]),
            random=load_file(path / "random.safetensors"),
            progress=state["progress"],
        )
    except SafetensorError as error:  # matches its SHA-256 and is still no safetensors file: another program's
        raise InputError(f"{path}: cannot be read: {error}") from None


def _pack(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as tensors keyed "parameter/key", and its groups as JSON."""
    tensors, groups = {}, []
    for group in state_dict["param_groups"]:
        groups.append({key: value for key, value in group.items() if key != "params"})
        for index, name in zip(group["params"], group["param_names"], strict=True):
            tensors |= {f"{name}/{key}": value for key, value in state_dict["state"].get(index, {}).items()}
    return tensors, groups


def _unpack(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for group in groups for name in group["param_names"]]
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index[name], {})[entry] = value
    packed = [{**group, "params": [index[name] for name in group["param_names"]]} for group in groups]
    return {"state": state, "param_groups": packed}


def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own: state is stacked, and safetensors refuses views."""
    return {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
