"""Experiment files: grids crossed and zipped, metrics, targets, budgets, and which seeds may be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.plan.experiment import plan_of
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.runs.store import run_folder_name

HEAD = 'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\n'
ARM = '[arms.muon]\noptimizer.name = "muon"\n'
MACHINE = {"device": "cpu", "threads": 1, "bf16_fast": False}


@pytest.fixture
def load(workdir):
    def written(text, name="exp.toml"):
        (workdir / name).write_text(text)
        return load_experiment(name)

    return written


def test_zipped_keys_advance_together_and_crossed_ones_do_not(load):
    cells = load(
        HEAD
        + ARM
        + "zip.optimizer.lr = [0.01, 0.02]\nzip.optimizer.weight_decay = [0.1, 0.05]\ngrid.optimizer.momentum = [0.9, 0.95]\n"
    ).cells
    settings = [(c.recipe.optimizer.lr, c.recipe.optimizer.weight_decay, c.recipe.optimizer.model_extra["momentum"]) for c in cells]
    assert settings == [(0.01, 0.1, 0.9), (0.02, 0.05, 0.9), (0.01, 0.1, 0.95), (0.02, 0.05, 0.95)]
    assert cells[1].name == "muon momentum=0.9 lr=0.02 weight_decay=0.05"


def test_a_shared_zip_advances_with_an_arms_own(load):
    text = HEAD + "[zip]\noptimizer.lr = [0.01, 0.02]\n" + ARM + "zip.train.steps = [10, 5]\n"
    assert [(c.recipe.optimizer.lr, c.recipe.train.steps) for c in load(text).cells] == [(0.01, 10), (0.02, 5)]


def test_a_grid_over_a_pattern_with_dots(load):
    cells = load(HEAD + ARM + 'grid.optimizer.lr_mul."*.mlp.up.weight" = [1, 2]\n').cells
    assert [cell.recipe.optimizer.lr_mul for cell in cells] == [{"*.mlp.up.weight": 1.0}, {"*.mlp.up.weight": 2.0}]
    assert cells[1].name == "muon *.mlp.up.weight=2"


def test_keys_that_end_alike_are_named_in_full(load):
    cells = load(HEAD + ARM + "grid.optimizer.aux_lr.head = [0.01]\ngrid.optimizer.lr_mul.head = [1.0]\n").cells
    assert cells[0].name == "muon optimizer.aux_lr.head=0.01 optimizer.lr_mul.head=1.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "zip.optimizer.lr = [0.01, 0.02]\nzip.train.steps = [5]\n",
            r"arms.muon.zip: optimizer.lr has 2 values and train.steps has 1: they advance together",
        ),
        ("zip = 3\n", r"arms.muon.zip: expected a table of key = \[values\], got 3"),
        ("zip.optimizer.lr = []\n", r"arms.muon.zip: optimizer.lr: expected a list of values, got \[\]"),
        ("zip.optimizer.lr = [0.1]\ngrid.optimizer.lr = [0.1]\n", "optimizer.lr stands in both grid and zip"),
        ("optimizer.lr = 0.1\nzip.optimizer.lr = [0.1]\n", "arm 'muon' both sets and sweeps optimizer.lr"),
        ("zip.optimizer.lrr = [0.1]\n", "optimizer.lrr: unknown key for muon; did you mean 'lr'"),
    ],
)
def test_bad_grids_get_one_clear_message(load, text, message):
    with pytest.raises(InputError, match=message):
        load(HEAD + ARM + text)


def test_metrics_targets_and_budget_stand_in_the_plan(load):
    plan = plan_of(
        load(HEAD + 'metrics = ["seconds"]\ntarget = 2.0\ntargets = [2.2, 2.0]\nbudget = { tokens = 1536 }\n' + ARM), MACHINE
    )
    assert (plan["metric"], plan["metrics"]) == ("val_loss", ["seconds"])
    assert (plan["target"], plan["targets"]) == (2.0, [2.0, 2.2])
    assert plan["budget"] == {"tokens": 1536}
    plain = plan_of(load(HEAD + ARM), MACHINE)
    assert (plain["metrics"], plain["target"], plain["targets"], plain["budget"]) == ([], None, [], None)
    assert plan_of(load(HEAD + "targets = [2.2]\n" + ARM), MACHINE)["target"] == 2.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget = { steps = 5, seconds = 1 }\n", "budget: expected one of steps, tokens and seconds"),
        ("budget = { step = 5 }\n", "budget.step: unknown key; did you mean 'steps'"),
        ('metric = "loss"\n', "metric: expected 'val_loss', 'best_val_loss', 'train_loss' or 'seconds', got 'loss'"),
    ],
)
def test_bad_settings_get_one_clear_message(load, text, message):
    with pytest.raises(InputError, match=message):
        load(HEAD + text + ARM)


def test_seeds_of_what_tuned_the_tuning_are_refused_too(load):
    load(HEAD.replace("[1, 2]", "[7]") + ARM, "first.toml")
    load(HEAD.replace("[1, 2]", "[8]") + 'tuned_by = "first.toml"\n' + ARM, "second.toml")
    load(HEAD.replace("[1, 2]", "[9]") + ARM, "third.toml")
    with pytest.raises(InputError) as caught:
        load(HEAD.replace("[1, 2]", "[1, 7, 8, 9]") + 'tuned_by = ["second.toml", "third.toml"]\n' + ARM)
    assert [
        line.split(": ", 1)[1].split(" tuned")[0] + line[line.index("(") : line.index(")") + 1] for line in caught.value.problems
    ] == ["seeds [7](first.toml)", "seeds [8](second.toml)", "seeds [9](third.toml)"]


def test_a_number_of_seeds_takes_those_that_are_free(load):
    load(HEAD.replace("[1, 2]", "[0, 2]") + ARM, "first.toml")
    assert load(HEAD.replace("[1, 2]", "3") + 'tuned_by = "first.toml"\n' + ARM).config.seeds == (1, 3, 4)


def test_experiments_that_tune_each_other_end(load):
    """A circle is the user's affair; reading it must end."""
    text = HEAD.replace("[1, 2]", "[5]") + ARM
    with open("a.toml", "w") as file:
        file.write('tuned_by = "b.toml"\n' + text)
    with open("b.toml", "w") as file:
        file.write('tuned_by = "a.toml"\n' + text.replace("[5]", "[6]"))
    assert load_experiment("a.toml").config.seeds == (5,)
    for name in ("a.toml", "b.toml"):  # numbers of seeds, which depend on those of the other
        text = Path(name).read_text()
        Path(name).write_text(text.replace("seeds = [5]", "seeds = 2").replace("seeds = [6]", "seeds = 2"))
    assert load_experiment("a.toml").config.seeds == (2, 3)


def test_seeds_of_a_profile_of_what_tuned_are_refused_too(load):
    load(HEAD.replace("[1, 2]", "[5]") + ARM + "[profiles.gpu]\nseeds = [7]\n", "first.toml")
    with pytest.raises(InputError, match=r"seeds \[7\] tuned"):
        load(HEAD.replace("[1, 2]", "[1, 7]") + 'tuned_by = "first.toml"\n' + ARM)


def test_a_long_name_still_fits_a_file_name():
    names = [run_folder_name("muon " + "x" * 400 + end, 1, "0" * 12) for end in ("a", "b")]
    assert len({*names}) == 2
    assert all(len(name) < 200 for name in names)


def test_a_profile_is_laid_over_the_file(workdir):
    Path("e.toml").write_text(
        'question = "?"\nbase = "tiny.toml"\nseeds = 2\ntarget = 5.0\n[arms]\na = {}\nb = { optimizer.lr = 0.1 }\n'
        "[profiles.long]\nseeds = 3\nset.train.steps = 77\narms.b.train.batch = 16\n"
    )
    plain, long = load_experiment("e.toml"), load_experiment("e.toml", profile="long")
    assert (plain.name, long.name) == ("e", "e-long")
    assert len(long.config.seeds) == 3
    assert [cell.recipe.train.steps for cell in long.cells] == [77, 77]
    assert long.cells[1].recipe.train.batch == 16
    assert long.cells[1].recipe.optimizer.lr == 0.1
    assert long.config.target == 5.0
    assert "profiles" not in plan_of(long, {})
    with pytest.raises(InputError, match="there is no profile 'lon'; did you mean 'long'"):
        load_experiment("e.toml", profile="lon")
