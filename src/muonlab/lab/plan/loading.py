"""Reads an experiment's file and the recipes of its cells; one that follows from another is made from that one's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.plan.config import ExperimentConfig, Metric
from muonlab.lab.plan.experiment import Cell, Experiment
from muonlab.lab.plan.followups import expand
from muonlab.lab.plan.grid import overlap, point_name, read_grid, without_twins
from muonlab.lab.plan.seeds import fresh_seeds, referred_path
from muonlab.lab.runs.store import run_folder_name
from muonlab.names import did_you_mean
from muonlab.train.layers import explicit, laid
from muonlab.train.recipe import Recipe
from muonlab.train.settings import flat, merge, nested, read_toml, validated, with_overrides


def load_experiment(
    path: str | Path, overrides: tuple[str, ...] = (), profile: str | None = None, *, above: tuple[Path, ...] = ()
) -> Experiment:
    """Reads an experiment and the recipes of all its cells. Raises InputError, all problems at once.

    overrides: "dotted.key=value" changes for all arms, as for a run; not of keys that an arm sets itself. profile: the one of the
    file's profiles that is laid over it. above: the files whose follow-up this is read for.
    """
    path = Path(path)
    above = (*above, path.resolve())
    raw = _profiled(path, read_toml(path), profile)
    config = validated(ExperimentConfig, raw, str(path))
    found: dict[str, Any] = {}
    if config.follows is not None:
        key = "refine" if config.refine else "head_to_head"
        of = referred_path(path, key, config.follows.of)
        if of.resolve() in above:
            raise InputError(f"{path}: {key}: {config.follows.of} comes from this experiment itself: name an earlier one")
        known = read_toml(of).get("profiles", {})
        earlier = load_experiment(of, profile=profile if profile in known else None, above=above)
        expanded = expand(path, config.follows, earlier)
        found = {key: {**config.follows.model_dump(mode="json"), **expanded.result}}
        base, baseline = expanded.base, config.baseline or expanded.baseline
        config = config.model_copy(update={"arms": expanded.arms, "baseline": baseline, "metric": _metric(config, earlier)})
    else:
        base = read_toml(referred_path(path, "base", str(config.base)))
    given = with_overrides({}, overrides)
    base = laid(laid(laid({}, base), config.set), given)
    cells = _cells(path, config, base, given)
    config = config.model_copy(update={"seeds": fresh_seeds(path, config, counted=isinstance(raw["seeds"], int))})
    name = path.stem if profile is None else f"{path.stem}-{profile}"
    return Experiment(name, config, cells, _baseline(path, config, cells), base, found)


def _cells(path: Path, config: ExperimentConfig, base: dict[str, Any], given: dict[str, Any]) -> list[Cell]:
    """Every arm at every point of its grid. given: what --set says. Raises InputError, all problems at once."""
    beyond_presets = explicit(given)  # an arm's preset beats that of --set, but not what --set says beside it
    fixed = list(flat(given))
    cells: list[Cell] = []
    problems: list[str] = []
    for arm, changes in config.arms.items():
        changes = dict(changes)
        grid = read_grid({"grid": config.grid, "zip": config.zip}, changes, f"{path}: arms.{arm}", problems)
        if clash := overlap(fixed, [*flat(changes), *grid.keys()]):
            problems.append(f"--set {clash}: arm {arm!r} sets this key itself; change it in {path}")
        if clash := overlap(grid.keys(), list(flat(changes))):
            problems.append(f"{path}: arm {arm!r} both sets and sweeps {clash}")
        if unknown := [key for key in changes if key not in Recipe.model_fields]:
            known = [*Recipe.model_fields, "grid", "zip"]
            problems += [f"{path}: arm {arm!r}: {key}: unknown key; {did_you_mean(key, known)}" for key in unknown]
            continue
        for swept, again in without_twins(grid.points()):
            name = point_name(arm, swept)
            if again is not None:
                problems.append(f"{path}: {point_name(arm, again)!r} is {name!r} once more: the same runs would count twice")
            if any(cell.name == name for cell in cells):
                problems.append(f"{path}: there are two arms {name!r}: the same runs would count twice")
            try:
                settings = merge(laid(base, merge(changes, nested(swept))), beyond_presets)
                recipe = validated(Recipe, settings, f"{path}: arm {name!r}")
                cells.append(Cell(name, arm, swept, recipe))
            except InputError as error:
                problems.extend(error.problems)
    folders = [run_folder_name(cell.name, 0, cell.recipe.run_id(0)) for cell in cells]
    if len({*folders}) < len(folders):
        problems.append(f"{path}: two arms have equal recipes and names too alike for folders of their own: rename one")
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return cells


def _profiled(path: Path, raw: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """The file's content with one of its profiles laid over it."""
    if profile is None:
        return raw
    profiles = validated(ExperimentConfig, raw, str(path)).profiles
    if profile not in profiles:
        known = did_you_mean(profile, profiles) if profiles else "this file has none"
        raise InputError(f"{path}: there is no profile {profile!r}; {known}")
    return merge(raw, profiles[profile])


def _metric(config: ExperimentConfig, earlier: Experiment) -> Metric:
    """A follow-up is decided by what chose its settings, unless it says otherwise."""
    return config.metric if "metric" in config.model_fields_set else earlier.config.metric


def _baseline(path: Path, config: ExperimentConfig, cells: list[Cell]) -> str | None:
    names = [cell.name for cell in cells]
    if config.baseline is None:
        return names[0] if len(names) > 1 and not any(cell.swept for cell in cells) else None
    if config.baseline not in names:
        raise InputError(f"{path}: baseline: there is no arm {config.baseline!r}; {did_you_mean(config.baseline, names)}")
    return config.baseline
