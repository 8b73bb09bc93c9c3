"""What is known of public architectures: which parameters are banks, fused matrices, tables. The first entry that fits decides.

An entry names a class (a shell pattern on the name of a module that holds the parameter, however deep) and the parameter's path
from there. Layouts are those of the architecture's own forward pass, in transformers 5 where nothing else is said.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from muonlab.optim.matrices import MatrixSpec

Layout = Callable[[Any, nn.Parameter], MatrixSpec]  # (the module of that class, the parameter) -> how it is stored

# What wrappers put into a path: compiling and checkpointing, into the names of parameters, too; adapters of peft and sharding.
_PASSING = ("_orig_mod", "_checkpoint_wrapped_module")
_WRAPPERS = (*_PASSING, "base_layer", "original_module", "_fsdp_wrapped_module")


class Known(NamedTuple):
    """role None: what the structure says."""

    module: str
    parameter: str
    role: str | None
    layout: Layout | None
    why: str


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and activation checkpointing put into it."""
    return ".".join(part for part in name.split(".") if part not in _PASSING)


def plain_path(path: str) -> str:
    """A path without what any wrapper puts into it: as the architecture wrote it."""
    parts: list[str] = []
    for part in path.split("."):
        if parts and parts[-1] == "modules_to_save":  # the adapter's name
            parts.pop()
        elif part not in _WRAPPERS:
            parts.append(part)
    return ".".join(parts)


def _bank(blocks: int = 1) -> Layout:
    """(E, out, in), or (E, in, out); `blocks` matrices in one, one after the other or alternating."""

    def layout(m: Any, p: nn.Parameter) -> MatrixSpec:
        transposed = getattr(m, "is_transposed", False) or type(m).__name__.startswith("Llama4")
        alternating = blocks > 1 and not getattr(m, "is_concatenated", True)
        groups = p.shape[2 if transposed else 1] // blocks if alternating else 1
        return MatrixSpec(batch_dims=1, transposed=transposed, split=blocks, groups=groups)

    return layout


def _blocks(count: int) -> Layout:
    return lambda m, p: MatrixSpec(split=count)


def _by_head(heads: Callable[[Any], int]) -> Layout:
    """[q1 k1 v1 q2 k2 v2 …]."""
    return lambda m, p: MatrixSpec(groups=heads(m), split=3)


def _falcon(m: Any, p: nn.Parameter) -> MatrixSpec:
    if m.new_decoder_architecture:  # [q…q k v] for each pair of keys and values
        queries = m.num_heads // m.num_kv_heads * m.head_dim
        return MatrixSpec(groups=m.num_kv_heads, split=(queries, m.head_dim, m.head_dim))
    if m.multi_query:
        return MatrixSpec(split=(m.num_heads * m.head_dim, m.head_dim, m.head_dim))
    return MatrixSpec(groups=m.num_heads, split=3)


def _phi3(m: Any, p: nn.Parameter) -> MatrixSpec:
    keys = m.config.num_key_value_heads * m.head_dim
    return MatrixSpec(split=(p.shape[0] - 2 * keys, keys, keys))


def _bigcode(m: Any, p: nn.Parameter) -> MatrixSpec:
    if m.is_cross_attention:
        return MatrixSpec(split=2)
    return MatrixSpec(split=(m.embed_dim, m.kv_dim, m.kv_dim)) if m.multi_query else MatrixSpec(groups=m.num_heads, split=3)


def _conv1d(m: Any, p: nn.Parameter) -> MatrixSpec:
    """GPT-2's c_attn: queries, keys and values; keys and values alone in cross-attention."""
    return MatrixSpec(transposed=True, split=p.shape[1] // p.shape[0])


def _mamba2(m: Any, p: nn.Parameter) -> MatrixSpec:
    states = m.n_groups * m.ssm_state_size
    return MatrixSpec(split=(m.intermediate_size, m.intermediate_size, states, states, m.num_heads))


def _mamba1_x(m: Any, p: nn.Parameter) -> MatrixSpec:
    return MatrixSpec(split=(m.time_step_rank, m.ssm_state_size, m.ssm_state_size))


def _qkvz(m: Any, p: nn.Parameter) -> MatrixSpec:
    values = m.num_v_heads // m.num_k_heads * m.head_v_dim
    return MatrixSpec(groups=m.num_k_heads, split=(m.head_k_dim, m.head_k_dim, values, values))


def _ba(m: Any, p: nn.Parameter) -> MatrixSpec:
    return MatrixSpec(groups=m.num_k_heads, split=2)


def _gates(m: Any, p: nn.Parameter) -> MatrixSpec:
    return MatrixSpec(split={"LSTM": 4, "GRU": 3}.get(m.mode, 1))


def _gated_query(m: Any, p: nn.Parameter) -> MatrixSpec:
    """[q gate] for each head."""
    if p.shape[0] != 2 * m.o_proj.in_features:
        raise ValueError("no gate")
    return MatrixSpec(groups=p.shape[0] // (2 * m.head_dim), split=2)


def _latent(m: Any, p: nn.Parameter) -> MatrixSpec:
    """The latent of keys and values, and the one key that is turned by position."""
    return MatrixSpec(split=(m.kv_lora_rank, m.qk_rope_head_dim))


def _from_latent(m: Any, p: nn.Parameter) -> MatrixSpec:
    """[k v] for each head."""
    return MatrixSpec(groups=p.shape[0] // (m.qk_nope_head_dim + m.v_head_dim), split=(m.qk_nope_head_dim, m.v_head_dim))


def _delta_net(m: Any, p: nn.Parameter) -> MatrixSpec:
    return MatrixSpec(split=(m.key_dim, m.key_dim, m.value_dim))


def _dbrx(m: Any, p: nn.Parameter) -> MatrixSpec:
    keys = m.num_key_value_heads * m.head_dim
    return MatrixSpec(split=(p.shape[0] - 2 * keys, keys, keys))


def _stacked(transposed: bool) -> Layout:
    """DBRX's experts, one below the other; the last factor is used as x @ w2."""
    axis = "input" if transposed else "output"
    return lambda m, p: MatrixSpec(transposed=transposed, split=m.moe_num_experts, axis=axis)


def _zamba_x(m: Any, p: nn.Parameter) -> MatrixSpec:
    return MatrixSpec(batch_dims=1, split=(m.time_step_rank, m.ssm_state_size, m.ssm_state_size))


def _qkv(m: Any, p: nn.Parameter) -> MatrixSpec:
    """Thirds, but by head where timm's modules say so, by a flag or a head's widths (LeViT, TinyViT, EfficientFormer)."""
    if getattr(m, "head_first", False):
        return MatrixSpec(groups=m.num_heads, split=3)
    if hasattr(m, "val_dim"):
        return MatrixSpec(groups=m.num_heads, split=(m.key_dim, m.key_dim, m.val_dim))
    if hasattr(m, "q_dim"):  # grouped queries of EXAONE's images
        return MatrixSpec(split=(m.q_dim, m.kv_dim, m.kv_dim))
    whole = 2 if getattr(m, "use_global", False) else 3  # GCViT: the queries come from elsewhere
    return MatrixSpec(split=whole if p.shape[0] == whole * p.shape[1] else 1)


def _kv(m: Any, p: nn.Parameter) -> MatrixSpec:
    if hasattr(m, "val_dim"):
        return MatrixSpec(groups=m.num_heads, split=(m.key_dim, m.val_dim))
    return MatrixSpec(split=2 if p.shape[0] == 2 * p.shape[1] else 1)


def _gated(m: Any, p: nn.Parameter) -> MatrixSpec:
    """fc2 takes half of what fc1 gives."""
    if p.shape[0] != 2 * m.fc2.weight.shape[1]:
        raise ValueError("no gate")
    return MatrixSpec(split=2)


def _square(m: Any, p: nn.Parameter) -> MatrixSpec:
    """(in, heads, width): the transposed matrix, which is trained alike where it is square."""
    if p.shape[0] != p[0].numel():
        raise ValueError("not square")
    return MatrixSpec()


KNOWN = (
    # mixtures of experts
    Known("*Experts", "gate_up_proj", "matrix", _bank(2), "bank of experts, gate and up in one"),
    Known("*Experts", "gate_proj", "matrix", _bank(), "bank of experts"),
    Known("*Experts", "up_proj", "matrix", _bank(), "bank of experts"),
    Known("*Experts", "down_proj", "matrix", _bank(), "bank of experts"),
    Known("*Experts", "*bias", "vector", None, "biases of experts, a row each"),
    Known("*MoE", "input_linear.weight", "matrix", _bank(2), "bank of experts, gate and up in one"),
    Known("*MoA", "input_linear.weight", "matrix", _bank(), "bank of experts"),
    Known("*ParallelExperts", "weight", "matrix", _bank(), "bank of experts"),
    Known("DbrxExpertGLU", "[wv]1", "matrix", _stacked(False), "experts, one below the other"),
    Known("DbrxExpertGLU", "w2", "matrix", _stacked(True), "experts, one below the other, stored (in, out)"),
    Known("ParamWrapper", "lora_A.*.weight", None, lambda m, p: MatrixSpec(split=m.num_experts), "adapters of experts"),  # peft
    # queries, keys and values in one
    Known("GPTNeoX*Attention", "query_key_value.weight", None, _by_head(lambda m: m.config.num_attention_heads), "q, k, v by head"),
    Known("BloomAttention", "query_key_value.weight", None, _by_head(lambda m: m.num_heads), "q, k, v by head"),
    Known("PersimmonAttention", "query_key_value.weight", None, _by_head(lambda m: m.num_heads), "q, k, v by head"),
    Known("Falcon*Attention*", "query_key_value.weight", None, _falcon, "q, k, v"),
    Known("Phi3Attention", "qkv_proj.weight", None, _phi3, "q, k, v"),
    Known("Phi4MultimodalAttention", "qkv_proj.weight", None, _phi3, "q, k, v"),
    Known("MiniMaxLightningAttention", "qkv_proj.weight", None, _by_head(lambda m: m.num_attention_heads), "q, k, v by head"),
    Known("CodeGenAttention", "qkv_proj.weight", None, lambda m, p: MatrixSpec(groups=4, split=3), "q, v, k in four groups"),
    Known("GPTBigCodeAttention", "c_attn.weight", None, _bigcode, "q, k, v"),
    Known("*GPT2Attention", "c_attn.weight", None, _conv1d, "q, k, v, stored (in, out)"),
    Known("ImageGPTAttention", "c_attn.weight", None, _conv1d, "q, k, v, stored (in, out)"),
    Known("Qwen3NextGatedDeltaNet", "in_proj_qkvz.weight", None, _qkvz, "q, k, v, z by head"),
    Known("Qwen3NextGatedDeltaNet", "in_proj_ba.weight", None, _ba, "b, a by head"),
    Known("Qwen3_5*GatedDeltaNet", "in_proj_qkv.weight", None, _delta_net, "q, k, v"),
    Known("Qwen4Exp*GatedDeltaNet", "in_proj_qkv.weight", None, _delta_net, "q, k, v"),
    Known("Qwen3Next*Attention", "q_proj.weight", None, _gated_query, "q and its gate by head"),
    Known("Qwen3_5*Attention", "q_proj.weight", None, _gated_query, "q and its gate by head"),
    Known("Qwen4Exp*Attention", "q_proj.weight", None, _gated_query, "q and its gate by head"),
    Known("*", "kv_a_proj_with_mqa.weight", None, _latent, "the latent, the turned key"),  # DeepSeek's latent attention
    Known("*", "kv_b_proj.weight", None, _from_latent, "k, v by head"),
    Known("DbrxAttention", "Wqkv.weight", None, _dbrx, "q, k, v"),
    Known("JetMoeAttention", "kv_proj.weight", None, _blocks(2), "k, v"),
    Known("DisentangledSelfAttention", "in_proj.weight", None, _by_head(lambda m: m.num_attention_heads), "q, k, v by head"),
    Known("*MaskUnitAttention", "qkv.weight", None, _blocks(3), "q, k, v"),  # Hiera, SAM 2: they widen
    Known("*MultiScaleAttention", "qkv.weight", None, _blocks(3), "q, k, v"),
    Known("*", "qkv.weight", None, _qkv, "q, k, v"),  # timm, torchvision's Swin, Qwen2-VL
    Known("*", "qkv.linear.weight", None, _qkv, "q, k, v"),  # LeViT
    Known("*", "kv.weight", None, _kv, "k, v"),
    Known("*", "kv.linear.weight", None, _kv, "k, v"),
    Known("*", "to_qkv.weight", None, _qkv, "q, k, v"),  # torchvision's MaxViT
    Known("*", "to_kv.weight", None, _kv, "k, v"),
    Known("*", "qkv_linear.weight", None, _qkv, "q, k, v"),  # LayoutLM 2
    Known("BarkSelf*Attention", "att_proj.weight", None, _blocks(3), "q, k, v"),
    Known("*", "Wqkv.weight", None, _qkv, "q, k, v"),  # MPT, ModernBERT
    # gate and up in one
    Known("*", "gate_up_proj.weight", None, _blocks(2), "gate and up"),
    Known("ModernBert*MLP", "Wi.weight", None, _blocks(2), "input and gate"),
    Known("GraniteMoe*MLP", "input_linear.weight", None, _blocks(2), "gate and up"),
    Known("Zamba2MLP", "gate_up_proj_adapter_list.*.1.weight", None, _blocks(2), "gate and up"),
    Known("*", "fc1.weight", None, _gated, "gate and up"),  # timm: EVA-02, gMLP; Moonshine
    Known("ClvpGatedLinearUnit", "proj.weight", None, _blocks(2), "up and gate"),
    # recurrent layers
    Known("Mamba2Mixer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("BambaMixer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("FalconH1Mixer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("GraniteMoeHybridMambaLayer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("NemotronH*Mixer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("Zamba2MambaMixer", "in_proj.weight", None, _mamba2, "z, x, B, C, dt"),
    Known("ZambaMambaMixer", "in_proj.weight", None, lambda m, p: MatrixSpec(groups=p.shape[0] // 2, split=2), "x, z, alternating"),
    Known("ZambaMambaMixer", "x_proj_weight", "matrix", _zamba_x, "dt, B, C of each head"),
    Known("ZambaMambaMixer", "dt_proj_weight", "matrix", _bank(), "dt of each head"),
    Known("ZambaMambaMixer", "dt_proj_bias", "vector", None, "biases of heads, a row each"),
    Known("*MambaMixer", "in_proj.weight", None, _blocks(2), "x, z"),
    Known("*MambaMixer", "x_proj.weight", None, _mamba1_x, "dt, B, C"),
    Known("Lfm*ShortConv", "in_proj.weight", None, _blocks(3), "B, C, x"),
    Known("LSTM", "weight_[ih]h_l*", None, _gates, "four gates"),
    Known("GRU", "weight_[ih]h_l*", None, _gates, "three gates"),
    Known(
        "RecurrentGemmaRglru", "*_gate_weight", "matrix", lambda m, p: MatrixSpec(batch_dims=1, transposed=True), "blocks of a gate"
    ),
    Known("RecurrentGemmaRglru", "*_gate_bias", "vector", None, "biases of blocks, a row each"),
    # tables and numbers that are stored in two dimensions
    Known("*", "A_log", "vector", None, "decay rates of a state space, not a matrix"),
    Known("*", "D", "vector", None, "skip gains of a state space, not a matrix"),
    Known("*", "relative_position_bias_table", "embedding", None, "a table of relative positions"),
    Known("*", "attention_biases", "embedding", None, "a table of relative positions"),
    Known("*", "pos_embed.*_rel", "embedding", None, "a table of relative positions"),  # BoTNet
    Known("*", "rel_pos_[hw]", "embedding", None, "a table of relative positions"),
    Known("*", "*pos_embed", "embedding", None, "a table of positions"),
    Known("*", "*position_embedding", "embedding", None, "a table of positions"),
    Known("*", "*position_embeddings", "embedding", None, "a table of positions"),
    Known("*", "*positional_embedding", "embedding", None, "a table of positions"),
    Known("*", "*pos_embedding", "embedding", None, "a table of positions"),
    Known("*", "position_bias", "embedding", None, "a table of positions"),
    Known("CpmAntSegmentPositionEmbedding", "relative_attention_bias", "embedding", None, "a table of relative positions"),
    Known("*", "lora_embedding_A.*", "embedding", None, "an adapter's table"),  # peft
    Known("XLNetRelativeAttention", "[qkvor]", "matrix", _square, "(in, heads, width) as a matrix"),
    Known("XLNetRelativeAttention", "seg_embed", "embedding", None, "a table of segments"),
    Known("XLNetRelativeAttention", "r_?_bias", "vector", None, "biases of heads, a row each"),
)


def known(chain: list[tuple[nn.Module, str]], p: nn.Parameter) -> tuple[Known, MatrixSpec | None] | None:
    """The entry for a parameter, and its layout. chain: the modules that hold it, the nearest first, with its path from each.

    A layout that does not fit the parameter, such as that of another version of the architecture, does not count.
    """
    for entry in KNOWN:
        for module, path in chain:
            if fnmatch.fnmatchcase(type(module).__name__, entry.module) and fnmatch.fnmatchcase(path, entry.parameter):
                if entry.layout is None:
                    if entry.role == "embedding" and p.ndim < 2:
                        break
                    return entry, None
                try:
                    spec = entry.layout(module, p)
                    spec.shapes(p)
                except (AttributeError, ValueError, ZeroDivisionError, IndexError):
                    break
                return entry, spec
    return None
