"""Presets: what they stand for, what beats what, and what a training step of a model needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import muonlab
from muonlab.errors import InputError
from muonlab.lab.plan.loading import load_experiment
from muonlab.models.gpt import GPTConfig
from muonlab.presets import matching, preset, presets
from muonlab.train.footprint import footprints
from muonlab.train.layers import laid
from muonlab.train.recipe import OptimizerConfig, Recipe, load_recipe
from muonlab.train.settings import validated

ROOT = Path(__file__).parents[2]

# optimizer, learning rate, steps
TRAININGS = {
    "fast": ("adamw", 5e-4, 50_000),
    "default": ("adamw", 3e-4, 100_000),
    "careful": ("adamw", 1e-4, 200_000),
    "muon_fast": ("muon", 4e-3, 30_000),
    "muon_default": ("muon", 3e-3, 60_000),
    "muon_careful": ("muon", 2e-3, 120_000),
}


def recipe(**settings):
    return Recipe.model_validate(settings)


def steps_of(found):
    train = found.train
    return [train.steps, train.eval_every, train.checkpoint_every, train.log_every, found.schedule.warmup_steps]


# -- what they stand for ------------------------------------------------------------------------------------------------


def test_the_trainings_are_these():
    assert set(presets("training")) == set(TRAININGS)
    for name, (optimizer, lr, steps) in TRAININGS.items():
        found = recipe(preset=name)
        settings = found.optimizer.canonical()
        betas = settings["betas"] if optimizer == "adamw" else settings["aux_betas"]
        assert (settings["name"], settings["lr"], settings["weight_decay"], betas) == (optimizer, lr, 0.1, [0.9, 0.95])
        assert steps_of(found) == [steps, 2000, 5000, 10, 2000]
        assert found.train.grad_clip == 1.0
        assert settings["aux_lr"] == TRAININGS[name.removeprefix("muon_")][1]


@pytest.mark.parametrize("training", TRAININGS)
def test_every_model_goes_with_every_training(training):
    for model in presets("model"):
        found = recipe(model={"preset": model}, preset=training)
        assert found.model.context > 0
        assert set(preset("training", training)) == {"optimizer", "schedule", "train"}


@pytest.mark.parametrize("name", [*matching("model", "gpt-*"), "ngpt-155m"])
def test_a_model_of_the_recipes_is_the_preset_of_its_name(name):
    assert load_recipe(ROOT / f"recipes/{name}.toml").model == recipe(model={"preset": name}).model


def test_a_run_by_presets_is_the_run_that_is_written_out():
    by_name = recipe(model={"preset": "gpt-1m"}, preset="muon_fast", scale_steps=0.001)
    written = recipe(
        model={"layers": 4, "width": 128, "head_width": 32, "context": 256},
        optimizer={"name": "muon", "lr": 4e-3, "weight_decay": 0.1, "aux_lr": 5e-4},
        schedule={"warmup_steps": 2},
        train={"steps": 30, "eval_every": 2, "checkpoint_every": 5, "log_every": 1, "grad_clip": 1.0},
    )
    assert by_name.canonical() == written.canonical()
    assert by_name.run_id(0) == written.run_id(0)
    text = json.dumps(by_name.canonical())
    assert "preset" not in text
    assert "scale_steps" not in text
    assert Recipe.model_validate(json.loads(text)).run_id(0) == by_name.run_id(0)


# -- what beats what ----------------------------------------------------------------------------------------------------


def test_what_stands_beside_a_preset_beats_it():
    found = recipe(
        preset="default", optimizer={"lr": 0.5}, train={"batch": 4}, model={"preset": "gpt-1m", "layers": 2, "window_pattern": "L"}
    )
    assert (found.optimizer.lr, found.optimizer.name, found.optimizer.weight_decay) == (0.5, "adamw", 0.1)
    assert (found.train.batch, found.train.steps) == (4, 100_000)
    assert (found.model.layers, found.model.width, found.model.window_pattern) == (2, 128, "L")


def test_a_preset_of_the_command_line_takes_the_place_of_what_a_file_says(workdir):
    """tiny.toml: NorMuon at 0.02, aux_lr 0.01, 12 steps on batches of 4, a GPT of its own."""
    found = load_recipe("tiny.toml", ["preset=default", "model.preset=gpt-1m", "train.eval_tokens=256"])
    assert found.optimizer == recipe(preset="default").optimizer
    assert (found.train.steps, found.train.batch) == (100_000, 4)
    assert found.model == recipe(model={"preset": "gpt-1m"}).model
    assert found.data == load_recipe("tiny.toml").data
    also = ["optimizer.lr=0.1", "train.steps=7", "model.layers=1", "train.eval_tokens=256"]
    found = load_recipe("tiny.toml", [*also, "preset=default", "model.preset=gpt-1m"])
    assert (found.optimizer.lr, found.train.steps, found.model.layers) == (0.1, 7, 1)


def test_presets_of_a_file_give_way_to_those_of_the_command_line(workdir):
    Path("by_name.toml").write_text('preset = "fast"\noptimizer.lr = 0.5\nmodel.preset = "gpt-124m"\n')
    assert load_recipe("by_name.toml").optimizer.lr == 0.5
    found = load_recipe("by_name.toml", ["preset=muon_fast", "model.preset=gpt-1m"])
    assert (found.optimizer.name, found.optimizer.lr) == ("muon", 4e-3)
    assert found.model.vocab_size is None


@pytest.mark.parametrize(
    ("factor", "counts"),
    [(0.001, [100, 2, 5, 1, 2]), (0.1, [10_000, 200, 500, 1, 200]), (1e-9, [1] * 5), (2, [200_000, 4000, 10_000, 20, 4000])],
)
def test_scale_steps_scales_every_count_and_leaves_at_least_one(factor, counts):
    assert steps_of(recipe(preset="default", scale_steps=factor)) == counts


def test_scale_steps_scales_counts_wherever_they_come_from(workdir):
    defaults = recipe()
    assert steps_of(recipe(scale_steps=0.5)) == [500, 50, 250, 5, 0]
    assert steps_of(defaults) == [1000, 100, 500, 10, 0]  # no warm-up stays none
    assert load_recipe("tiny.toml", ["scale_steps=0.5"]).train.steps == 6
    assert load_recipe("tiny.toml", ["scale_steps=0.5", "train.steps=100"]).train.steps == 50


def test_laid_changes_neither_layer():
    below, layer = {"optimizer": {"name": "lion"}, "train": {"batch": 2}}, {"preset": "fast", "model": {"preset": "gpt-1m"}}
    before = json.dumps([below, layer])
    assert laid(below, layer)["optimizer"]["name"] == "adamw"
    assert json.dumps([below, layer]) == before


# -- in experiments -----------------------------------------------------------------------------------------------------

EXPERIMENT = """
question = "Is 60 % of the steps enough?"
base = "tiny.toml"
seeds = [1]
set = { scale_steps = 0.001, model.preset = "gpt-1m", train.eval_tokens = 256 }

[arms]
adamw = { preset = "default" }
muon = { preset = "muon_default", optimizer.lr = 0.005 }
own = {}
"""


def test_arms_may_name_presets(workdir):
    """An arm's preset beats what the base says, what the arm says beside it beats the preset."""
    Path("exp.toml").write_text(EXPERIMENT)
    adamw, muon, own = (cell.recipe for cell in load_experiment("exp.toml").cells)
    assert (adamw.optimizer.name, adamw.optimizer.lr, adamw.train.steps) == ("adamw", 3e-4, 100)
    assert (muon.optimizer.name, muon.optimizer.lr, muon.train.steps) == ("muon", 0.005, 60)
    assert (own.optimizer.name, own.train.steps) == ("normuon", 1)
    assert {r.model.layers for r in (adamw, muon, own)} == {4}
    assert {r.train.batch for r in (adamw, muon, own)} == {4}


def test_set_beats_the_presets_of_arms(workdir):
    Path("exp.toml").write_text(EXPERIMENT)
    cells = load_experiment("exp.toml", ("train.steps=5000", "scale_steps=0.01")).cells
    assert [cell.recipe.train.steps for cell in cells] == [50, 50, 50]
    with pytest.raises(InputError, match="--set preset: arm 'adamw' sets this key itself"):
        load_experiment("exp.toml", ("preset=fast",))


def test_presets_may_be_swept(workdir):
    Path("exp.toml").write_text(
        'question = "Which?"\nbase = "tiny.toml"\nseeds = [1]\n'
        'arms.all = { train.steps = 9, grid.preset = ["fast", "muon_fast"] }\n'
    )
    cells = load_experiment("exp.toml").cells
    assert [(cell.name, cell.recipe.optimizer.name) for cell in cells] == [
        ("all preset=fast", "adamw"),
        ("all preset=muon_fast", "muon"),
    ]
    assert {cell.recipe.train.steps for cell in cells} == {9}


def test_a_search_may_start_from_presets(workdir):
    from muonlab.lab.run.search import load_search

    Path("search.toml").write_text(
        'question = "?"\nbase = "tiny.toml"\nseeds = [1]\ntrials = 2\nset.scale_steps = 0.001\n[arms]\n'
        'adamw = { preset = "default", space.optimizer.lr = { low = 1e-4, high = 1e-2 } }\n'
    )
    found = load_search("search.toml", ("train.eval_every=3000",)).cell("adamw", {"optimizer.lr": 0.002}).recipe
    assert (found.optimizer.name, found.optimizer.lr, found.train.steps, found.train.eval_every) == ("adamw", 0.002, 100, 3)


# -- bad input ----------------------------------------------------------------------------------------------------------


def test_unknown_presets_are_refused_with_all_other_problems(workdir):
    overrides = ["preset=muon_defualt", "model.preset=gpt-1n", "scale_steps=0", "optimizer.lrr=1"]
    with pytest.raises(InputError) as caught:
        load_recipe("tiny.toml", overrides)
    assert sorted(caught.value.problems) == [
        "tiny.toml: model.preset: unknown model preset 'gpt-1n'; did you mean 'gpt-1m'?",
        "tiny.toml: optimizer.lrr: unknown key for normuon; did you mean 'lr'?",
        "tiny.toml: preset: unknown training preset 'muon_defualt'; did you mean 'muon_default'?",
        "tiny.toml: scale_steps: expected greater than 0, got 0",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=3", "preset: expected a valid string, got 3"),
        ("presett=fast", "presett: unknown key; did you mean 'preset'?"),
        ("scale_steps=inf", "scale_steps: expected a finite number, got inf"),
        ("scale_steps=true", "scale_steps: expected a valid number, got True"),
        ("model.preset=fast", "model.preset: unknown model preset 'fast'"),
        ("model=3", "model: expected a table"),
    ],
)
def test_bad_values_get_one_clear_message(workdir, override, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        load_recipe("tiny.toml", [override])
    assert len(caught.value.problems) == 1


def test_a_bad_count_is_not_scaled_away(workdir):
    with pytest.raises(InputError, match=r"train\.steps: expected greater than 0, got 0"):
        load_recipe("tiny.toml", ["train.steps=0", "scale_steps=0.1"])


def test_an_arm_with_an_unknown_preset_is_refused(workdir):
    Path("exp.toml").write_text(EXPERIMENT.replace('"muon_default"', '"muon_defalt"'))
    with pytest.raises(
        InputError, match=r"arm 'muon': preset: unknown training preset 'muon_defalt'; did you mean 'muon_default'\?"
    ):
        load_experiment("exp.toml")


def test_the_schema_completes_presets():
    schema = Recipe.model_json_schema()
    assert schema["properties"]["preset"]["enum"] == list(presets("training"))
    assert schema["$defs"]["GPTConfig"]["properties"]["preset"]["enum"] == list(presets("model"))
    assert schema["properties"]["scale_steps"]["type"] == "number"


# -- memory -------------------------------------------------------------------------------------------------------------

CONFIG = GPTConfig(layers=2, width=64, head_width=32, context=64)
OPTIMIZERS = {name: OptimizerConfig(name=name) for name in ("adamw", "muon", "sgd")}


def test_weights_gradients_and_state_are_counted_exactly():
    model = CONFIG.build(257)
    weights = sum(4 * p.numel() for p in model.parameters())
    matrices = sum(4 * p.numel() for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2)
    steps = 4 * len(list(model.parameters()))  # AdamW's count of steps, for each parameter
    found = footprints(CONFIG, OPTIMIZERS, batch=1, vocab_size=257)
    assert {f.gradients for f in found.values()} == {weights}
    assert {f.weights for f in found.values()} == {weights + sum(b.numel() * b.element_size() for b in model.buffers())}
    assert found["adamw"].optimizer_state == 2 * weights + steps
    aux_steps = 4 * sum(not (name.startswith("blocks") and p.ndim == 2) for name, p in model.named_parameters())
    assert found["muon"].optimizer_state == matrices + 2 * (weights - matrices) + aux_steps
    assert found["adamw"].total == sum(vars(found["adamw"]).values())


@pytest.mark.slow
def test_activations_grow_with_tokens_and_not_with_the_square_of_the_context():
    def activations(context, batch, **settings):
        config = CONFIG.model_copy(update={"context": context})
        return footprints(config, {"sgd": OPTIMIZERS["sgd"]}, batch=batch, vocab_size=257, **settings)["sgd"].activations

    assert activations(512, 8) == pytest.approx(2 * activations(512, 4), rel=0.05)
    assert activations(4096, 1) == pytest.approx(activations(512, 8), rel=0.05)
    assert activations(512, 8, precision="bf16") < 0.9 * activations(512, 8)


@pytest.mark.slow
def test_an_estimate_takes_no_memory():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = GPTConfig(layers=2, width=4096, vocab_size=50304)
    (found,) = footprints(config, {"muon": OPTIMIZERS["muon"]}, batch=64, vocab_size=257).values()
    assert found.total > 50e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


def test_an_estimate_leaves_real_optimizers_alone():
    """The scratch memory that it makes has no content: a real step of the same shapes must not get it."""
    config = GPTConfig(layers=1, width=512, head_width=64, context=64)
    footprints(config, {"muon": OPTIMIZERS["muon"]}, batch=1, vocab_size=257)
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
    optimizer = muonlab.optimizer(model, "muon", lr=0.1, roles={"*.weight": "matrix"})
    model(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    assert all(type(p.data) is torch.Tensor and p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_estimate_is_what_a_run_takes(optimizer):
    """Within 15 % of the peak of resident memory, over what the process had before, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/training_memory.py"), "--one", "gpt", optimizer]
    environment = {**os.environ, "PYTHONPATH": str(Path(muonlab.__file__).parents[1]), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["estimated_mib"] > 200
    assert found["ratio"] == pytest.approx(1, abs=0.15)


def test_the_committed_measurements_are_within_the_bar():
    rows = json.loads((ROOT / "benchmarks/results/training_memory_cpu.json").read_text())["rows"]
    assert {name.split(",")[0].split()[0] for name in rows} == {"gpt", "ngpt", "mamba", "hybrid"}
    for name, row in rows.items():
        assert row["ratio"] == pytest.approx(1, abs=0.15), name


def test_presets_are_package_data():
    """What hatchling takes into a wheel are the package's files: no preset may lie outside."""
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert included == ["src/muonlab"]
    for kind in ("model", "training"):
        assert [*presets(kind)] == sorted(p.stem for p in (ROOT / "src/muonlab/presets" / kind).glob("*.toml"))


def test_keys_of_another_family_are_named_as_such():
    with pytest.raises(InputError, match=r"model.pattern: a key of the family hybrid, .* set model.family"):
        validated(Recipe, {"model": {"pattern": "MM*"}}, "r.toml")


def test_absurd_factors_are_refused():
    with pytest.raises(InputError, match="scale_steps: expected less than or equal to 1000"):
        validated(Recipe, {"scale_steps": 1e300}, "r.toml")


def test_a_flag_and_a_key_for_the_same_thing_are_refused(muonlab):
    code, _, err = muonlab("plan", "--model", "gpt-1m", "--set", "model.preset=mamba-small")
    assert code == 2
    assert "--set model.preset: it is given by a flag, too" in err


def test_the_schema_takes_a_preset_and_keys_of_its_family_beside_it():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate({"model": {"preset": "mamba-small", "ssm_state": 16}}, Recipe.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": {"preset": "nope"}}, Recipe.model_json_schema())
