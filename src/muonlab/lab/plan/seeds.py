"""The seeds of an experiment: none of them has chosen its settings, in whatever experiment before."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from muonlab.errors import InputError
from muonlab.lab.plan.config import ExperimentConfig, Seeds
from muonlab.train.settings import merge, read_toml, validated


def fresh_seeds(path: Path, config: ExperimentConfig, *, counted: bool) -> tuple[int, ...]:
    """The experiment's seeds, none of which has tuned its settings. counted: they were given as a number, so the first that
    are free are taken; a list of them is taken as it stands. Raises InputError where one of it was used before."""
    used = _tuning_seeds(path, _sources(config), (path.resolve(),))
    if counted:
        return _free(used, len(config.seeds))
    by_file: dict[str, list[int]] = {}
    for seed in sorted({*config.seeds} & used.keys()):
        by_file.setdefault(used[seed], []).append(seed)
    if by_file:
        raise InputError(
            *(f"{path}: seeds {s} tuned these settings ({file}); confirm them with others" for file, s in by_file.items())
        )
    return config.seeds


def _tuning_seeds(path: Path, sources: list[str], above: tuple[Path, ...]) -> dict[int, str]:
    """Seed -> the file that used it, of all that tuned an experiment: with any of their profiles, and what tuned them included.
    above: this experiment, and the files that led from it to here: a circle ends where it began."""
    found: dict[int, str] = {}
    for name in sources:
        file = path.parent / name
        if file.resolve() in above:
            continue
        raw = read_toml(referred_path(path, "tuned_by", name))
        profiles = validated(_Earlier, raw, name).profiles.values()
        for settings in (raw, *(merge(raw, profile) for profile in profiles)):
            earlier = validated(_Earlier, settings, name)
            before = _tuning_seeds(file, _sources(earlier), (*above, file.resolve()))
            # a number of seeds may have stepped over others
            seeds = _free(before, len(earlier.seeds)) if isinstance(settings["seeds"], int) else earlier.seeds
            found = before | dict.fromkeys(seeds, name) | found
    return found


def _free(used: dict[int, str], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice((seed for seed in itertools.count() if seed not in used), count))


def _sources(config: ExperimentConfig | _Earlier) -> list[str]:
    """The files that an experiment's settings come from."""
    named = (config.tuned_by,) if isinstance(config.tuned_by, str) else config.tuned_by or ()
    return [*named, *(follows.of for follows in (config.refine, config.head_to_head) if follows is not None)]


def referred_path(path: Path, key: str, name: str) -> Path:
    """The TOML file that a key of the experiment names, relative to it. Raises InputError if it cannot be read."""
    try:
        read_toml(path.parent / name)
    except InputError as error:
        raise InputError(f"{path}: {key}: {error}") from None
    return path.parent / name


class _Follows(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    of: str


class _Earlier(BaseModel):
    """What counts of an experiment or a search that came before: its seeds, where its settings come from, and its profiles."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    seeds: Seeds
    tuned_by: str | tuple[str, ...] | None = None
    refine: _Follows | None = None
    head_to_head: _Follows | None = None
    profiles: dict[str, dict[str, Any]] = {}
