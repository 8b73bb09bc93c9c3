"""Which column of a table is what: names in use by common tools, and those that the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from muonlab.errors import InputError
from muonlab.names import did_you_mean

# What a row may say -> the names it goes by (after _plain). Train loss is never guessed from a bare "loss".
ALIASES = {
    "arm": ("arm", "optimizer", "variant"),
    "run": ("run", "run_id", "run_name"),
    "seed": ("seed",),
    "step": ("step", "global_step", "iteration", "iter", "trainer_global_step"),
    "total_steps": ("total_steps", "train_steps", "num_iterations", "max_steps"),
    "val_loss": ("val_loss", "validation_loss", "valid_loss", "eval_loss", "loss_val", "loss_validation", "loss_eval"),
    "train_loss": ("train_loss", "training_loss", "loss_train"),
    "tokens": ("tokens", "tokens_seen"),
    "seconds": ("seconds", "train_seconds", "training_seconds", "train_time_s", "runtime"),
    "ms": ("train_ms", "train_time_ms", "training_time_ms"),
    "lr": ("lr", "learning_rate"),
}
NUMBERS = ("step", "total_steps", "val_loss", "train_loss", "tokens", "seconds", "ms", "lr", "seed")


def plain(name: str) -> str:
    """ "Val/Loss" and "_val-loss" are val_loss."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def parse_map(assignments: Iterable[str]) -> dict[str, str]:
    """KEY=COLUMN, as --map gives them. Raises InputError for unknown keys."""
    found: dict[str, str] = {}
    problems = []
    for assignment in assignments:
        key, equals, column = assignment.partition("=")
        if not equals or not column:
            problems.append(f"--map: expected KEY=COLUMN such as val_loss=loss, got {assignment!r}")
        elif key not in ALIASES:
            problems.append(f"--map: {key}: unknown key; {did_you_mean(key, ALIASES)}")
        elif found.setdefault(key, column) != column:
            problems.append(f"--map: {key}: given twice")
    if problems:
        raise InputError(*problems)
    return found


def choose_columns(header: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Key -> column of this table. Raises InputError for a column that is not there, or a key that two columns could be."""
    chosen: dict[str, str] = {}
    problems = []
    for key, column in given.items():
        if column in header:
            chosen[key] = column
        else:
            problems.append(f"{where}: there is no column {column!r}; {did_you_mean(column, header)}")
    for key, names in ALIASES.items():
        found = [column for column in header if plain(column) in names and column not in given.values()]
        if key not in given and len(found) > 1:
            problems.append(f"{where}: {key}: could be any of {', '.join(found)}: choose one with --map {key}=COLUMN")
        elif key not in given and found:
            chosen[key] = found[0]
    if problems:
        raise InputError(*problems)
    return chosen
