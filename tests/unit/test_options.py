"""Every option of muonlab.optimizer: what cannot be is refused in words, before anything is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant

NAN = float("nan")
UNIT = {"constraint": "unit_norm", "specs": {"0.weight": {"norm_axis": "input"}}}


def model():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6))


TYPOS = [
    ("moun", {}, "muon"),
    ("muon", {"orthogonalizer": "keler5"}, "keller5"),
    ("muon", {"orthogonalizer": "polar_expres(l=1e-4)"}, "polar_express"),
    ("muon", {"orthogonalizer": "polar_express(lo=1e-4)"}, "l"),
    ("muon", {"scale": "aspct"}, "aspect"),
    ("muon", {"decay": "cautios"}, "cautious"),
    ("muon", {"momentum_form": "heavyball"}, "heavy_ball"),
    ("muon", {"momentum_dtype": "bf16"}, "bfloat16"),
    ("muon", {"momentun": 0.9}, "momentum"),
    ("normuon", {"axis": "outptu"}, "output"),
    ("muon_floor", {"per": "rows"}, "row"),
    ("muon", {"aux": "adam"}, "adamw"),
    ("muon", {"aux_lr": {"heads": 0.1}}, "head"),
    ("muon", {"roles": {"*": "matrx"}}, "matrix"),
    ("muon", {"specs": {"0.weight": {"splt": 3}}}, "split"),
    ("muon", {"specs": {"0.weight": {"axis": "ouput"}}}, "output"),
    ("muon", {"specs": {"0.weight": {"norm_axis": "inputs"}}}, "input"),
    ("muon", {"constraint": "unitnorm"}, "unit_norm"),
    ("muon", {"nonfinite": "skp"}, "skip"),
]


@pytest.mark.parametrize(("name", "options", "meant"), TYPOS)
def test_a_typo_gets_the_name_that_was_meant(name, options, meant):
    with pytest.raises(ValueError, match=rf"did you mean '{meant}'\?"):
        muonlab.optimizer(model(), name, **options)


OUT_OF_RANGE = [
    ("muon", {"lr": -1.0}, "lr"),
    ("muon", {"lr": NAN}, "lr"),
    ("muon", {"lr": float("inf")}, "lr"),
    ("muon", {"lr": "0.1"}, "lr"),
    ("muon", {"lr": torch.tensor([0.1, 0.2])}, "lr"),
    ("muon", {"weight_decay": NAN}, "weight_decay"),
    ("muon", {"weight_decay": "x"}, "weight_decay"),
    ("muon", {"momentum": 1.5}, "momentum"),
    ("muon", {"momentum": None}, "momentum"),
    ("muon", {"orthogonalizer": 5}, "orthogonalizer"),
    ("muon", {"orthogonalizer": "cubic(steps=0)"}, "steps"),
    ("normuon", {"beta2": 1.0}, "beta2"),
    ("normuon", {"beta2": None}, "beta2"),
    ("adamuon", {"beta2": 2}, "beta2"),
    ("adamuon", {"eps": -1.0}, "eps"),
    ("adamuon", {"rms": NAN}, "rms"),
    ("adamuon", {"rms": -0.2}, "rms"),
    ("contra_muon", {"rounds": 0}, "rounds"),
    ("contra_muon", {"coefficient": NAN}, "coefficient"),
    ("soap_muon", {"every": 0}, "every"),
    ("soap_muon", {"every": 2.5}, "every"),
    ("soap_muon", {"shampoo_beta": 1.5}, "shampoo_beta"),
    ("soap_muon", {"eps": -1.0}, "eps"),
    ("smoothed_muon", {"smoothing": 1.0}, "smoothing"),
    ("muon_floor", {"floor": -1.0}, "floor"),
    ("muon_floor", {"floor": NAN}, "floor"),
    ("muon_floor", {"outward": NAN}, "outward"),
    ("muown", {"betas": (0.9,)}, "betas"),
    ("muown", {"betas": 0.9}, "betas"),
    ("muown", {"eps": -1.0}, "eps"),
    ("adamw", {"betas": (0.9,)}, "betas"),
    ("adamw", {"betas": (0.9, 0.95, 0.99)}, "betas"),
    ("adamw", {"betas": (0.9, 1.0)}, "betas"),
    ("lion", {"betas": (0.9, 2.0)}, "betas"),
    ("lion", {"betas": "ab"}, "betas"),
    ("adamw", {"eps": -1.0}, "eps"),
    ("sgd", {"momentum": -1.0}, "momentum"),
    ("sgd", {"nesterov": True}, "nesterov"),
    ("muon", {"aux_lr": -1.0}, "lr"),
    ("muon", {"aux_weight_decay": NAN}, "weight_decay"),
    ("muon", {"aux_betas": (0.9,)}, "betas"),
    ("muon", {"aux_betas": 0.9}, "betas"),
    ("muon", {"aux_eps": -1.0}, "eps"),
    ("muon", {"aux": "lion", "aux_eps": 1e-8}, "aux_eps"),
    ("muon", {"lr_mul": {"0.weight": -1.0}}, "lr_mul"),
    ("muon", {"lr_mul": {"zzz": 1.0}}, "zzz"),
    ("muon", {"wd_mul": {"0.weight": NAN}}, "wd_mul"),
    ("muon", {"roles": {"*.wieght": "matrix"}}, "wieght"),
    ("muon", {"roles": {"0.bias": "matrix"}}, r"0\.bias"),
    ("muon", {"specs": {"0.weight": {"split": 4}}}, r"0\.weight"),
    ("muon", {"specs": {"0.weight": {"batch_dims": -1}}}, "batch_dims"),
    ("muon", {"constraint": "unit_norm"}, "axis"),
    ("muon", {"constraint": "sphere", "project_every": 2}, "project_every"),
    ("muon", {"project_every": 2}, "project_every"),
    ("muon", {**UNIT, "project_every": 0}, "project_every"),
    ("muon", {**UNIT, "project_every": 1.5}, "project_every"),
    ("muonh", {"constraint": "sphere"}, "constraint"),
    ("muown", {"constraint": "sphere"}, "constraint"),
    ("muon_floor", UNIT, "constraint"),
]


@pytest.mark.parametrize(("name", "options", "named"), OUT_OF_RANGE)
def test_what_cannot_be_is_refused_and_named(name, options, named):
    with pytest.raises(ValueError, match=named):
        muonlab.optimizer(model(), name, **options)


@pytest.mark.parametrize(
    "group", [{"lr": "0.1"}, {"momentum": 2.0}, {"lr_mul": [1.0]}, {"lr_mul": ["x", 1.0]}, {"rule": "moun"}, {"weight_decay": None}]
)
def test_a_refused_group_leaves_an_optimizer_that_works(group):
    first, late = ([nn.Parameter(torch.eye(3)) for _ in range(2)] for _ in range(2))
    optimizer = Optimizer(first, variant("muon").rule(), lr=0.1)
    with pytest.raises(ValueError, match=r"expected|unknown"):
        optimizer.add_param_group({"params": late, **group})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": late})
    for p in first + late:
        p.grad = torch.ones(3, 3)
    optimizer.step()
    assert all(not torch.equal(p, torch.eye(3)) for p in first + late)
    assert len(optimizer.plan) == 4


@pytest.mark.parametrize("options", [{"roles": "matrix"}, {"specs": 3}, {"lr_mul": 2.0}, {"wd_mul": [1.0]}])
def test_patterns_come_as_a_mapping(options):
    with pytest.raises(TypeError, match=rf"expected {next(iter(options))} as a mapping"):
        muonlab.optimizer(model(), **options)


def test_a_list_of_parameters_is_no_model():
    with pytest.raises(TypeError, match="Optimizer takes parameters"):
        muonlab.optimizer(list(model().parameters()))
