"""Factorial designs: what the cells of an experiment differ in, and what each factor does on average over the others."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from muonlab.lab import stats


@dataclass(frozen=True)
class Factor:
    """One thing that cells differ in. levels: cell -> its value (text where it is no number); several recipe keys that always
    change together are one factor."""

    name: str
    keys: tuple[str, ...]
    levels: dict[str, Any]

    @property
    def values(self) -> list[Any]:
        """The levels in order: numbers by size, the rest as they come."""
        found = list(dict.fromkeys(self.levels.values()))
        return sorted(found) if self.numeric else found

    @property
    def numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.levels.values())


@dataclass(frozen=True)
class Effect:
    """Of one level: its mean over all combinations of the other factors, and its difference from the factor's reference level."""

    factor: str
    level: Any
    runs: int
    mean: float
    low: float
    high: float
    difference: float | None  # None for the reference level
    difference_low: float | None
    difference_high: float | None
    p: float | None  # two-sided t, adjusted by Holm over all rows of the table


@dataclass(frozen=True)
class Interaction:
    """F test of whether the effect of one factor depends on the level of another."""

    factors: tuple[str, str]
    f: float
    p: float


@dataclass(frozen=True)
class Effects:
    rows: list[Effect]
    interactions: list[Interaction]
    error: str  # where the estimate of chance comes from


def factors_of(cells: list[dict[str, Any]], recipes: dict[str, dict[str, Any]]) -> list[Factor]:
    """The factors of a design in which every combination of levels is one cell; empty if the cells are none.

    A key that differs in every cell (a path, a name) tells nothing where other keys make up a design.
    """
    names = [cell["name"] for cell in cells]
    if len(names) < 2:
        return []
    swept = list(dict.fromkeys(key for cell in cells for key in cell["swept"]))
    keys = list(dict.fromkeys([*swept, *(key for recipe in recipes.values() for key in recipe)]))
    groups: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        levels = [repr(recipes[name].get(key)) if key in recipes[name] else "" for name in names]
        if len({*levels}) > 1:
            groups.setdefault(_partition(levels), []).append(key)
    whole = tuple(range(len(names)))
    if len(groups) > 1:
        groups.pop(whole, None)
    if not groups or math.prod(max(p) + 1 for p in groups) != len(names) or len({*zip(*groups, strict=True)}) != len(names):
        return []
    by_arm = _partition([cell["arm"] for cell in cells])
    return [_factor(cells, recipes, keys, partition == by_arm) for partition, keys in groups.items()]


def _partition(levels: list[str]) -> tuple[int, ...]:
    order = {level: i for i, level in enumerate(dict.fromkeys(levels))}
    return tuple(order[level] for level in levels)


def _factor(cells: list[dict[str, Any]], recipes: dict[str, dict[str, Any]], keys: list[str], by_arm: bool) -> Factor:
    swept = [key for key in keys if any(key in cell["swept"] for cell in cells)]
    by_name = any(isinstance(recipes[cell["name"]].get(key), list | dict) for key in keys for cell in cells)
    if by_arm and not swept and (len(keys) > 1 or by_name):
        return Factor("arm", tuple(keys), {cell["name"]: cell["arm"] for cell in cells})
    key = (swept or keys)[0]
    return Factor(key, tuple(keys), {cell["name"]: _level(recipes[cell["name"]].get(key)) for cell in cells})


def _level(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


_SHOWN = 0.01  # level at which seeds must be shown to shift all cells alike before they are taken for blocks


def main_effects(
    factors: list[Factor], values: dict[str, list[float]], *, alpha: float, baseline: str | None = None, shared_seeds: bool = False
) -> Effects | None:
    """Level means over equally weighted cells, with intervals from the scatter of seeds within cells (pooled), or where cells have
    one run each from what main effects leave unexplained. The reference of a factor is the baseline's level, else its first.

    shared_seeds: the i-th value of every cell has the same seed. Where the seeds are then shown to shift all cells alike, they are
    blocks: what they shift is no chance for a difference between cells. None where a cell has no value yet, or there is nothing to
    estimate chance from.
    """
    cells = list(factors[0].levels)
    if any(not values[cell] for cell in cells):
        return None
    y = np.array([value for cell in cells for value in values[cell]])
    where = [cell for cell in cells for _ in values[cell]]
    additive = _design(factors, where)
    within = sum(float(np.var(values[cell])) * len(values[cell]) for cell in cells)
    freedom = len(y) - len(cells)
    pooled = freedom > 0
    if not pooled:
        within, freedom = _residual(additive, y), len(y) - additive.shape[1]
    if freedom <= 0 or within <= 0:
        return None
    own = variance = within / freedom
    error = "seeds within cells" if pooled else "what the main effects leave unexplained"
    if shared_seeds and pooled and (blocked := _blocked(np.array([values[cell] for cell in cells]))) is not None:
        variance, freedom, shifts = blocked
        y, error = y - np.tile(shifts, len(cells)), "seeds within cells, less what a seed shifts in all cells alike"
    rows = [row for factor in factors for row in _levels(factor, values, own, variance, freedom, alpha, baseline)]
    adjusted = iter(stats.holm([row.p for row in rows if row.p is not None]))
    rows = [row if row.p is None else Effect(**{**row.__dict__, "p": next(adjusted)}) for row in rows]
    interactions = _interactions(factors, where, additive, y, variance, freedom) if pooled else []
    return Effects(rows, interactions, error)


def _blocked(table: np.ndarray) -> tuple[float, int, np.ndarray] | None:
    """Of cells × seeds: variance and its degrees of freedom once the seeds' shifts are taken out, and these shifts. None where
    the seeds are not shown to shift anything (two-way analysis of variance)."""
    cells, seeds = table.shape
    shifts = table.mean(axis=0) - table.mean()
    left = table - table.mean(axis=1, keepdims=True) - shifts
    freedom = (cells - 1) * (seeds - 1)
    variance = float(np.sum(left**2)) / freedom if freedom else 0.0
    if variance <= 1e-20 * float(np.var(table)):  # nothing but rounding is left: there is no estimate of chance
        return None
    f = cells * float(np.sum(shifts**2)) / (seeds - 1) / variance
    return (variance, freedom, shifts) if scipy_stats.f.sf(f, seeds - 1, freedom) < _SHOWN else None


def _levels(
    factor: Factor, values: dict[str, list[float]], own: float, variance: float, freedom: int, alpha: float, baseline: str | None
) -> list[Effect]:
    """own: the variance of a run, for the means; variance: for differences between cells."""
    t = float(scipy_stats.t.ppf(1 - alpha / 2, freedom))
    found = []
    reference = factor.levels[baseline] if baseline in factor.levels else factor.values[0]
    levels = {level: [values[cell] for cell, own in factor.levels.items() if own == level] for level in factor.values}
    means = {level: statistics.fmean(statistics.fmean(v) for v in cells) for level, cells in levels.items()}
    errors = {level: variance * sum(1 / len(v) for v in cells) / len(cells) ** 2 for level, cells in levels.items()}
    for level, mean in means.items():
        half, runs = t * math.sqrt(errors[level] / variance * own), sum(map(len, levels[level]))
        if level == reference:
            found.append(Effect(factor.name, level, runs, mean, mean - half, mean + half, None, None, None, None))
            continue
        difference, error = mean - means[reference], math.sqrt(errors[level] + errors[reference])
        p = 2 * float(scipy_stats.t.sf(abs(difference) / error, freedom))
        around = (difference - t * error, difference + t * error)
        found.append(Effect(factor.name, level, runs, mean, mean - half, mean + half, difference, *around, p))
    return found


def _interactions(
    factors: list[Factor], where: list[str], additive: np.ndarray, y: np.ndarray, variance: float, freedom: int
) -> list[Interaction]:
    base = _residual(additive, y)
    found = []
    for a, b in itertools.combinations(factors, 2):
        columns = [x * z for x in _dummies(a, where) for z in _dummies(b, where)]
        explained = base - _residual(np.column_stack([additive, *columns]), y)
        f = explained / len(columns) / variance
        found.append(Interaction((a.name, b.name), f, float(scipy_stats.f.sf(f, len(columns), freedom))))
    return found


def _dummies(factor: Factor, where: list[str]) -> list[np.ndarray]:
    return [np.array([float(factor.levels[cell] == level) for cell in where]) for level in factor.values[1:]]


def _design(factors: list[Factor], where: list[str]) -> np.ndarray:
    return np.column_stack([np.ones(len(where)), *(column for factor in factors for column in _dummies(factor, where))])


def _residual(design: np.ndarray, y: np.ndarray) -> float:
    """Sum of squares that a least-squares fit leaves."""
    return float(np.sum((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2))
