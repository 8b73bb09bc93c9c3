"""A fused parameter of a real architecture gets the update that its matrices get where each is a parameter (out, in) of its own.
How the matrices lie in it is written out here once more, by plain slicing after the architecture's source, without a MatrixSpec."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import muonlab
from tests.unit.test_zoo import built
from tests.unit.zoo.encoders import ENTRIES
from tests.unit.zoo.language import ZOO

Pieces = Callable[[Tensor], list[Tensor]]
LR, DECAY = 0.02, 0.1


def by_head(t: Tensor) -> list[Tensor]:
    """Four heads of [q k v], eight rows each."""
    return [t.reshape(4, 3, 8, 32)[:, i].reshape(32, 32) for i in range(3)]


def mamba2(t: Tensor) -> list[Tensor]:
    return [t[:64], t[64:128], t[128:140], t[140:152], t[152:]]


# (model of the zoo, the first parameter of this name, its pieces)
LAYOUTS: list[tuple[str, str, Pieces]] = [
    ("gpt_neox", "*.query_key_value.weight", by_head),
    ("bloom", "*.query_key_value.weight", by_head),
    ("persimmon", "*.query_key_value.weight", by_head),
    ("minimax", "*.qkv_proj.weight", by_head),
    ("codegen", "*.qkv_proj.weight", by_head),
    ("deberta", "*.in_proj.weight", by_head),
    (
        "falcon, groups",  # two groups of two queries, a key and a value
        "*.query_key_value.weight",
        lambda t: [
            t.reshape(2, 4, 8, 32)[:, :2].reshape(32, 32),
            t.reshape(2, 4, 8, 32)[:, 2].reshape(16, 32),
            t.reshape(2, 4, 8, 32)[:, 3].reshape(16, 32),
        ],
    ),
    ("falcon, one key", "*.query_key_value.weight", lambda t: [t[:32], t[32:40], t[40:]]),
    ("falcon, heads", "*.query_key_value.weight", by_head),
    ("gpt_bigcode, one key", "*.c_attn.weight", lambda t: [t[:32], t[32:40], t[40:]]),
    ("gpt_bigcode, heads", "*.c_attn.weight", by_head),
    ("mpt", "*.Wqkv.weight", lambda t: [t[:32], t[32:64], t[64:]]),
    ("dbrx", "*.Wqkv.weight", lambda t: [t[:32], t[32:48], t[48:]]),
    ("phi3", "*.qkv_proj.weight", lambda t: [t[:32], t[32:48], t[48:]]),
    ("phi3", "*.gate_up_proj.weight", lambda t: [t[:48], t[48:]]),
    ("modernbert", "*.Wqkv.weight", lambda t: [t[:32], t[32:64], t[64:]]),
    ("gpt2", "*.attn.c_attn.weight", lambda t: [t[:, :32].T, t[:, 32:64].T, t[:, 64:].T]),
    ("gpt2", "*.crossattention.c_attn.weight", lambda t: [t[:, :32].T, t[:, 32:].T]),
    ("gpt2", "*.mlp.c_fc.weight", lambda t: [t.T]),
    ("mixtral", "*.gate_up_proj", lambda t: [half for e in range(4) for half in (t[e, :24], t[e, 24:])]),
    ("mixtral", "*.down_proj", lambda t: [t[e] for e in range(4)]),
    ("gpt_oss", "*.gate_up_proj", lambda t: [half.T for e in range(4) for half in (t[e, :, 0::2], t[e, :, 1::2])]),
    ("gpt_oss", "*.down_proj", lambda t: [t[e].T for e in range(4)]),
    ("llama4", "*.gate_up_proj", lambda t: [half.T for e in range(4) for half in (t[e, :, :24], t[e, :, 24:])]),
    ("llama4", "*.experts.down_proj", lambda t: [t[e].T for e in range(4)]),
    ("dbrx", "*.mlp.w1", lambda t: [t[24 * e : 24 * (e + 1)] for e in range(4)]),
    ("dbrx", "*.mlp.w2", lambda t: [t[24 * e : 24 * (e + 1)].T for e in range(4)]),
    ("deepseek_v3", "*.kv_a_proj_with_mqa.weight", lambda t: [t[:12], t[12:]]),
    (
        "deepseek_v3",
        "*.kv_b_proj.weight",
        lambda t: [t.reshape(4, 14, 12)[:, :8].reshape(32, 12), t.reshape(4, 14, 12)[:, 8:].reshape(24, 12)],
    ),
    ("qwen3_next", "*.q_proj.weight", lambda t: [t.reshape(4, 2, 8, 32)[:, i].reshape(32, 32) for i in range(2)]),
    (
        "qwen3_next",
        "*.in_proj_qkvz.weight",
        lambda t: [torch.cat([t[32 * g + 8 * i : 32 * g + 8 * (i + 1)] for g in range(2)]) for i in range(4)],
    ),
    ("qwen3_next", "*.in_proj_ba.weight", lambda t: [t[[0, 1, 4, 5]], t[[2, 3, 6, 7]]]),
    ("qwen3_5", "*.in_proj_qkv.weight", lambda t: [t[:16], t[16:32], t[32:]]),
    ("mamba2", "*.in_proj.weight", mamba2),
    ("zamba2", "*.mamba.in_proj.weight", mamba2),
    ("mamba", "*.x_proj.weight", lambda t: [t[:4], t[4:10], t[10:]]),
    ("zamba", "*.mamba.in_proj.weight", lambda t: [t[0::2], t[1::2]]),
    ("zamba", "*.x_proj_weight", lambda t: [part for head in t for part in (head[:4], head[4:10], head[10:])]),
    ("lfm2", "*.conv.in_proj.weight", lambda t: [t[:32], t[32:64], t[64:]]),
    ("jetmoe", "*.kv_proj.weight", lambda t: [t[:16], t[16:]]),
    ("recurrent_gemma", "*.input_gate_weight", lambda t: [block.T for block in t]),
]


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer": nn.LSTM(12, 8, num_layers=2)})


def gates(t: Tensor) -> list[Tensor]:
    return [t[:8], t[8:16], t[16:24], t[24:]]


def by_hand(weights: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    """Muon in float64: Nesterov's momentum, the polar factor by SVD, the factor of tall matrices, decay."""
    done = []
    for weight, own in zip(weights, gradients, strict=True):
        w, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
        for gradient in own:
            momentum = 0.95 * momentum + 0.05 * gradient.double()
            u, _, vh = torch.linalg.svd(0.95 * momentum + 0.05 * gradient.double(), full_matrices=False)
            w = (1 - LR * DECAY) * w - LR * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * (u @ vh)
        done.append(w)
    return done


def check(model: nn.Module, pattern: str, pieces: Pieces) -> None:
    name, fused = next((name, p) for name, p in model.named_parameters() if fnmatch.fnmatchcase(name, pattern))
    first, draw = fused.detach().clone(), torch.Generator().manual_seed(2)
    gradients = [torch.randn(fused.shape, generator=draw) for _ in range(3)]
    assert sum(piece.numel() for piece in pieces(first)) == fused.numel(), name
    by_svd = by_hand(pieces(first), [list(own) for own in zip(*map(pieces, gradients), strict=True)])
    for orthogonalizer in ("svd", "fast"):
        apart = nn.ParameterList([piece.clone() for piece in pieces(first)])
        with torch.no_grad():
            fused.copy_(first)
        ours, theirs = (
            muonlab.optimizer(m, "muon", lr=LR, weight_decay=DECAY, orthogonalizer=orthogonalizer) for m in (model, apart)
        )
        for gradient in gradients:
            fused.grad = gradient.clone()
            for p, piece in zip(apart, pieces(gradient), strict=True):
                p.grad = piece.contiguous()
            ours.step()
            theirs.step()
        expected = by_svd if orthogonalizer == "svd" else [p.detach().double() for p in apart]
        for mine, other in zip(pieces(fused.detach()), expected, strict=True):
            torch.testing.assert_close(mine.double(), other, rtol=0, atol=2e-5, msg=lambda said: f"{name}: {said}")


@pytest.mark.parametrize(("name", "pattern", "pieces"), LAYOUTS, ids=[f"{name} {pattern}" for name, pattern, _ in LAYOUTS])
def test_a_fused_parameter_trains_as_its_matrices_do_stored_apart(name, pattern, pieces):
    if name in ZOO:
        model = built(*ZOO[name][:2], "AutoModelForCausalLM")
    else:
        model = built(ENTRIES[name].kind, ENTRIES[name].options, ENTRIES[name].task)
    check(model, pattern, pieces)


@pytest.mark.parametrize("pattern", ["layer.weight_ih_l0", "layer.weight_hh_l1"])
def test_so_do_the_gates_of_an_lstm(pattern):
    check(lstm(), pattern, gates)
