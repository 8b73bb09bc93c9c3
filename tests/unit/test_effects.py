"""Main effects against statsmodels' analysis of variance."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from muonlab.lab.judge.effects import factors_of, main_effects


def design(seed_shift, seeds=5):
    """2 × 3 cells with effects of both factors, an interaction, and a shift of every cell by the seed."""
    rng = np.random.default_rng(4)
    shift = seed_shift * rng.normal(size=seeds)
    cells, recipes, values, rows = [], {}, {}, []
    for a, b in itertools.product((0.0, 0.1), (1, 2, 3)):
        name = f"a={a} b={b}"
        cells.append({"name": name, "arm": "arm", "swept": {"t.a": a, "t.b": b}})
        recipes[name] = {"t.a": a, "t.b": b}
        values[name] = list(2 + a + 0.05 * b + 0.3 * a * (b == 3) + shift + 0.02 * rng.normal(size=seeds))
        rows += [{"a": str(a), "b": str(b), "seed": str(i), "y": y} for i, y in enumerate(values[name])]
    return factors_of(cells, recipes), values, pd.DataFrame(rows)


@pytest.mark.parametrize("seed_shift", [0.0, 1.0])
def test_effects_are_those_of_an_analysis_of_variance(seed_shift):
    factors, values, table = design(seed_shift)
    found = main_effects(factors, values, alpha=0.05, shared_seeds=True)
    model = ols("y ~ C(a, Sum) * C(b, Sum)" + (" + C(seed, Sum)" if seed_shift else ""), table).fit()
    row = next(row for row in found.rows if row.level == 0.1)
    effect = -2 * model.params["C(a, Sum)[S.0.0]"]  # sum coding: half the difference of the two levels
    low, high = sorted(-2 * model.conf_int().loc["C(a, Sum)[S.0.0]"])
    assert row.difference == pytest.approx(effect)
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high))
    f = anova_lm(model, typ=2).loc["C(a, Sum):C(b, Sum)"]
    assert (found.interactions[0].f, found.interactions[0].p) == pytest.approx((f["F"], f["PR(>F)"]))
    assert ("less what a seed shifts" in found.error) == bool(seed_shift)


def test_seeds_that_arms_do_not_share_are_no_blocks():
    factors, values, table = design(1.0)
    row = next(row for row in main_effects(factors, values, alpha=0.05).rows if row.level == 0.1)
    low, high = sorted(-2 * ols("y ~ C(a, Sum) * C(b, Sum)", table).fit().conf_int().loc["C(a, Sum)[S.0.0]"])
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high))


def test_arms_whose_change_is_a_list_are_levels_by_their_names():
    cells, recipes = [], {}
    for arm, momentum in {"plain": [[0, 0.95]], "warm": [[0, 0.85], [0.1, 0.95]]}.items():
        for floor in (0.0, 0.1):
            cells.append({"name": f"{arm} floor={floor}", "arm": arm, "swept": {"schedule.floor": floor}})
            recipes[f"{arm} floor={floor}"] = {"schedule.floor": floor, "schedule.scalars.momentum": momentum}
    assert [(factor.name, factor.values) for factor in factors_of(cells, recipes)] == [
        ("schedule.floor", [0.0, 0.1]),
        ("arm", ["plain", "warm"]),
    ]
