"""Which parameter gets which rule, and that nothing is decided in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim.routing import assign


class Tiny(nn.Module):
    def __init__(self, tied=False, head="lm_head"):
        super().__init__()
        self.wte = nn.Embedding(40, 8)
        self.up = nn.Linear(8, 16)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.LayerNorm(8)
        setattr(self, head, nn.Linear(8, 40, bias=False))
        if tied:
            getattr(self, head).weight = self.wte.weight


def roles(model, **options):
    return {a.name: a.role for a in assign(model, **options)}


def test_roles_follow_the_structure():
    found = roles(Tiny())
    assert found["wte.weight"] == "embedding"
    assert found["up.weight"] == found["conv.weight"] == "matrix"
    assert found["up.bias"] == found["norm.weight"] == "vector"
    assert found["lm_head.weight"] == "head"


@pytest.mark.parametrize("name", ["lm_head", "head", "unembed", "strange_name"])
def test_the_head_is_never_a_hidden_matrix(name):
    """By name, or, whatever its name, by having an output for each row of the embedding: a public helper sends lm_head to Muon."""
    assert roles(Tiny(head=name))[f"{name}.weight"] == "head"


def test_tied_weights_are_covered_once_as_embedding():
    model = Tiny(tied=True)
    found = assign(model)
    assert [a.name for a in found].count("wte.weight") == 1
    assert "lm_head.weight" not in {a.name for a in found}
    assert roles(model)["wte.weight"] == "embedding"


def test_every_parameter_is_covered_exactly_once():
    model = Tiny()
    optimizer = muonlab.optimizer(model, "muon")
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())


def test_overrides_win_and_a_pattern_that_matches_nothing_raises():
    assert roles(Tiny(), roles={"up.*": "vector"})["up.weight"] == "vector"
    with pytest.raises(ValueError, match=r"'upp\.weight' matches none of the .* near it: \['up\.weight'\]"):
        assign(Tiny(), {"upp.weight": "vector"})
    with pytest.raises(ValueError, match="matches none"):
        muonlab.optimizer(Tiny(), "muon", lr_mul={"blocks.*": 2.0})
    with pytest.raises(ValueError, match="unknown role 'vectr'"):
        assign(Tiny(), {"up.weight": "vectr"})
    with pytest.raises(ValueError, match=r"expected a parameter .*got shape \(16,\)"):
        assign(Tiny(), {"up.bias": "matrix"})


def test_models_without_parameters_or_matrices_are_refused():
    with pytest.raises(ValueError, match="without any"):
        assign(nn.ReLU())
    with pytest.raises(ValueError, match="no hidden matrix"):
        muonlab.optimizer(nn.LayerNorm(4), "muon")


def test_the_plan_says_what_happens_to_each_parameter():
    optimizer = muonlab.optimizer(
        Tiny(),
        "normuon",
        lr=0.02,
        weight_decay=0.1,
        aux_lr={"head": 0.004, "embedding": 0.7, "vector": 0.01},
        lr_mul={"up.weight": 0.5},
    )
    rows = {row.name: row for row in optimizer.plan}
    assert len(rows) == 8
    assert rows["up.weight"].lr == pytest.approx(0.02 * 0.5 * 2**0.5)
    assert rows["up.weight"].decay == pytest.approx(0.02 * 0.5 * 0.1)
    assert rows["lm_head.weight"].lr == 0.004
    assert rows["wte.weight"].lr == 0.7
    assert rows["norm.bias"].rule == "adamw"
    text = str(optimizer.plan)
    for expected in ("nesterov -> fast -> variance_reduction(long) -> aspect -> cautious_decay", "lm_head.weight", "why"):
        assert expected in text


def test_the_plan_follows_the_groups():
    optimizer = muonlab.optimizer(Tiny(), "muon", lr=0.02)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert {row.name: row.lr for row in optimizer.plan}["up.weight"] == pytest.approx(0.01 * 2**0.5)


def test_names_of_optimizers():
    assert {"adamw", "muon", "normuon"} < set(muonlab.optimizers())
    assert muonlab.optimizers("norm*") == ["normuon"]
    with pytest.raises(ValueError, match="did you mean 'normuon'"):
        muonlab.optimizer(Tiny(), "normuo")


def test_ambiguous_and_foreign_names_of_shape_rules():
    with pytest.raises(ValueError, match=r"rms_to_rms.*sqrt_max"):
        muonlab.optimizer(Tiny(), "muon", scale="spectral")
    lr = {row.name: row.lr for row in muonlab.optimizer(Tiny(), "muon", lr=1.0, scale="match_rms_adamw").plan}
    assert lr["up.weight"] == pytest.approx(0.2 * 4)


class Hugging(nn.Module):
    """As many positions as features, as GPT-2 medium has: a projection is as large as an embedding, and is none."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, 16), nn.Embedding(16, 16)
        self.c_proj = nn.Linear(16, 16, bias=False)
        self.out = nn.Linear(16, 50, bias=False)

    def get_output_embeddings(self):
        return self.out


def test_a_projection_of_an_embeddings_size_stays_a_matrix():
    found = roles(Hugging())
    assert found["c_proj.weight"] == "matrix"
    assert found["out.weight"] == "head"
    plain = Hugging()
    plain.get_output_embeddings = None
    assert roles(plain)["c_proj.weight"] == "matrix"
    assert roles(plain)["out.weight"] == "head"


def test_wrappers_are_looked_through():
    import torch

    model = Tiny()
    optimizer = muonlab.optimizer(torch.compile(model, backend="eager"), "muon", roles={"conv.*": "vector"})
    assert {row.name for row in optimizer.plan} == {name for name, _ in model.named_parameters()}


def test_adamw_needs_no_matrix_and_takes_its_own_settings_for_the_rest():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = muonlab.optimizer(model, "adamw", betas=(0.8, 0.9), aux_eps=1e-3)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.9), 1e-3)}


def test_a_head_may_be_wider_than_the_embedding():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 50))
    assert roles(model) == {
        "0.weight": "embedding",
        "1.weight": "matrix",
        "1.bias": "vector",
        "3.weight": "head",
        "3.bias": "vector",
    }


def test_submodules_called_roles_or_specs_declare_nothing():
    net = nn.Module()
    net.roles, net.specs = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])
    assert sorted(row.role for row in muonlab.optimizer(net, "muon").plan) == ["matrix"] * 2 + ["vector"] * 2


def test_a_declaration_that_is_no_mapping_is_refused_in_words():
    net = nn.Linear(4, 4)
    net.specs = lambda: ["weight"]
    with pytest.raises(TypeError, match=r"Linear.specs\(\): expected a mapping"):
        muonlab.optimizer(net, "muon")


class MoEBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(8, 4, bias=False), nn.Linear(8, 8, bias=False)


class LatentAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_b_proj, self.o_proj = nn.Linear(4, 16, bias=False), nn.Linear(16, 8, bias=False)


def test_open_questions_are_named_and_answered_by_one_word():
    model = nn.ModuleDict({"moe": MoEBlock(), "attention": LatentAttention()})
    rows = {one.name: one for one in assign(model)}
    assert rows["moe.gate.weight"].role == "matrix"
    assert "router: by Muon, as Megatron-LM has it" in rows["moe.gate.weight"].why
    assert "GLM-5 has one for each head" in rows["attention.q_b_proj.weight"].why
    assert ":" not in rows["moe.up.weight"].why
    told = {one.name: one for one in assign(model, {"router": "vector"}, {"mla": {"split": 4}})}
    assert (told["moe.gate.weight"].role, told["moe.up.weight"].role) == ("vector", "matrix")
    assert told["moe.gate.weight"].why == "given by the caller as 'router'"
    assert [one.spec.split for one in told.values()] == [1, 1, 4, 1]
    with pytest.raises(ValueError, match=r"'router' \(a question's name: no parameter belongs to it\) matches none"):
        assign(nn.Linear(4, 4), {"router": "vector"})
    slower = muonlab.optimizer(model, "muon", lr=0.1, lr_mul={"router": 0.5}).plan
    assert {row.name: row.lr for row in slower if "gate" in row.name} == {"moe.gate.weight": 0.05}
    called = nn.ModuleDict({"moe": MoEBlock()})
    called.register_parameter("router", nn.Parameter(torch.randn(8, 8)))
    roles = {one.name: one.role for one in assign(called, {"router": "vector"})}
    assert roles == {"router": "vector", "moe.gate.weight": "matrix", "moe.up.weight": "matrix"}
