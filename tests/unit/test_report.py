"""Experiments, results and reports, on run folders written by hand: known losses in, known answers out."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.judge.results import compute
from muonlab.lab.judge.standings import standings
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.runs.store import load_sweep, write_plan
from muonlab.lab.show.report import answer, notes, write_report
from muonlab.train.run_folder import RunFolder, write_json

HEAD = 'question = "Which is better?"\nbase = "tiny.toml"\nseeds = [1, 2, 3]\n'
ARMS = '[arms.adamw]\noptimizer.name = "adamw"\n[arms.muon]\noptimizer.name = "muon"\n'
GRID = '[arms.muon]\noptimizer.name = "muon"\ngrid.optimizer.lr = [0.01, 0.02, 0.04]\n'
MACHINE = {"device": "cpu", "threads": 1, "bf16_fast": False}
PROVENANCE = {
    "started": "2026-01-02T03:04:05+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"muonlab": "0"},
    "cpu": "a processor",
    "gpu": None,
    "cores": 2,
}


def experiment(text, name="exp.toml"):
    with open(name, "w") as file:
        file.write(text)
    return load_experiment(name)


def planned(text, losses, folder="sweep"):
    """A sweep's folder in which each (cell, seed) of `losses` has finished with these three evaluations (None: diverged)."""
    found = experiment(text)
    write_plan(Path(folder), plan_of(found, MACHINE))
    for run in load_sweep(folder).plan["runs"]:
        values = losses.get((run["cell"], run["seed"]))
        if values is None:
            continue
        target = RunFolder(Path(folder) / "runs" / run["folder"])
        target.path.mkdir(parents=True)
        machine = {"device": "cpu", "precision": "float32", "threads": 1, "bf16_fast": False}
        write_json(
            target.run_file,
            {
                "id": run["id"],
                "recipe": {},
                "seed": run["seed"],
                "provenance": PROVENANCE,
                "machine": machine,
                "data": {"source": "text", "sha256": "ab" * 32, "split": "tail"},
                "model": {"parameters": 1000, "flops_per_token": 6e6},
            },
        )
        for step, loss in zip((4, 8, 12), values, strict=True):
            target.append_row({"step": step, "tokens": step, "seconds": step * 0.5, "val_loss": loss})
        diverged = values[-1] is None
        ended = {
            "id": run["id"],
            "status": "diverged" if diverged else "finished",
            "val_loss": values[-1],
            "best_val_loss": values[0],
            "rows": 3,
        }
        if not diverged:
            ended["best_val_loss"] = min(values)
        write_json(target.result_file, {**ended, "steps": 12, "tokens": 1536, "seconds": 6.0, "weights_sha256": "0"})
    return folder


def clear_case():
    """muon ends at 2.0, adamw at 2.5, seeds 0.01 apart; only muon reaches 2.2."""
    losses = {}
    for seed in (1, 2, 3):
        losses["adamw", seed] = (3.0, 2.7, 2.5 + 0.01 * seed)
        losses["muon", seed] = (2.8, 2.15 if seed < 3 else 2.3, 2.0 + 0.01 * seed)
    return losses


def test_the_answer_is_computed_from_the_runs(workdir):
    results = compute(load_sweep(planned(HEAD + "target = 2.2\n" + ARMS, clear_case())))
    assert results.plan["baseline"] == "adamw"
    adamw, muon = results.arms
    assert muon.verdict.word == "better"
    assert muon.comparison.difference == pytest.approx(-0.5)
    assert (muon.steps_to_target, muon.seconds_to_target, muon.reached) == (8, 4.0, 3)
    assert (adamw.steps_to_target, adamw.reached) == (None, 0)
    assert answer(results)[0].startswith("muon is better than adamw: difference -0.5000")
    assert "Target 2.2 was reached by none of the runs of adamw (lowest loss 2.5100)" in " ".join(notes(results))


def test_the_opposite_runs_give_the_opposite_answer(workdir):
    swapped = {({"muon": "adamw", "adamw": "muon"}[cell], seed): v for (cell, seed), v in clear_case().items()}
    assert compute(load_sweep(planned(HEAD + ARMS, swapped))).arms[1].verdict.word == "worse"


def test_half_a_sweep_has_a_report_and_no_verdict(workdir):
    losses = {key: value for key, value in clear_case().items() if key != ("muon", 3)}
    results = compute(load_sweep(planned(HEAD + ARMS, losses)))
    assert results.arms[1].verdict.word == "undecided"
    assert "so far better" in results.arms[1].verdict.reason
    page, results = write_report("sweep")
    assert page.exists()
    assert "1 missing" in results.audit[0]


def test_an_empty_sweep_has_a_report(workdir):
    page, _ = write_report(planned(HEAD + ARMS, {}))
    assert "no finished run yet" in page.read_text()


def test_a_diverged_run_is_counted_and_never_called_better(workdir):
    losses = clear_case() | {("muon", 2): (2.8, 2.1, None)}
    _, results = write_report(planned(HEAD + ARMS, losses))
    muon = results.arms[1]
    assert (muon.finished, muon.diverged, muon.verdict.word) == (2, 1, "undecided")
    assert muon.verdict.reason == "1 of the 3 runs of muon diverged"
    assert "1 diverged" in results.audit[0]


def test_a_grid_names_the_best_value_and_says_when_it_is_on_the_edge(workdir):
    losses = {
        (f"muon lr={lr}", seed): (3.0, 2.5, 2.0 + abs(lr - 0.04) + 0.001 * seed) for lr in (0.01, 0.02, 0.04) for seed in (1, 2, 3)
    }
    results = compute(load_sweep(planned(HEAD + GRID, losses)))
    assert results.best()[0].swept == {"optimizer.lr": 0.04}
    assert answer(results) == ["muon: best optimizer.lr = 0.04 (mean 2.0020, 3 seeds)"]
    assert "on the edge of what was tried" in " ".join(notes(results))


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_report_is_whole_and_needs_no_network(workdir):
    page = write_report(planned(HEAD + "target = 2.2\nmargin = 0.01\n" + ARMS, clear_case()), "out")[0]
    html = page.read_text()
    assert "muon is better than adamw" in html
    assert html.count('class="chart"') == 6
    page_alone = re.sub(r"<script>.*?</script>", "<script></script>", html, flags=re.DOTALL)  # the libraries hold markup too
    outside = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", page_alone)
    assert outside == []
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    markdown = (workdir / "out" / "report.md").read_text()
    pictures = re.findall(r"\]\(([\w-]+\.png)\)", markdown)
    assert len(pictures) == 6
    for name in pictures:
        width, height = png_size(workdir / "out" / name)
        assert width > 700
        assert height > 200
    assert "| muon | 3/3 | 2.0200 ± 0.0248 | 0.0100 | 8 | 4.0 | 6.0 | -0.5000 (-19.84 %) | better |" in markdown
    assert "0123456789ab" in markdown
    figures = json.loads((workdir / "out" / "results.json").read_text())
    assert figures["arms"][1]["verdict"]["word"] == "better"
    assert len(figures["runs"]) == 6


def test_text_of_the_user_is_escaped(workdir):
    head = HEAD.replace("Which is better?", "<script>alert(1)</script> & more?")
    html = write_report(planned(head + ARMS, clear_case()))[0].read_text()
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more?" in html


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("[1, 2, 3]", "0") + ARMS, "seeds: expected at least one seed"),
        (HEAD.replace("[1, 2, 3]", "[1, 1]") + ARMS, "seeds: expected different ones"),
        (HEAD.replace("[1, 2, 3]", "[-1]") + ARMS, "seeds.0: expected greater than or equal to 0"),
        (HEAD + 'baseline = "adam"\n' + ARMS, "there is no arm 'adam'; did you mean 'adamw'?"),
        (HEAD + 'basline = "adamw"\n' + ARMS, "basline: unknown key; did you mean 'baseline'?"),
        (HEAD, "arms: missing"),
        (HEAD.replace("tiny.toml", "tny.toml") + ARMS, "no such file; did you mean 'tiny.toml'?"),
        (HEAD + ARMS.replace('"muon"', '"moun"'), "arm 'muon': optimizer.name: unknown optimizer 'moun'; did you mean 'muon'?"),
        (HEAD + GRID.replace("[0.01, 0.02, 0.04]", "0.01"), "expected a list of values, got 0.01"),
        (HEAD + GRID.replace("[0.01, 0.02, 0.04]", "[0.01, 0.01]"), "there are two arms 'muon lr=0.01'"),
        (HEAD.replace("[1, 2, 3]", "-1") + ARMS, "seeds: expected at least one"),
        (HEAD + ARMS + "optimizer.lr = 0.1\ngrid.optimizer.lr = [0.01]\n", "arm 'muon' both sets and sweeps optimizer.lr"),
        (HEAD + '[arms."a b"]\n[arms."a-b"]\n', "names too alike"),
        (HEAD + '[arms."a\\n"]\n', "printable characters"),
        (HEAD + "[arms]", "arms: expected at least one, got none"),
        (HEAD + GRID.replace("[0.01,", "[-0.01,"), "optimizer.lr"),
        (HEAD + "margin = -1\n" + ARMS, "margin: expected greater than 0"),
        (HEAD + 'tuned_by = "other.toml"\n' + ARMS, r"seeds \[2, 3\] tuned these settings"),
    ],
)
def test_bad_experiments_get_one_clear_message(workdir, text, message):
    (workdir / "other.toml").write_text(HEAD.replace("[1, 2, 3]", "[2, 3, 4]") + ARMS)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        experiment(text)


def test_a_folder_of_another_experiment_or_of_none_is_refused(workdir):
    folder = planned(HEAD + ARMS, {})
    with pytest.raises(InputError, match="holds the experiment 'exp'"):
        write_plan(workdir / folder, plan_of(experiment(HEAD + ARMS, "new.toml"), MACHINE))
    with pytest.raises(InputError, match="expected the folder of a sweep"):
        load_sweep(workdir)


def test_a_number_of_seeds_counts_from_zero(workdir):
    assert experiment(HEAD.replace("[1, 2, 3]", "4") + ARMS).config.seeds == (0, 1, 2, 3)


def test_what_was_changed_after_a_sweep_is_told(workdir):
    folder = planned(HEAD + "margin = 0.01\n" + ARMS, clear_case())
    write_plan(workdir / folder, plan_of(experiment(HEAD + "margin = 0.9\n" + ARMS), MACHINE))
    results = compute(load_sweep(folder))
    assert results.arms[1].verdict.word == "equivalent"
    assert "margin from 0.01 to 0.9" in notes(results)[0]


def test_equal_recipes_and_unequal_lengths_are_pointed_out(workdir):
    text = HEAD + ARMS.replace('"muon"', '"adamw"')
    _, results = write_report(planned(text, {}))
    assert any("adamw" in sentence and "muon" in sentence for sentence in results.audit), results.audit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x/y|z <b>", "ä ö", "a*b_c`d"])
def test_odd_names_of_arms_break_nothing(workdir, name):
    text = HEAD + ARMS.replace("[arms.muon]", f'[arms."{name}"]')
    losses = {(name if cell == "muon" else cell, seed): values for (cell, seed), values in clear_case().items()}
    page, results = write_report(planned(text, losses))
    assert results.arms[1].finished == 3
    markdown = (page.parent / "report.md").read_text()
    rows = [line for line in markdown.split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "each row has as many cells as the header"
    assert f"<td>{name}</td>" not in page.read_text() or "<" not in name


def test_a_diverged_arm_that_never_evaluated_has_a_report(workdir):
    losses = {**clear_case(), **{("muon", seed): (None, None, None) for seed in (1, 2, 3)}}
    page, results = write_report(planned(HEAD + "target = 2.2\n" + ARMS, losses))
    assert "lowest loss –" in page.read_text()
    assert results.arms[1].verdict.reason == "all of the 3 runs of muon diverged"


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [
        "optimizer.nesterov = [true, false]",
        'optimizer.name = ["muon", "adamw"]',
        "optimizer.aux_betas = [[0.8, 0.9], [0.9, 0.95]]",
        "optimizer.lr = [0.01, 0.02]\ngrid.optimizer.momentum = [0.9, 0.95]",
    ],
)
def test_grids_of_any_kind_have_a_report(workdir, grid):
    text = HEAD + f'[arms.plain]\noptimizer.name = "adamw"\n[arms.muon]\ngrid.{grid}\n'
    cells = [cell.name for cell in experiment(text).cells]
    losses = {(cell, seed): (3.0, 2.5, 2.0 + 0.1 * i + 0.01 * seed) for i, cell in enumerate(cells) for seed in (1, 2, 3)}
    page, results = write_report(planned(text, losses))
    assert {best.arm for best in results.best()} == {"plain", "muon"}
    assert "plain: best its one setting" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", "{}"),
        ("result.json", "[]"),
        ("result.json", '{"status": "finished"}'),
        ("run.json", "{}"),
        ("run.json", "null"),
        ("metrics.jsonl", "[]\n"),
        ("metrics.jsonl", None),
    ],
)
def test_a_damaged_run_is_called_damaged_and_counts_for_nothing(workdir, file, content):
    """Above all, a finished run without its metrics is not a run that missed the target."""
    folder = workdir / planned(HEAD + "target = 2.2\n" + ARMS, clear_case())
    path = next(folder.glob("runs/muon-seed1-*")) / file
    path.unlink() if content is None else path.write_text(content)
    results = compute(load_sweep(folder))
    assert [run.status for run in results.runs if run.cell == "muon"] == ["damaged", "finished", "finished"]
    assert results.arms[1].verdict.word == "undecided"
    assert write_report(folder)[0].exists()


def test_another_runs_result_is_not_taken(workdir):
    folder = workdir / planned(HEAD + ARMS, clear_case())
    other = next(folder.glob("runs/adamw-seed1-*")) / "result.json"
    (next(folder.glob("runs/muon-seed1-*")) / "result.json").write_text(other.read_text())
    assert load_sweep(folder).of("muon")[0].status == "damaged"


def test_overrides_of_what_an_arm_sets_are_refused(workdir):
    (workdir / "exp.toml").write_text(HEAD + "set.train.steps = 8\n" + ARMS)
    assert load_experiment("exp.toml", ("train.steps=3",)).cells[0].recipe.train.steps == 3
    with pytest.raises(InputError, match=r"--set optimizer\.name: arm 'adamw' sets this key itself"):
        load_experiment("exp.toml", ("optimizer.name=muon",))


@pytest.mark.parametrize("override", ["optimizer={lr=0.5}", "optimizer.lr=0.5", "optimizer.aux_lr.head=0.5"])
def test_overrides_above_and_below_what_an_arm_sets_are_refused(workdir, override):
    (workdir / "exp.toml").write_text(HEAD + "[arms.muon]\noptimizer.lr = 0.01\noptimizer.aux_lr = 0.01\n")
    with pytest.raises(InputError, match="sets this key itself"):
        load_experiment("exp.toml", (override,))


def test_a_shared_grid_is_crossed_with_an_arms_own(workdir):
    text = HEAD + "[grid]\noptimizer.weight_decay = [0.0, 0.1]\n[arms.m]\ngrid.optimizer.lr = [0.01, 0.02]\n"
    assert len(experiment(text).cells) == 4


def test_an_arm_that_was_tuned_after_a_sweep_is_told(workdir):
    folder = planned(HEAD + ARMS, clear_case())
    write_plan(workdir / folder, plan_of(experiment(HEAD + ARMS + "optimizer.lr = 0.03\n"), MACHINE))
    assert "muon: optimizer.lr from 0.02 to 0.03" in notes(compute(load_sweep(folder)))[0]


def raced(losses, folder="race", race=True):
    """A folder as `planned` makes it, of a race with up to eight seeds."""
    text = HEAD.replace("[1, 2, 3]", "8") + ARMS
    planned(text, {key: (3.0, 3.0, loss) for key, loss in losses.items()}, folder)
    again = plan_of(experiment(text), MACHINE) | ({"race": True} if race else {})
    write_plan(Path(folder), again)
    return folder


def close_case():
    """muon is lower by 0.01 with every seed, the seeds are 0.1 apart: only pairs tell."""
    own = [0.0, 0.0003, -0.0002, 0.0001, -0.0004, 0.0002, 0.0001, -0.0001]
    return {(arm, i): 2 + 0.1 * i - (0.01 + own[i]) * (arm == "muon") for i in range(8) for arm in ("adamw", "muon")}


def test_the_report_of_a_race_says_what_the_race_said(workdir):
    """Not what a test for a fixed number of runs makes of runs that stopped when they were clear."""
    sweep = load_sweep(raced({key: loss for key, loss in close_case().items() if key[1] < 6}))
    results = compute(sweep)
    muon = results.arms[1]
    assert muon.verdict == standings(sweep)["muon"].verdict
    assert muon.verdict.word == "better"
    assert muon.comparison.low <= muon.comparison.difference <= muon.comparison.high < 0
    assert "confidence sequence" in answer(results)[0]
    assert any(note.startswith("A race: ") for note in notes(results))
    assert not any("not over" in note for note in notes(results))


def test_the_difference_is_of_the_seeds_that_an_arm_ran_although_the_baseline_ran_on(workdir):
    losses = {key: loss for key, loss in close_case().items() if key[0] == "adamw" or key[1] < 4}
    assert compute(load_sweep(raced(losses))).arms[1].comparison.difference == pytest.approx(-0.01, abs=1e-4)


@pytest.mark.slow
def test_a_broken_off_race_is_said_to_be_open_and_its_figures_are_json(workdir):
    page, results = write_report(raced({key: loss for key, loss in close_case().items() if key[1] < 1}))
    assert any("not over: muon still open" in note for note in notes(results))
    found = json.loads((page.parent / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["arms"][1]["comparison"]["low"] is None


def test_a_race_that_is_swept_afterwards_and_the_reverse_are_told_apart(workdir):
    text = HEAD.replace("[1, 2, 3]", "8") + ARMS
    folder = Path(raced(close_case()))
    write_plan(folder, plan_of(experiment(text), MACHINE))
    found = notes(compute(load_sweep(folder)))
    assert any("A sweep until" in note for note in found)
    assert any("A race until" in note for note in found)
    assert not any(note.startswith("A race: ") for note in found)
