"""The face that editors and type checkers see: names, options, and what each is called elsewhere."""

from __future__ import annotations

import importlib.resources
import inspect
import json
import pickle
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import options, orthogonalizers
from muonlab.optim.apply import CONSTRAINTS
from muonlab.optim.factory import AUX
from muonlab.optim.groups import NONFINITE
from muonlab.optim.polar import Orthogonalizer
from muonlab.optim.scaling import _RULES
from muonlab.optim.variants import variants

TYPED = """
import muonlab
from torch import nn

model = nn.Linear(4, 4)
opt = muonlab.optimizer(model, "normuon", lr=0.02, beta2=0.9, roles={"*": "matrix"}, aux_lr={"head": 0.1}, constraint="none")
settings = {"a": "vector"}
muonlab.optimizer(model, "muon", orthogonalizer="polar_express(l=1e-4)", decay="cautious", roles=settings)
name: str = "muon"
muonlab.optimizer(model, name)
for one in muonlab.optimizers("norm*"):
    muonlab.optimizer(model, one, lr=one.lr)
    one.formula.lower()
    one.options()["beta2"].default
"""
WRONG = [
    ('muonlab.optimizer(model, "muon", momentun=0.9)', "momentun"),
    ('muonlab.optimizer(model, "muon", momentum="a")', "momentum"),
    ('muonlab.optimizer(model, "muon", decay="cautios")', "decay"),
    ('muonlab.optimizer(model, "muon", aux="adam")', "aux"),
    ('muonlab.optimizer(model, "muon", constraint="unitnorm")', "constraint"),
    ('muonlab.optimizer(model, "muon", nonfinite="skp")', "nonfinite"),
    ('muonlab.optimizer(model, "muon").rate', "rate"),
]


def test_a_type_checker_takes_what_is_right_and_finds_what_is_not(tmp_path):
    lines = TYPED.splitlines()
    (tmp_path / "program.py").write_text("\n".join([*lines, *(line for line, _ in WRONG)]) + "\n")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path / "program.py")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout)["generalDiagnostics"]
    errors = {one["range"]["start"]["line"]: one["message"] for one in found if one["severity"] == "error"}
    assert sorted(errors) == list(range(len(lines), len(lines) + len(WRONG))), found
    for (line, word), message in zip(WRONG, (errors[key] for key in sorted(errors)), strict=True):
        assert word in message, line


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("muonlab").joinpath("py.typed").is_file()


def test_names_are_those_that_there_are():
    assert set(get_args(options.OptimizerName)) == set(variants())
    assert set(get_args(options.OrthogonalizerName)) == set(orthogonalizers())
    assert get_args(options.Aux) == AUX
    assert get_args(options.Constraint) == CONSTRAINTS
    assert get_args(options.Nonfinite) == NONFINITE
    assert set(get_args(options.Scale)) == set(_RULES)


def test_options_are_those_of_the_variants():
    known = get_type_hints(options.Options, {**vars(options), "Orthogonalizer": Orthogonalizer})
    assert set(known) == {name for v in variants().values() for name in v.options()}
    for v in variants().values():
        for name, parameter in v.options().items():
            value = parameter.default
            if value is not None and not isinstance(value, tuple):
                literal = [arg for arg in get_args(known[name]) if isinstance(arg, str)]
                assert value in literal if literal else known[name] is type(value) or type(value) in get_args(known[name]), (
                    v,
                    name,
                )


def test_optimizers_are_names_that_know_the_rest():
    found = muonlab.optimizers()
    assert found == sorted(variants())
    normuon = next(one for one in found if one == "normuon")
    assert normuon.formula.startswith("O = ") or "W ←" in normuon.formula
    assert "arxiv" in normuon.source.lower()
    assert isinstance(normuon.options()["beta2"], inspect.Parameter)
    assert repr(normuon).startswith("<normuon: ")
    assert "beta2=0.95" in repr(normuon)
    assert type(pickle.loads(pickle.dumps(normuon))) is str, "a checkpoint holds no class of ours"
    with pytest.raises(AttributeError, match="does not change"):
        normuon.lr = 1.0
    p = nn.Parameter(torch.randn(4, 4))
    made = muonlab.Optimizer([{"params": [p], "rule": normuon}], {normuon: normuon.rule()}, lr=0.1)
    assert {type(key) for key in (made.param_groups[0]["rule"], *made.rules)} == {str}
    assert json.loads(json.dumps(found)) == list(variants())
    for one in found:
        assert muonlab.optimizer(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6)), one).plan


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ({"ns_steps": 5}, "orthogonalizer"),
        ({"ns_coefficients": (1, 2, 3)}, "orthogonalizer"),
        ({"adjust_lr_fn": "match_rms_adamw"}, "'match_adamw_rms'"),
        ({"betas": (0.9, 0.95)}, "aux_betas"),
        ({"adamw_lr": 1e-3}, "aux_lr"),
        ({"eps": 1e-8}, "aux_eps"),
        ({"use_muon": True}, "roles={pattern: role}"),
        ({"fused": True}, "no such option here"),
    ],
)
def test_another_librarys_word_is_answered_with_ours(option, here):
    with pytest.raises(ValueError, match=f"unknown option of optimizer 'muon': '{next(iter(option))}'; .*{here}"):
        muonlab.optimizer(nn.Linear(4, 4), "muon", **option)


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("adamw", "beta1", "did you mean 'betas'"),
        ("adamw", "adam_betas", "here that is betas"),
        ("adamw", "adamw_lr", "here that is lr"),
        ("adamw", "ns_steps", "known: betas"),
        ("lion", "cautious", "known: betas"),
        ("sgd", "mu", "here that is momentum"),
    ],
)
def test_the_word_is_one_that_the_optimizer_has(name, option, said):
    with pytest.raises(ValueError, match=said):
        muonlab.optimizer(nn.Linear(4, 4), name, **{option: 1})


@pytest.mark.parametrize("forgotten", [{"weight_decay": 0.1}, {"roles": {}}, {"name": "normuon"}, {"model": None}])
def test_a_forgotten_model_is_said(forgotten):
    with pytest.raises(TypeError, match="expected a model"):
        muonlab.optimizer(**forgotten)


def test_words_that_are_options_here_stay_options():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    assert muonlab.optimizer(model, "adamw", betas=(0.8, 0.9)).param_groups[0]["betas"] == (0.8, 0.9)


@pytest.fixture(name="command")
def _command(request):
    return request.getfixturevalue("muonlab")


def test_recipes_are_answered_alike(command, workdir):
    code, _, err = command("train", "tiny.toml", "--set", "optimizer.ns_steps=5", "--out", "run")
    assert code == 2
    assert "ns_steps: unknown key for normuon; here that is orthogonalizer" in err


# -- the order of groups --------------------------------------------------------------------------------------------


def model():
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 11))


def test_the_first_groups_rate_is_that_of_matrices():
    optimizer = muonlab.optimizer(model(), "muon", lr=0.02, aux_lr=0.003)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.003, 0.003, 0.003]
    assert torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0).get_last_lr()[0] == 0.02


def test_a_checkpoint_with_groups_in_another_order_keeps_rates_and_says_what_schedulers_do():
    optimizer = muonlab.optimizer(model(), "muon", lr=0.02, aux_lr=0.003)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    saved = optimizer.state_dict()
    groups = saved["param_groups"]
    saved["param_groups"] = [*groups[1:], groups[0]]
    other = muonlab.optimizer(model(), "muon", lr=1.0, aux_lr=1.0)
    with pytest.warns(UserWarning, match="schedulers save rates by place"):
        other.load_state_dict(saved)
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.0015, 0.0015, 0.0015]
    assert [group["initial_lr"] for group in other.param_groups] == [0.02, 0.003, 0.003, 0.003]
