"""The figures of a report on made-up sweeps whose answers are known: times to targets, effects, pairs, tables, costs."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from muonlab.lab.judge.results import Results, compute
from muonlab.lab.runs.curves import MEAN_POINTS, RUN_POINTS, mean_curves, run_curves
from muonlab.lab.runs.store import Sweep, load_sweep
from muonlab.lab.show import charts
from muonlab.lab.show.arm_tables import tables
from muonlab.lab.show.charts.losses import curves, losses_of
from muonlab.lab.show.charts.style import spacing
from muonlab.lab.show.export import curves_table, runs_table
from muonlab.lab.show.facts import cost, facts
from muonlab.lab.show.findings import answer, notes
from muonlab.lab.show.report import write_report
from muonlab.train.run_folder import RunFolder, write_json
from muonlab.train.run_folder import format_row as line
from tests.unit.made_sweeps import around, cell, grid, sweep

ADAMW, MUON = cell("adamw", name="adamw", lr=0.004), cell("muon", lr=0.02)


def figures(folder: Path) -> Results:
    return compute(load_sweep(folder))


def names(results: Results) -> list[str]:
    return [chart.name for chart in charts.charts(results)]


def test_times_to_targets_count_the_runs_that_missed(tmp_path):
    """adamw ends above the target in three of four runs: its median is unknown, and it is not dropped."""
    ends = {("adamw", s): 2.35 if s == 1 else 2.5 for s in range(1, 5)} | {("muon", s): 2.2 for s in range(1, 5)}
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: ends[c, s], seeds=4, target=2.4, targets=[2.4, 3.0])
    adamw, muon = figures(folder).arms
    assert [(to.target, to.reached, to.ended) for to in adamw.targets] == [(2.4, 1, 4), (3.0, 4, 4)]
    assert adamw.steps_to_target is None
    assert muon.steps_to_target is not None
    assert muon.tokens_to_target == 1024 * muon.steps_to_target
    ratio = muon.targets[1].ratio
    assert ratio is not None
    assert 0.7 < ratio.ratio < 1
    assert adamw.targets[0].ratio is None, "the baseline has no ratio to itself"


def test_a_diverged_run_never_reaches_the_target(tmp_path):
    """It breaks off early: censored there, a Kaplan-Meier median would take it for a run that might still have got there."""
    folder = sweep(tmp_path / "s", [MUON], lambda c, s: "diverged" if s > 2 else 2.2, seeds=5, target=2.4)
    (muon,) = figures(folder).arms
    assert (muon.targets[0].reached, muon.targets[0].ended, muon.steps_to_target) == (2, 5, None)


def factorial(c: str, s: int) -> float:
    parts = dict(part.split("=") for part in c.split()[1:])
    return 2.4 + (0.1 if parts["momentum"] == "0.9" else 0) + (0.03 if parts["floor"] == "0.1" else 0) + 0.001 * s


def test_main_effects_of_a_crossed_grid(tmp_path):
    folder = sweep(tmp_path / "s", grid("muon", momentum=[0.9, 0.95], floor=[0.0, 0.1]), factorial)
    results = figures(folder)
    assert results.effects is not None
    found = {(row.factor, row.level): row for row in results.effects.rows}
    assert found["optimizer.momentum", 0.95].difference == pytest.approx(-0.1)
    assert found["optimizer.floor", 0.1].difference == pytest.approx(0.03)
    assert found["optimizer.floor", 0.1].runs == 6
    (interaction,) = results.effects.interactions
    assert interaction.f == pytest.approx(0, abs=1e-9)
    assert "effects" in names(results)


def test_effects_agree_with_an_analysis_of_variance(tmp_path):
    """statsmodels computes the same F of the interaction, and the same p of an effect, from the same runs."""
    import pandas
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    folder = sweep(
        tmp_path / "s",
        grid("muon", momentum=[0.9, 0.95], floor=[0.0, 0.1]),
        lambda c, s: factorial(c, s) + around(0, 0.02, c, s) + (0.05 if "momentum=0.9 floor=0.1" in c else 0),
        seeds=4,
    )
    results = figures(folder)
    assert results.effects is not None
    table = pandas.DataFrame(
        [(row["value"], row["optimizer.momentum"], row["optimizer.floor"]) for row in results.finals()], columns=["y", "a", "b"]
    )
    fit = ols("y ~ C(a, Sum) * C(b, Sum)", table).fit()
    expected = anova_lm(fit, typ=2)
    assert results.effects.interactions[0].f == pytest.approx(expected["F"].iloc[2])
    assert results.effects.interactions[0].p == pytest.approx(expected["PR(>F)"].iloc[2])
    momentum = next(row for row in results.effects.rows if row.factor == "optimizer.momentum" and row.p is not None)
    others = [row.p for row in results.effects.rows if row.p is not None]
    raw = [expected["PR(>F)"].iloc[0], expected["PR(>F)"].iloc[1]]
    assert momentum.p == pytest.approx(
        min(1, raw[0] * (2 if raw[0] < raw[1] else 1)) if raw[0] < raw[1] else max(raw[0], 2 * raw[1])
    )
    assert len(others) == 2


def test_named_arms_that_differ_in_several_keys_are_a_design(tmp_path):
    cells = [cell(f"{a}{b}", smooth=a == "s", floor=b) for a in ("p", "s") for b in (0.0, 0.01)]
    results = figures(sweep(tmp_path / "s", cells, lambda c, s: 2.4 + 0.01 * len(c) + 0.001 * s))
    assert {factor.name for factor in results.factors} == {"optimizer.smooth", "optimizer.floor"}
    assert results.effects is not None


def test_arms_that_are_no_design_have_no_effects(tmp_path):
    cells = [ADAMW, MUON, cell("normuon", lr=0.02, beta2=0.95)]
    results = figures(sweep(tmp_path / "s", cells, lambda c, s: 2.4 + 0.001 * s))
    assert results.factors == []
    assert results.effects is None


def test_half_a_design_has_no_effects_yet(tmp_path):
    cells = grid("muon", momentum=[0.9, 0.95], floor=[0.0, 0.1])
    results = figures(sweep(tmp_path / "s", cells, lambda c, s: None if c == cells[2]["name"] else factorial(c, s)))
    assert results.effects is None


def test_shared_seeds_are_pairs_only_where_they_correlate(tmp_path):
    """Losses that move together by seed, half a seed's scatter apart: pairs see it, independent runs do not."""
    noise = {s: around(0, 0.1, s) for s in range(1, 9)}
    together = sweep(
        tmp_path / "a", [ADAMW, MUON], lambda c, s: 2.5 + noise[s] + 0.001 * around(0, 1, c, s) - 0.02 * (c == "muon"), seeds=8
    )
    muon = figures(together).arms[1]
    assert muon.pairing is not None
    assert muon.pairing.helps
    assert muon.comparison is muon.pairing
    assert muon.verdict is not None
    assert muon.verdict.word == "better"
    assert "compared in pairs" in " ".join(notes(figures(together)))
    apart = sweep(tmp_path / "b", [ADAMW, MUON], lambda c, s: around(2.5, 0.1, c, s), seeds=8)
    muon = figures(apart).arms[1]
    assert muon.pairing is not None
    assert not muon.pairing.helps
    assert muon.comparison is not muon.pairing
    assert "it does not help" in " ".join(notes(figures(apart)))


@pytest.mark.slow
def test_many_arms_are_answered_in_groups_with_all_evidence_below(tmp_path):
    cells = grid("muon", lr=[0.01 * i for i in range(1, 11)])
    name = cells[4]["name"]
    results = figures(sweep(tmp_path / "s", cells, lambda c, s: 2.4 + 0.1 * (c != name) + around(0, 0.001, c, s), baseline=name))
    assert answer(results)[1].startswith("9 arms are worse than muon lr=0.05: ")
    page, _ = write_report(tmp_path / "s")
    assert page.read_text().count("is worse than muon lr=0.05: difference") == 9


def test_steps_that_were_left_out_are_told(tmp_path):
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4 + 0.001 * s)
    for path in list(folder.glob("runs/run1-*/result.json"))[:2]:
        content = json.loads(path.read_text())
        write_json(path, {k: v for k, v in content.items() if k != "crc"} | {"skipped": 3})
    assert "muon: 6 steps were left out in 2 runs" in " ".join(notes(figures(folder)))


def test_spread_and_percent(tmp_path):
    ends = {("adamw", s): 2.0 + 0.1 * s for s in (1, 2, 3)} | {("muon", s): 1.0 + 0.1 * s for s in (1, 2, 3)}
    muon = figures(sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: ends[c, s])).arms[1]
    assert muon.summary is not None
    found = (muon.summary.median, muon.summary.minimum, muon.summary.maximum)
    assert found == pytest.approx((1.2, 1.1, 1.3))
    assert muon.percent == pytest.approx(-100 / 2.2)


def test_runs_without_machine_model_data_or_times_have_a_report(tmp_path):
    """As imported or logged runs may be: nothing is known of them but losses by step."""
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4 + 0.01 * s, target=2.5)
    for path in folder.glob("runs/*/run.json"):
        known = json.loads(path.read_text())
        write_json(path, {"format": 1, "id": known["id"], "seed": known["seed"], "source": "import", "provenance": {}})
        run = RunFolder(path.parent)
        result = run.result()
        assert result is not None
        write_json(run.result_file, result | {"tokens": None, "seconds": None})
        rows = [{"step": row["step"], "val_loss": row["val_loss"]} for row in run.rows()]
        run.metrics_file.unlink()
        for row in rows:
            run.append_row(row)
    page, results = write_report(folder, parquet=True, curves=True)
    assert ("source", "imported logs") in facts(results)
    assert results.arms[0].seconds is None
    assert results.arms[0].targets[0].seconds is None
    assert "loss-by-seconds" not in names(results)
    assert "train-time" not in names(results)
    assert json.loads((page.parent / "results.json").read_text())["cost"] == {"steps": "1,800 in 6 runs"}


def test_cost_adds_up(tmp_path):
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4, speed=lambda c: 0.1 if c == "muon" else 0.2)
    found = dict(cost(figures(folder)))
    assert found["tokens"] == f"{6 * 307_200:,} in 6 runs"
    assert found["computation"] == f"{6e6 * 6 * 307_200:.3g} FLOP in 6 runs"
    assert "(adamw, seed" in found["longest run"]
    assert "(muon, seed" in found["shortest run"]


@pytest.mark.slow
def test_tables_of_runs_and_curves_are_tidy(tmp_path):
    import pyarrow.parquet

    status = {("muon lr=0.1", 1): "diverged", ("muon lr=0.2", 2): None}
    folder = sweep(tmp_path / "s", grid("muon", lr=[0.1, 0.2]), lambda c, s: status.get((c, s), 2.4), target=2.5, baseline=None)
    page, results = write_report(folder, svg=True, parquet=True, curves=True)
    with open(page.parent / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    by_run = {(row["cell"], row["seed"]): row for row in rows}
    assert by_run["muon lr=0.1", "1"]["status"] == "diverged"
    assert by_run["muon lr=0.1", "1"]["reached_2.5"] == "False"
    assert by_run["muon lr=0.2", "2"]["reached_2.5"] == "", "a run that is not there has not missed anything"
    assert by_run["muon lr=0.2", "1"]["optimizer.lr"] == "0.2"
    assert int(by_run["muon lr=0.2", "1"]["tokens_to_2.5"]) == 1024 * int(by_run["muon lr=0.2", "1"]["steps_to_2.5"])
    assert pyarrow.parquet.read_table(page.parent / "runs.parquet").to_pydict() == runs_table(results)
    points = pyarrow.parquet.read_table(page.parent / "curves.parquet")
    assert points.num_rows == sum(len(run.rows) for run in results.runs) == len(curves_table(results)["step"])
    assert (
        {path.stem for path in page.parent.glob("*.svg")} == {path.stem for path in page.parent.glob("*.png")} == {*names(results)}
    )
    write_report(folder)
    assert not list(page.parent.glob("*.svg")), "what an earlier report left would no longer fit"
    assert not list(page.parent.glob("*.parquet"))


def test_grids_over_values_of_mixed_kinds_have_tables(tmp_path):
    cells = grid("muon", betas=[[0.8, 0.9], "default", 1])
    page, _ = write_report(sweep(tmp_path / "s", cells, lambda c, s: 2.4 + 0.01 * s), parquet=True)
    with open(page.parent / "runs.csv") as file:
        assert {row["optimizer.betas"] for row in csv.DictReader(file)} == {"[0.8, 0.9]", "default", "1"}


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    results = figures(sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4 + 0.001 * s, points=900))
    rows = mean_curves(["adamw"], results.runs, "val_loss")
    assert len(rows) == MEAN_POINTS
    assert (rows[0]["step"], rows[-1]["step"]) == (10, 9000)
    last = [run.rows[-1]["val_loss"] for run in results.runs if run.cell == "adamw"]
    assert rows[-1]["mean"] == pytest.approx(statistics.fmean(last), rel=1e-5)
    assert len(run_curves(results.runs[:1], "val_loss")) == RUN_POINTS
    chart = curves(results, losses_of(results), "step")
    assert chart is not None
    assert f"Drawn from {MEAN_POINTS} points" in chart.caption


def test_seeds_that_log_at_other_steps_are_averaged_between_them(tmp_path):
    folder = sweep(tmp_path / "s", [MUON], lambda c, s: 2.4, seeds=2, points=20)
    for i, path in enumerate(sorted(folder.glob("runs/*"))):
        run = RunFolder(path)
        rows = [{"step": step + 5 * i, "val_loss": 10 - (step + 5 * i) / 100} for step in range(10, 210, 10)]
        run.metrics_file.unlink()
        for row in rows:
            run.append_row(row)
    for row in mean_curves(["muon"], figures(folder).runs, "val_loss"):
        assert row["mean"] == pytest.approx(10 - row["step"] / 100)


def test_a_mean_curve_does_not_jump_where_a_run_diverges(tmp_path):
    folder = sweep(tmp_path / "s", [MUON], lambda c, s: "diverged" if s == 3 else 2.4)
    rows = mean_curves(["muon"], figures(folder).runs, "val_loss")
    assert {row["seeds"] for row in rows} == {2}
    assert max(np.diff([row["mean"] for row in rows])) < 0.1
    chart = curves(figures(folder), losses_of(figures(folder)), "step")
    assert chart is not None
    assert "1 run lies wholly above the axis" in chart.caption


def test_what_is_no_number_becomes_null_in_json(tmp_path):
    page, _ = write_report(sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4, seeds=1))
    text = (page.parent / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["arms"][0]["summary"]["std"] is None


def test_a_loss_that_is_no_number_counts_for_nothing_and_is_told(tmp_path):
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4 + 0.01 * s)
    path = next(folder.glob("runs/run1-seed1/result.json"))
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != "crc"}
    write_json(path, content | {"val_loss": math.inf})
    results = figures(folder)
    assert results.arms[1].summary is not None
    assert results.arms[1].summary.n == 2
    assert results.arms[1].verdict is not None
    assert results.arms[1].verdict.word == "undecided"
    assert "1 finished runs have no finite val_loss" in " ".join(notes(results))


@pytest.mark.parametrize(
    ("cells", "ending", "expected"),
    [
        ([ADAMW, MUON], lambda c, s: "diverged", {"loss-by-step", "loss-by-seconds", "all-curves"}),
        ([ADAMW, MUON], lambda c, s: None, set()),
        ([MUON], lambda c, s: 2.4 + 0.01 * s, {"loss-by-step", "loss-by-seconds", "final-loss"}),
    ],
)
def test_charts_are_those_that_the_runs_allow(tmp_path, cells, ending, expected):
    assert {*names(figures(sweep(tmp_path / "s", cells, ending)))} == expected


def test_further_metrics_are_shown_and_not_judged(tmp_path):
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.4 + 0.01 * s, metrics=["seconds", "train_loss"])
    page, results = write_report(folder)
    assert [one.metric for one in results.arms[0].further] == ["seconds", "train_loss"]
    assert results.arms[1].further[1].summary is not None
    assert results.arms[1].further[1].summary.mean == pytest.approx(2.47)
    assert "Shown, not judged" in page.read_text()


def test_what_a_step_is_worth_is_learned_from_arms_that_differ_in_their_length_alone(tmp_path):
    """0.1 of loss for 100 steps, whatever the seeds do: the other arm's 0.02 cost 20 steps."""
    long, short, other = cell("long"), cell("short"), cell("other", lr=0.1)
    short["recipe"]["train"]["steps"] = 200
    ends = {"long": 2.4, "short": 2.5, "other": 2.42}
    read = load_sweep(sweep(tmp_path / "s", [long, short, other], lambda c, s: ends[c] + 0.05 * (-1) ** s + 0.001 * s))
    steps = {"long": 300, "short": 200, "other": 300}
    runs = [dataclasses.replace(run, result={**run.result, "steps": steps[run.cell]}) for run in read.runs]
    found = [note for note in notes(compute(Sweep(read.plan, runs))) if "100 more steps" in note]
    assert len(found) == 1
    assert "worth 0.1000 of loss here" in found[0]
    assert "from long, short)" in found[0]
    assert found[0].endswith("short +100.0, other +20.0.")
    same = compute(load_sweep(sweep(tmp_path / "t", [long, other], lambda c, s: ends[c] + 0.01 * s)))
    assert not any("100 more steps" in note for note in notes(same))


def test_slow_runs_that_miss_a_target_give_no_median_of_seconds(tmp_path):
    """Two of four runs reach it soon, and the others are followed for longer only because their machine was slow."""
    ends = {1: 2.3, 2: 2.5, 3: 2.5, 4: 2.5}
    folder = sweep(tmp_path / "s", [ADAMW, MUON], lambda c, s: 2.2 if c == "adamw" else ends[s], seeds=4, target=2.35)
    for path in folder.glob("runs/run1-seed[1]/metrics.jsonl"):  # the run that reached it took a hundred times as long
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        path.write_text("".join(line({k: v * 100 if k == "seconds" else v for k, v in r.items() if k != "crc"}) for r in rows))
    results = figures(folder)
    muon = results.arms[1]
    assert muon.targets[0].seconds is not None
    assert muon.targets[0].seconds.median is not None
    assert muon.steps_to_target is muon.seconds_to_target is muon.tokens_to_target is None
    times = next(one for one in tables(results) if one.title == "Time to target")
    assert times.rows[1][2:5] == ["not reached"] * 3


def test_an_answer_in_averages_says_where_factors_depend_on_one_another(tmp_path):
    cells = grid("muon", momentum=[0.9, 0.95], floor=[0.0, 0.1])
    both = sweep(
        tmp_path / "a", cells, lambda c, s: 2.5 - 0.1 * (c == cells[3]["name"]) + around(0, 0.01, c, s), baseline=None, seeds=5
    )
    assert "The effect of optimizer.momentum depends on optimizer.floor" in " ".join(answer(figures(both)))
    apart = sweep(tmp_path / "b", cells, lambda c, s: around(2.5, 0.01, c, s), baseline=None, seeds=5)
    assert "depends on" not in " ".join(answer(figures(apart)))


def test_the_caption_counts_the_coloured_arms(tmp_path):
    cells = [cell(f"arm {i}", lr=0.01 * i, name=f"n{i % 2}") for i in range(1, 13)]
    for baseline, told in ((None, "the best 7; the other 5"), ("arm 1", "the baseline and the best 6; the other 5")):
        folder = sweep(tmp_path / str(baseline), cells, lambda c, s: around(2.5, 0.01, c, s), baseline=baseline)
        results = figures(folder)
        chart = curves(results, losses_of(results), "step")
        assert chart is not None
        assert told in chart.caption


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.01, 0.02, 0.03], "linear"),
        ([0.001, 0.01, 0.1], "log"),
        ([0.0, 0.01, 0.1], "symlog"),
        ([-0.2, -0.01, 0.0, 0.01, 0.2], "symlog"),
        ([0.0, 1.0], "linear"),
    ],
)
def test_swept_numbers_of_many_sizes_stand_apart(values, kind):
    assert spacing(values)[0] == kind
