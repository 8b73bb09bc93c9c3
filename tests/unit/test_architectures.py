"""What is known of public architectures: that fused parameters hold what the zoo's table says, by what the models compute; heads,
doubts, and what stands beside the table. The tables themselves: zoo/, test_zoo.py."""

from __future__ import annotations

import fnmatch
import warnings

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import MatrixSpec
from muonlab.optim.routing import assign
from tests.unit.zoo.language import TINY, ZOO

transformers = pytest.importorskip("transformers")


def tiny(name):
    kind, options, _ = ZOO[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **options)).eval()


# Which of a fused parameter's matrices makes the others idle where it is zero: values without which attention says nothing, the
# other factor of a gated product, the input of a state space.
SILENT = {
    "gpt_neox": ("*.query_key_value", 2, 3), "bloom": ("*.query_key_value", 2, 3),
    "falcon, groups": ("*.query_key_value", 2, 3), "falcon, one key": ("*.query_key_value", 2, 3),
    "falcon, heads": ("*.query_key_value", 2, 3), "mpt": ("*.Wqkv", 2, 3), "phi3": ("*.qkv_proj", 2, 3),
    "codegen": ("*.qkv_proj", 1, 3), "gpt_bigcode, one key": ("*.attn.c_attn", 2, 3), "gpt_bigcode, heads": ("*.attn.c_attn", 2, 3),
    "gpt2": ("*.attn.c_attn", 2, 3), "mixtral": ("*.experts.gate_up_proj", 1, 2), "gpt_oss": ("*.experts.gate_up_proj", 1, 2),
    "llama4": ("*.experts.gate_up_proj", 1, 2), "qwen3_moe": ("*.experts.gate_up_proj", 1, 2), "mamba2": ("*.in_proj", 1, 5),
    "mamba": ("*.in_proj", 0, 2), "persimmon": ("*.query_key_value", 2, 3), "minimax": ("*.qkv_proj", 2, 3),
    "dbrx": ("*.Wqkv", 2, 3), "jetmoe": ("*.kv_proj", 1, 2), "deepseek_v3": ("*.kv_b_proj", 1, 2), "glm4": ("*.gate_up_proj", 1, 2),
    "granitemoehybrid": ("*.shared_mlp.input_linear", 1, 2), "bamba": ("*.in_proj", 1, 5), "falcon_h1": ("*.in_proj", 1, 5),
    "nemotron_h": ("*.in_proj", 1, 5), "zamba2": ("*.mamba.in_proj", 1, 5), "zamba": ("*.in_proj", 0, 2), "lfm2": ("*.in_proj", 2,
                                                                                                                   3),
    "qwen3_next": ("*.in_proj_qkvz", 2, 4), "qwen3_5": ("*.in_proj_qkv", 2, 3),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", SILENT)
def test_a_fused_parameter_holds_the_matrices_that_the_table_says(name):
    """With one of them zero the logits do not depend on the others; were the layout another, they would."""
    pattern, silent, count = SILENT[name]
    model = tiny(name)
    tokens = torch.randint(1, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    for key, p in model.named_parameters():  # biases of the fused parameters and of the convolutions behind them
        if key.endswith("bias"):
            p.zero_()
    fused = [one for one in assign(model) if fnmatch.fnmatchcase(one.name.removesuffix(".weight"), pattern)]
    assert fused
    if name == "gpt_oss":  # (up + 1)·gate·σ(α·gate): a gate of zero is the silent one
        silent = 0

    def put(one, make):
        matrices = [make(i % count, matrix) for i, matrix in enumerate(one.spec.matrices(one.parameter))]
        if one.spec.groups > 1:
            one.spec.write(one.parameter, range(len(matrices)), matrices)
        else:
            for place, matrix in zip(one.spec.matrices(one.parameter), matrices, strict=True):
                place.copy_(matrix)

    before = model(tokens).logits
    for one in fused:
        put(one, lambda i, m: torch.zeros_like(m) if i == silent else m)
    idle = model(tokens).logits
    for one in fused:
        put(one, lambda i, m: m if i == silent else torch.randn(m.shape, generator=draw) * m.std())
    torch.testing.assert_close(model(tokens).logits, idle, rtol=0, atol=1e-6)
    assert (idle - before).abs().max() > 1e-5, "it was not idle before"


def test_recurrent_layers_have_a_matrix_for_each_gate():
    for layer, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        found = {one.name: one for one in assign(nn.ModuleDict({"layer": layer(6, 10, num_layers=2, bidirectional=True)}))}
        for name, one in found.items():
            if "weight" in name:
                assert (one.role, one.spec) == ("matrix", MatrixSpec(split=gates)), name


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 8, 3, groups=2))
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.pool = nn.Linear(8, 16)
        self.out = nn.Linear(16, 10)


def test_convolutions_are_matrices_but_the_first_and_depthwise_ones():
    """Jordan's advice: filters flattened to (out, in·k·k); the first layer, the head and all else by AdamW."""
    roles = {one.name: one.role for one in assign(ConvNet()) if one.parameter.ndim > 1}
    assert roles == {
        "stem.weight": "embedding", "block.0.weight": "vector", "block.1.weight": "matrix", "block.2.weight": "matrix",
        "squeeze.weight": "matrix", "excite.weight": "matrix", "pool.weight": "matrix", "out.weight": "head",
    }  # fmt: skip


# -- heads ----------------------------------------------------------------------------------------------------------

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 96}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
HEADS = {
    ("bert", "AutoModelForPreTraining"): ({**BERT, "max_position_embeddings": 32}, {"cls.seq_relationship"}),
    ("bert", "AutoModel"): ({**BERT, "max_position_embeddings": 32}, set()),
    ("bert", "AutoModelForSequenceClassification"): (BERT, {"classifier"}),
    ("bert", "AutoModelForQuestionAnswering"): (BERT, {"qa_outputs"}),
    ("roberta", "AutoModelForMaskedLM"): (BERT, set()),
    ("roberta", "AutoModelForSequenceClassification"): (BERT, {"classifier.out_proj"}),
    ("llama", "AutoModelForSequenceClassification"): ({**TINY, "intermediate_size": 48}, {"score"}),
    ("gpt2", "AutoModelForSequenceClassification"): ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}, {"score"}),
    ("bart", "AutoModelForSequenceClassification"): (
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 96},
        {"classification_head.out_proj"},
    ),
    ("vit", "AutoModelForImageClassification"): ({**BERT, "image_size": 16, "patch_size": 8, "num_labels": 7}, {"classifier"}),
    ("dinov2", "AutoModel"): ({**BERT, "image_size": 16, "patch_size": 8}, set()),
    ("modernbert", "AutoModelForSequenceClassification"): (
        {**BERT, "pad_token_id": 0, "cls_token_id": 1, "eos_token_id": 1, "bos_token_id": 1, "sep_token_id": 1}, {"classifier"},
    ),
    ("siglip", "AutoModelForImageClassification"): ({"vision_config": SMALL, "text_config": SMALL}, {"classifier"}),
    ("siglip_vision_model", "AutoModel"): ({**SMALL, "image_size": 16, "patch_size": 8}, set()),
    ("xlnet", "AutoModelForSequenceClassification"): (
        {"vocab_size": 96, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48}, {"logits_proj"},
    ),
    ("xlm", "AutoModelForSequenceClassification"): (
        {"vocab_size": 96, "emb_dim": 32, "n_layers": 1, "n_heads": 4}, {"sequence_summary.summary"},
    ),
    ("yolos", "AutoModelForObjectDetection"): (
        {**BERT, "image_size": [32, 32], "patch_size": 8}, {"class_labels_classifier.layers.2", "bbox_predictor.layers.2"},
    ),
    ("rt_detr", "AutoModelForObjectDetection"): (
        {"decoder_layers": 2},
        {"model.enc_score_head", "model.enc_bbox_head.layers.2", "model.decoder.class_embed.0", "model.decoder.class_embed.1",
         "model.decoder.bbox_embed.0.layers.2", "model.decoder.bbox_embed.1.layers.2"},
    ),
    ("dpt", "AutoModelForSemanticSegmentation"): ({}, {"head.head.4", "auxiliary_head.head.4"}),
    ("resnet", "AutoModelForImageClassification"): (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, {"classifier.1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "task"), HEADS)
def test_no_head_is_missed_and_no_hidden_layer_is_taken_for_one(kind, task):
    options, expected = HEADS[kind, task]
    with torch.device("meta"):
        model = getattr(transformers, task).from_config(transformers.AutoConfig.for_model(kind, **options))
    found = {one.name.removesuffix(".weight") for one in assign(model) if one.role == "head" and one.parameter.ndim > 1}
    assert found == expected


def test_an_unnamed_head_has_an_output_for_each_token_not_for_each_position():
    model = nn.ModuleDict(
        {"tokens": nn.Embedding(50, 16), "positions": nn.Embedding(16, 16), "up": nn.Linear(16, 32), "down": nn.Linear(32, 16)}
    )
    assert not [one.name for one in assign(model) if one.role == "head"]
    model["say"] = nn.Linear(16, 50)
    assert [one.name for one in assign(model) if one.role == "head" and one.parameter.ndim > 1] == ["say.weight"]


# -- doubts ---------------------------------------------------------------------------------------------------------


class Bank(nn.Module):
    """A bank under a name that nobody knows."""

    def __init__(self):
        super().__init__()
        self.experts, self.up = nn.Parameter(torch.randn(4, 32, 16)), nn.Linear(16, 16)


def test_a_plan_that_leaves_most_weights_out_is_doubted():
    with pytest.warns(UserWarning, match=r"muon trains 11\.1 % of the weights between embeddings and head; the largest others: "):
        muonlab.optimizer(Bank(), "muon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = muonlab.optimizer(Bank(), "muon", roles={"experts": "matrix"}, specs={"experts": {"batch_dims": 1}})
        muonlab.optimizer(Bank(), "muon", roles={"experts": "vector"})
        muonlab.optimizer(Bank(), "adamw")
        muonlab.optimizer(tiny("mixtral"), "muon")
    assert next(row for row in told.plan if row.name == "experts").role == "matrix"


def test_what_looks_fused_is_doubted_until_somebody_says_what_it_is():
    model = nn.ModuleDict({f"attn_qkv_{i}": nn.Linear(16, 48) for i in range(3)})
    with pytest.warns(UserWarning, match=r"attn_qkv_0\.weight \(48, 16\) looks like several matrices in one") as told:
        muonlab.optimizer(model, "muon")
    assert len(told) == 1, "one of a kind"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        muonlab.optimizer(model, "muon", specs={"*.weight": {"split": 3}})
        muonlab.optimizer(model, "muon", specs={"*.weight": {"split": 1}})


def test_a_frozen_model_is_doubted():
    with pytest.warns(UserWarning, match="no parameter requires a gradient"):
        muonlab.optimizer(nn.Linear(8, 8).requires_grad_(False), "muon")


# -- beside the table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 16, 8), (8, 4, 3, 3)])
def test_the_drop_in_does_not_guess_what_more_dimensions_are(shape):
    p = nn.Parameter(torch.randn(shape))
    with pytest.raises(ValueError, match=r"w: expected a matrix, got shape .*a bank of matrices or a convolution.*batch_dims=1"):
        muonlab.Muon([("w", p)])
    with pytest.raises(ValueError, match=r"bias: expected a matrix, got shape \(3,\).*muonlab\.optimizer\(model, \"muon\"\)"):
        muonlab.Muon([("bias", nn.Parameter(torch.zeros(3)))])
    optimizer = muonlab.Muon([{"params": [p], "spec": MatrixSpec(batch_dims=len(shape) - 2)}])
    assert optimizer.plan.rows[0].matrices.startswith(f"{p[..., 0, 0].numel()} × {shape[-2]}×{shape[-1]}")


class Exempt(nn.Module):
    """Says what is not decayed: as timm's models do, and by a mark on the parameter."""

    def __init__(self):
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.down.weight._no_weight_decay = True

    def no_weight_decay(self):
        return {"tokens.weight", "not.there"}


def test_what_a_model_exempts_from_decay_is_exempt_unless_the_caller_says_otherwise():
    def decay(**options):
        plan = muonlab.optimizer(Exempt(), "muon", lr=0.1, weight_decay=0.1, aux_lr=0.1, aux_weight_decay=0.1, **options).plan
        return {row.name: round(row.decay, 6) for row in plan if row.name.endswith("weight")}

    assert decay() == {"tokens.weight": 0.0, "up.weight": 0.01, "down.weight": 0.0}
    assert decay(wd_mul={"down.*": 2.0}) == {"tokens.weight": 0.0, "up.weight": 0.01, "down.weight": 0.02}


def test_the_plan_ends_with_the_shares():
    plan = muonlab.optimizer(Exempt(), "muon").plan
    assert sum(row.weights for row in plan) == sum(p.numel() for p in Exempt().parameters())
    assert str(plan).splitlines()[-1] == "440 weights: 58.2 % by muon, 41.8 % by adamw"
    frozen = Exempt()
    frozen.tokens.requires_grad_(False)
    assert "36.4 % by nobody (frozen)" in str(muonlab.optimizer(frozen, "muon").plan)


@pytest.fixture(name="command")
def _command(request):
    return request.getfixturevalue("muonlab")


def test_the_plan_of_any_model_of_transformers(command, tmp_path):
    config = transformers.AutoConfig.for_model("mixtral", architectures=["MixtralForCausalLM"], num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        code, out, err = command("plan", "--hf", str(name))
        assert code == 0, err
        assert "model.layers.*.mlp.experts.gate_up_proj (×2)" in out
        assert "8×28672×4096 = 16 × 14336×4096 (bank of 1 dim, split 2 along output)" in out
        assert "% by muon, " in out.splitlines()[-1]
    for bad in (str(tmp_path / "none.json"), "no/such"):
        code, out, err = command("plan", "--hf", bad)
        assert (code, out) == (2, "")
        assert f"--hf {bad}" in err
    assert command("plan", "recipe.toml", "--hf", str(tmp_path))[0] == 2
