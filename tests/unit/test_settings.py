"""Recipes: what is read, what is refused and in which words, what a run's identity follows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.train.recipe import Recipe, load_recipe
from muonlab.train.schedule import ScheduleConfig
from muonlab.train.settings import flat, nested, with_overrides


def recipe(**tables):
    return Recipe.model_validate({"model": {"context": 64}, **tables})


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["optimizer.lrr=1"], ["optimizer.lrr: unknown key for normuon; did you mean 'lr'?"]),
        (["model.widht=64"], ["model.widht: unknown key; did you mean 'width'?"]),
        (["trian.steps=3"], ["trian: unknown key; did you mean 'train'?"]),
        (["optimizer.lr=-0.1"], ["optimizer.lr: expected greater than 0, got -0.1"]),
        (["optimizer.lr=nan"], ["optimizer.lr: expected a finite number, got nan"]),
        (["optimizer.name=adam"], ["optimizer.name: unknown optimizer 'adam'; did you mean 'adamw'?"]),
        (["optimizer.orthogonalizer=keler5"], ["did you mean 'keller5'?"]),
        (["optimizer.nesterov=3"], ["optimizer.nesterov: expected bool such as True, got 3"]),
        (["optimizer.scale=spectral"], ["rms_to_rms", "sqrt_max"]),
        (["train.batch=3", "train.accumulate=2"], ["batch 3 is not a multiple of accumulate 2"]),
        (["train.steps=0"], ["train.steps: expected greater than 0, got 0"]),
        (["train.steps=many"], ["train.steps: expected a valid integer", "'many'"]),
        (["data.source=bin"], ["model.vocab_size: missing"]),
        (["data.files=[]"], ["expected files for source 'text'"]),
        (["train.eval_tokens=5"], ["expected at least model.context, 32"]),
        (["schedule.shape=round"], ["schedule.shape", "'linear' or 'cosine'"]),
        (["optimizer.lr"], ["expected key=value"]),
        (["optimizer.aux_lr.foo=3"], ["optimizer.aux_lr: unknown role 'foo'"]),
        (["optimizer.aux_lr=-1"], ["optimizer.aux_lr: expected a number above 0 (or one for each role), got -1"]),
        (["optimizer.aux_betas=[0.9, 2.0]"], ["aux_betas"]),
        (["optimizer.betas=[0.9, nan]", "optimizer.name=adamw"], ["betas"]),
        (["model.logit_cap=inf"], ["model.logit_cap: expected a finite number"]),
        (["train=3"], ["train: expected a table"]),
        (['data.files=["a\\u0000b"]'], ["--set 'data.files': expected text without NUL characters"]),
        (["scale_steps=0.5", f"train.steps={-(10**400)}"], ["train.steps: expected greater than 0"]),
    ],
)
def test_bad_settings_get_one_clear_message(workdir, overrides, messages):
    with pytest.raises(InputError) as caught:
        load_recipe("tiny.toml", overrides)
    for message in messages:
        assert message in str(caught.value)


def test_a_count_that_no_float_holds_is_left_to_the_recipe(workdir):
    huge = 10**400
    assert load_recipe("tiny.toml", ["scale_steps=0.5", f"train.steps={huge}"]).train.steps == huge


def test_all_problems_come_at_once(workdir):
    with pytest.raises(InputError) as caught:
        load_recipe("tiny.toml", ["optimizer.lr=-1", "train.steps=0", "model.widht=1"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tiny.tml", None, "no such file; did you mean 'tiny.toml'?"),
        ("bad.toml", b"a = ", "bad.toml: not TOML"),
        ("bad.toml", b"\xff\xfe", "expected a TOML file in UTF-8"),
        ("bad.toml", b'[data]\nfiles = ["a", "b\\u0000"]', "bad.toml: 'data.files': expected text without NUL characters"),
        ("bad.toml", b'"a\\u0000b" = 1', "expected text without NUL characters"),
    ],
)
def test_bad_files_get_one_clear_message(workdir, name, content, message):
    if content is not None:
        (workdir / name).write_bytes(content)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load_recipe(name)


def test_overrides_are_toml_or_text():
    changed = with_overrides({"a": {"x": 1, "y": 2}}, ["a.x=0.5", "a.z=[1, 2]", "b.name=muon", "b.on=true"])
    assert changed == {"a": {"x": 0.5, "y": 2, "z": [1, 2]}, "b": {"name": "muon", "on": True}}
    assert nested(flat(changed)) == changed


def test_identity_follows_meaning_not_spelling(workdir):
    (workdir / "same.toml").write_text((workdir / "tiny.toml").read_text() + "\n[schedule]\ncooldown = 0.7\n")
    assert load_recipe("tiny.toml").run_id(0) == load_recipe("same.toml").run_id(0)
    assert load_recipe("tiny.toml").run_id(0) != load_recipe("tiny.toml").run_id(1)
    assert load_recipe("tiny.toml").run_id(0) != load_recipe("tiny.toml", ["optimizer.beta2=0.9"]).run_id(0)


def test_identity_follows_the_options_of_the_optimizer(workdir):
    """Spelled out or left to the default, by alias or by name: one recipe. Another default would be another."""
    same = ["optimizer.momentum=0.95", "optimizer.scale=original", "optimizer.axis=long", "optimizer.aux_betas=[0.9, 0.95]"]
    assert load_recipe("tiny.toml", same).run_id(0) == load_recipe("tiny.toml").run_id(0)
    assert load_recipe("tiny.toml").canonical()["optimizer"]["orthogonalizer"] == "fast"


def test_identity_follows_the_order_of_patterns():
    """The last pattern that matches wins, so the order is part of what is computed."""
    one, other = (
        recipe(optimizer={"lr_mul": dict(pairs)}) for pairs in ([("*", 3.0), ("*.up.*", 1.0)], [("*.up.*", 1.0), ("*", 3.0)])
    )
    assert one.run_id(0) != other.run_id(0)


def test_a_canonical_recipe_reads_back_as_itself():
    one = recipe(optimizer={"name": "normuon", "aux_lr": {"head": 0.1}, "lr_mul": {"*.up.*": 2.0}, "beta2": 0.9})
    again = Recipe.model_validate(json.loads(json.dumps(one.canonical())))
    assert again.run_id(3) == one.run_id(3)


def test_the_schema_knows_the_options_of_the_optimizers():
    properties = Recipe.model_json_schema()["$defs"]["OptimizerConfig"]["properties"]
    assert {"name", "lr", "momentum", "orthogonalizer", "beta2"} <= set(properties)
    assert "normuon" in properties["beta2"]["description"]


# -- schedules -------------------------------------------------------------------------------------------------------


def factors(steps=100, **settings):
    schedule = ScheduleConfig(**settings)
    return [schedule.factor(t, steps) for t in range(steps)]


def test_linear_cooldown_is_the_benchmarks():
    found = factors(cooldown=0.7)
    for t, factor in enumerate(found):
        assert factor == pytest.approx(1.0 if t < 30 else (1 - t / 100) / 0.7)


def test_warmup_constant_and_floor():
    found = factors(warmup_steps=10, cooldown=0.5, floor=0.1)
    assert found[:10] == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert found[10:50] == [1.0] * 40
    assert found[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert min(found[10:]) > 0.1
    assert factors(cooldown=0.0) == [1.0] * 100


def test_a_tail_follows_the_cooldown_at_the_floor():
    """The record's: constant to the middle, linear to 0.1, then 40 of 2245 steps at 0.1."""
    found = factors(steps=2245, cooldown=0.5, floor=0.1, tail=40 / 2245)
    for t, factor in enumerate(found):
        x = t / 2205
        assert factor == pytest.approx(1.0 if x < 0.5 else 1.0 - 0.9 * (x - 0.5) / 0.5 if x < 1 else 0.1)
    assert factors(cooldown=0.0, floor=0.1, tail=0.2) == pytest.approx([1.0] * 80 + [0.1] * 20)


def test_windows_in_any_number_of_parts_and_smooth():
    three, six = ScheduleConfig(windows=[3, 7, 11]), ScheduleConfig(windows=[1, 2, 3, 4, 5, 6])
    assert [three.window_at(t, 9, 8) for t in range(9)] == [3] * 3 + [7] * 3 + [11] * 3
    assert [six.window_at(t, 12, 8) for t in range(12)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    smooth = ScheduleConfig(windows="smooth")
    for t in range(100):  # modded-nanogpt's, of 3456 = 27 blocks of 128 tokens
        x = t / 100
        tokens = 3456 * (4 * x**3 - 6 * x**2 + 3 * x)
        assert smooth.window_at(t, 100, 27) * 128 == max(128, math.ceil(round(tokens / 128, 9)) * 128)


def test_windows_need_a_pattern_and_a_part():
    with pytest.raises(ValueError, match=r"needs model.window_pattern"):
        recipe(schedule={"windows": [3, 7]})
    with pytest.raises(ValueError, match="at least one part"):
        recipe(model={"window_pattern": "L"}, schedule={"windows": []})


def test_extras_that_are_off_leave_the_identity_of_a_run_alone():
    off = {"context": 64, "kv_heads": None, "tied": False, "residual_scale": 1, "window_block": 128}
    assert recipe(model=off, schedule={"tail": 0.0, "windows": None}).run_id(0) == recipe().run_id(0)
    assert recipe(model={"context": 64, "residual_scale": 0.9}).run_id(0) != recipe().run_id(0)
    assert recipe(model={"context": 64, "residual_scale": 0.9}).canonical()["model"]["residual_scale"] == 0.9


def test_cosine_meets_linear_at_its_ends_and_middle():
    found = factors(cooldown=1.0, shape="cosine")
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_written_as_toml_is_the_same_recipe(path, tmp_path):
    recipe, written = load_recipe(path), tmp_path / "recipe.toml"
    written.write_text(recipe.to_toml())
    assert load_recipe(written).canonical() == recipe.canonical()
    assert load_recipe(written).run_id(0) == recipe.run_id(0)
