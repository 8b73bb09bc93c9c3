"""TensorBoard's event files, through the tensorboard package (the extra `trackers`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.importers.columns import choose_columns
from muonlab.lab.importers.parsed import ParsedRun, rows_of

_CURVES = ("val_loss", "train_loss", "tokens", "lr")


def is_event_file(path: Path) -> bool:
    return "tfevents" in path.name


def read_events(path: Path, arm: str, given: Mapping[str, str]) -> ParsedRun:
    """The run in an event file. Raises InputError without the package, or without a curve that is the val_loss.

    Times are left out: an event's wall time counts evaluation as well, and says nothing of the start.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore
    except ImportError:
        raise InputError(f"{path}: event files need the tensorboard package: pip install 'muonlab[trackers]'") from None
    accumulator: Any = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    try:
        accumulator.Reload()
    except Exception as error:  # the package lets errors of its own and of protobuf through
        raise InputError(f"{path}: not a TensorBoard event file: {error}") from None
    tags = accumulator.Tags()
    curves = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:  # as TensorFlow 2 and JAX write scalars
        points = [(e.step, e.tensor_proto) for e in accumulator.Tensors(tag)]
        if all(len(proto.float_val) == 1 for _, proto in points):
            curves[tag] = [(step, proto.float_val[0]) for step, proto in points]
    wanted = {key: tag for key, tag in given.items() if key in _CURVES}
    columns = {
        k: c for k, c in choose_columns([*curves], wanted, str(path)).items() if k in ("val_loss", "train_loss", "tokens", "lr")
    }
    if "val_loss" not in columns:
        shown = ", ".join(curves) or "none"
        raise InputError(f"{path}: holds no evaluation: expected a curve val_loss, got {shown}; name it with --map val_loss=TAG")
    found: dict[int, dict[str, Any]] = {}
    for key, tag in columns.items():
        for step, value in curves[tag]:
            found.setdefault(int(step), {})[key] = float(value)
    return ParsedRun(arm, path.name, rows_of(sorted(found.items()), str(path)))
