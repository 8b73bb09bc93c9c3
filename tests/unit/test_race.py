"""Races on made-up runs: who runs next, who is done, and how often a race is wrong or saves runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from muonlab.lab.judge.results import compute
from muonlab.lab.judge.standings import standings
from muonlab.lab.run.race import next_runs
from muonlab.lab.runs.store import RunRecord, Sweep


def planned(arms, seeds=20, margin=None):
    plan = {
        "baseline": "base",
        "alpha": 0.05,
        "margin": margin,
        "metric": "val_loss",
        "seeds": list(range(seeds)),
        "cells": [{"name": name} for name in ("base", *arms)],
    }
    runs = [RunRecord(name, seed, f"{name}-{seed}", "missing") for seed in range(seeds) for name in ("base", *arms)]
    return Sweep(plan, runs)


def ended(run, loss):
    status = "finished" if loss is not None else "diverged"
    return dataclasses.replace(run, status=status, result={"val_loss": loss})


def raced(sweep, loss, at_once=1):
    """The sweep after the race; loss(cell, seed) is what a run would end at. Also the order in which the runs were asked for."""
    order = []
    while needed := next_runs(sweep, at_once):
        asked = {(run.cell, run.seed) for run in needed}
        order.append([(run.cell, run.seed) for run in needed])
        runs = [ended(run, loss(run.cell, run.seed)) if (run.cell, run.seed) in asked else run for run in sweep.runs]
        sweep = Sweep(sweep.plan, runs)
    return sweep, order


def normal(gaps, seed=0, std=1.0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(gap, std, 100) for name, gap in {"base": 0.0, **gaps}.items()}
    return lambda cell, i: float(drawn[cell][i])


def test_seeds_run_one_at_a_time_until_the_answer_is_clear():
    sweep, order = raced(planned(["arm"]), normal({"arm": -8.0}))
    found = standings(sweep)["arm"]
    assert found.verdict.word == "better"
    assert 3 <= found.seeds < 8
    assert order == [[("base", seed), ("arm", seed)] for seed in range(found.seeds)]


def test_a_decided_arm_rests_while_the_baseline_goes_on_for_the_others():
    sweep, _ = raced(planned(["far", "near"]), normal({"far": 9.0, "near": 0.0}))
    found = standings(sweep)
    assert found["far"].verdict.word == "worse"
    assert found["near"].verdict.word == "undecided"
    assert not found["near"].open
    assert found["near"].seeds == 20
    counts = {name: sum(run.status == "finished" for run in sweep.of(name)) for name in ("base", "far", "near")}
    assert counts == {"base": 20, "near": 20, "far": found["far"].seeds}


def test_a_verdict_does_not_change_when_the_baseline_runs_on():
    loss = normal({"far": 9.0, "near": 0.0})
    alone, _ = raced(planned(["far", "never"]), lambda cell, seed: None if cell == "never" else loss(cell, seed))
    both, _ = raced(planned(["far", "near"]), loss)
    assert standings(alone)["far"] == standings(both)["far"]


def test_where_the_seed_makes_the_scatter_pairs_are_clear_at_once():
    rng = np.random.default_rng(0)
    seed, own = rng.normal(0, 1, 20), rng.normal(0, 0.02, (2, 20))
    sweep, _ = raced(planned(["arm"]), lambda cell, i: float(seed[i] + own[int(cell == "arm"), i] - 0.1 * (cell == "arm")))
    found = standings(sweep)["arm"]
    assert found.verdict.word == "better"
    assert "of pairs" in found.verdict.reason
    assert found.seeds < 8


def test_equal_arms_are_equivalent_within_a_margin():
    sweep, _ = raced(planned(["arm"], margin=2.0), normal({"arm": 0.0}, std=0.3))
    found = standings(sweep)["arm"]
    assert found.verdict.word == "equivalent"
    assert found.seeds < 20


def test_a_diverged_run_closes_its_arm_and_is_named():
    sweep, order = raced(planned(["arm"]), lambda cell, seed: None if (cell, seed) == ("arm", 2) else 0.1 * seed)
    assert standings(sweep)["arm"].verdict.reason == "arm, seed 2, diverged"
    assert len(order) == 3


def test_several_seeds_at_once_fill_the_workers():
    needed = next_runs(planned(["arm"]), at_once=5)
    assert [(run.cell, run.seed) for run in needed] == [("base", 0), ("arm", 0), ("base", 1), ("arm", 1)]


def test_a_broken_off_race_goes_on_where_it_was():
    loss = normal({"arm": -1.0}, seed=3)
    whole, order = raced(planned(["arm"]), loss)
    sweep = planned(["arm"])
    half = {asked for batch in order[: len(order) // 2] for asked in batch} | {("base", len(order) // 2)}
    sweep = Sweep(sweep.plan, [ended(r, loss(r.cell, r.seed)) if (r.cell, r.seed) in half else r for r in sweep.runs])
    again, _ = raced(sweep, loss)
    assert again == whole


@pytest.mark.parametrize(("gap", "arms"), [(0.0, 1), (0.0, 3), (1.15, 1)])
def test_false_claims_stay_below_alpha_and_a_real_gap_needs_fewer_runs(gap, arms):
    """Whole races, looked at after every seed. The bound of alpha holds for all arms of a race together."""
    names = [f"arm{i}" for i in range(arms)]
    claims, seeds = 0, []
    for i in range(400):
        sweep, _ = raced(planned(names), normal(dict.fromkeys(names, gap), seed=i))
        found = standings(sweep).values()
        claims += any(standing.verdict.word != "undecided" for standing in found)
        seeds += [standing.seeds for standing in found]
    if gap == 0:
        assert claims / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    else:
        assert np.mean(seeds) <= 0.75 * 20  # of the 20 that a fixed number of runs would take


def test_the_report_of_a_race_is_judged_by_the_race_alone():
    """Ten pairs with p = 0.03 by Welch: a claim for one look, none for ten."""
    base, arm = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [4.8, 5.8, 6.8, 7.8, 8.8, 3.8, 4.8, 9.8, 11.8, 12.8]
    sweep = planned(["arm"], seeds=10)
    sweep.plan.update(race=True, name="e", metrics=[], target=None, targets=[], changes=[])
    sweep.plan["cells"] = [{"name": n, "arm": n, "swept": {}, "recipe": {}} for n in ("base", "arm")]
    sweep = Sweep(sweep.plan, [ended(r, {"base": base, "arm": arm}[r.cell][r.seed]) for r in sweep.runs])
    alone = compute(Sweep({**sweep.plan, "race": False}, sweep.runs)).arms[1]
    raced_arm = compute(sweep).arms[1]
    assert alone.comparison.difference == pytest.approx(raced_arm.comparison.difference)
    assert raced_arm.verdict == standings(sweep)["arm"].verdict
    assert (alone.verdict.word, raced_arm.verdict.word) == ("worse", "undecided")
