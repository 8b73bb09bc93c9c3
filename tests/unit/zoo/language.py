"""Language models of transformers: every parameter's role and matrices, written down from the architectures' own sources."""

from __future__ import annotations

from tests.unit.zoo.walk import BANK, BANK2, EMBEDDING, GATE_UP, QKV, Entry, H, M, T, V

LLAMA = {
    "model.embed_tokens.weight": EMBEDDING,
    "lm_head.weight": H,
    "*.self_attn.[qkvo]_proj.weight": M,
    "*.mlp.[gud]*_proj.weight": M,
}
TIED = {key: value for key, value in LLAMA.items() if key != "lm_head.weight"}
MIXTURE = {
    "model.embed_tokens.weight": EMBEDDING,
    "lm_head.weight": H,
    "*.self_attn.[qkvo]_proj.weight": M,
    "*.mlp.gate.weight": M,
    "*.mlp.experts.gate_up_proj": BANK2,
    "*.mlp.experts.down_proj": BANK,
}
ATTENTION = {key: value for key, value in MIXTURE.items() if "mlp" not in key}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "pad_token_id": 0}
DENSE = {**TINY, "intermediate_size": 48, "num_key_value_heads": 2}
MOE = {**TINY, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8}
# z and x of 8 heads of 8, B and C of 2 groups of 6, dt of 8 heads
MAMBA2 = {"*.in_proj.weight": ("matrix", "split (64, 64, 12, 12, 8) along output"), "*.conv1d.weight": V, "*.out_proj.weight": M}

# name -> (model type, config, {pattern: (role, matrices)} for every parameter of two dimensions or more)
ZOO: dict[str, tuple[str, dict, dict]] = {
    "llama": ("llama", DENSE, LLAMA),
    "qwen3": ("qwen3", {**TINY, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}, LLAMA),
    "gemma2": ("gemma2", {**MOE, "tie_word_embeddings": True}, TIED),
    "mixtral": ("mixtral", {**MOE, "num_local_experts": 4}, MIXTURE),
    "qwen3_moe": ("qwen3_moe", {**MOE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}, MIXTURE),
    "olmoe": ("olmoe", {**MOE, "num_experts": 4, "num_experts_per_tok": 2}, MIXTURE),
    "qwen2_moe": (
        "qwen2_moe",
        {**MOE, "num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
        {
            **MIXTURE,
            "*.mlp.shared_expert.*_proj.weight": M,
            "*.mlp.shared_expert_gate.weight": V,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {**MOE, "num_local_experts": 4, "num_experts_per_tok": 2},
        {
            **ATTENTION,
            "*.mlp.router.weight": M,
            "*.experts.gate_up_proj": ("matrix", "transposed, bank of 1 dim, 24 groups of 2"),
            "*.experts.down_proj": ("matrix", "transposed, bank of 1 dim"),
            "*.experts.*_bias": V,
        },
    ),
    "llama4": (
        "llama4_text",
        {**MOE, "num_local_experts": 4, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 1, "attention_chunk_size": 16},
        {
            **ATTENTION,
            "*.feed_forward.router.weight": M,
            "*.feed_forward.shared_expert.*_proj.weight": M,
            "*.experts.gate_up_proj": ("matrix", "transposed, bank of 1 dim, split 2 along output"),
            "*.experts.down_proj": ("matrix", "transposed, bank of 1 dim"),
        },
    ),
    "jamba": (
        "jamba",
        {**MOE, "num_experts": 4, "mamba_dt_rank": 4, "mamba_d_state": 6, "attn_layer_offset": 1, "attn_layer_period": 2,
         "use_mamba_kernels": False},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.feed_forward.*_proj.weight": M,
            "*.feed_forward.router.weight": M,
            "*.experts.gate_up_proj": BANK2,
            "*.experts.down_proj": BANK,
            "*.mamba.A_log": V,
            "*.mamba.conv1d.weight": V,
            "*.mamba.in_proj.weight": GATE_UP,
            "*.mamba.x_proj.weight": ("matrix", "split (4, 6, 6) along output"),
            "*.mamba.dt_proj.weight": M,
            "*.mamba.out_proj.weight": M,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {**TINY, "intermediate_size": 48},
        {
            "gpt_neox.embed_in.weight": EMBEDDING,
            "embed_out.weight": H,
            "lm_head.weight": H,
            "*.query_key_value.weight": ("matrix", "4 groups of 3"),
            "*.dense*.weight": M,
        },
    ),
    "bloom": (
        "bloom",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
        {
            "transformer.word_embeddings.weight": EMBEDDING,
            "*.query_key_value.weight": ("matrix", "4 groups of 3"),
            "*.dense*.weight": M,
        },
    ),
    **{
        f"falcon, {name}": (
            "falcon",
            {**TINY, "alibi": False, "tie_word_embeddings": True, **config},
            {
                "transformer.word_embeddings.weight": EMBEDDING,
                "*.query_key_value.weight": ("matrix", layout),
                "*.dense*.weight": M,
            },
        )
        for name, config, layout in (
            ("groups", {"new_decoder_architecture": True, "num_kv_heads": 2}, "2 groups of (16, 8, 8)"),
            ("one key", {"multi_query": True, "new_decoder_architecture": False}, "split (32, 8, 8) along output"),
            ("heads", {"multi_query": False, "new_decoder_architecture": False}, "4 groups of 3"),
        )
    },
    "mpt": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64},
        {"transformer.wte.weight": EMBEDDING, "*.Wqkv.weight": QKV, "*_proj.weight": M},
    ),
    "phi3": (
        "phi3",
        DENSE,
        {
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.qkv_proj.weight": ("matrix", "split (32, 16, 16) along output"),
            "*.gate_up_proj.weight": GATE_UP,
            "*.o_proj.weight": M,
            "*.down_proj.weight": M,
        },
    ),
    "codegen": (
        "codegen",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "rotary_dim": 4, "n_positions": 64},
        {
            "transformer.wte.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.qkv_proj.weight": ("matrix", "4 groups of 3"),
            "*.out_proj.weight": M,
            "*.mlp.fc_*.weight": M,
        },
    ),
    **{
        f"gpt_bigcode, {name}": (
            "gpt_bigcode",
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64, "multi_query": many},
            {
                "transformer.w[tp]e.weight": EMBEDDING,
                "*.attn.c_attn.weight": ("matrix", layout),
                "*.c_proj.weight": M,
                "*.c_fc.weight": M,
            },
        )
        for name, many, layout in (("one key", True, "split (32, 8, 8) along output"), ("heads", False, "4 groups of 3"))
    },
    "gpt2": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64, "add_cross_attention": True},
        {
            "transformer.w[tp]e.weight": EMBEDDING,
            "*.attn.c_attn.weight": ("matrix", "transposed, split 3 along output"),
            "*.crossattention.c_attn.weight": ("matrix", "transposed, split 2 along output"),
            "*.q_attn.weight": T,
            "*.c_proj.weight": T,
            "*.c_fc.weight": T,
        },
    ),
    "mamba2": (
        "mamba2",
        {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "num_hidden_layers": 2,
         "chunk_size": 8, "vocab_size": 96, "tie_word_embeddings": False},
        {
            "backbone.embeddings.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.in_proj.weight": ("matrix", "split (64, 64, 12, 12, 8) along output"),
            "*.conv1d.weight": V,
            "*.out_proj.weight": M,
        },
    ),
    "mamba": (
        "mamba",
        {"hidden_size": 32, "state_size": 6, "num_hidden_layers": 2, "vocab_size": 96, "time_step_rank": 4},
        {
            "backbone.embeddings.weight": EMBEDDING,
            "*.in_proj.weight": GATE_UP,
            "*.x_proj.weight": ("matrix", "split (4, 6, 6) along output"),
            "*.conv1d.weight": V,
            "*.A_log": V,
            "*.dt_proj.weight": M,
            "*.out_proj.weight": M,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**MOE, "num_key_value_heads": 4, "head_dim": 4, "moe_intermediate_size": 12, "n_routed_experts": 4,
         "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
         "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},
        {
            **MIXTURE,
            "*.self_attn.q_[ab]_proj.weight": M,
            "*.kv_a_proj_with_mqa.weight": ("matrix", "split (12, 4) along output"),  # the latent, the turned key
            "*.kv_b_proj.weight": ("matrix", "4 groups of (8, 6)"),  # k v for each head
            "*.mlp.*_proj.weight": M,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {**MOE, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 4,
         "layer_types": ["linear_attention", "full_attention"]},
        {
            "*.self_attn.q_proj.weight": ("matrix", "4 groups of 2"),  # q and its gate for each head
            **MIXTURE,
            "*.in_proj_qkvz.weight": ("matrix", "2 groups of (8, 8, 8, 8)"),  # z and v of two heads for each head of keys
            "*.in_proj_ba.weight": ("matrix", "2 groups of 2"),
            "*.linear_attn.out_proj.weight": M,
            "*.conv1d.weight": V,
            "*.shared_expert.*_proj.weight": M,
            "*.shared_expert_gate.weight": V,
        },
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {**MOE, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
         "layer_types": ["linear_attention", "full_attention"]},
        {
            "*.self_attn.q_proj.weight": ("matrix", "4 groups of 2"),
            **LLAMA,
            "*.in_proj_qkv.weight": ("matrix", "split (16, 16, 24) along output"),
            "*.in_proj_[zba].weight": M,
            "*.linear_attn.out_proj.weight": M,
            "*.conv1d.weight": V,
        },
    ),
    "phimoe": ("phimoe", {**DENSE, "num_local_experts": 4}, {**{k.replace("gate.", "router."): v for k, v in MIXTURE.items()}}),
    "dbrx": (
        "dbrx",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64,
         "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
         "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
        {
            "transformer.wte.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.Wqkv.weight": ("matrix", "split (32, 16, 16) along output"),
            "*.out_proj.weight": M,
            "*.router.layer.weight": M,
            "*.experts.mlp.[wv]1": ("matrix", "split 4 along output"),  # experts one below the other
            "*.experts.mlp.w2": ("matrix", "transposed, split 4 along input"),  # the same, used as x @ w2
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**DENSE, **MAMBA, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 20,
         "layer_types": ["mamba", "attention"]},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.router.weight": M,
            "*.experts.gate_up_proj": BANK2,
            "*.experts.down_proj": BANK,
            "*.shared_mlp.input_linear.weight": GATE_UP,
            "*.shared_mlp.output_linear.weight": M,
            **MAMBA2,
        },
    ),
    "granitemoeshared": (
        "granitemoeshared",
        {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 20},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.router.weight": M,
            "*.experts.gate_up_proj": BANK2,
            "*.experts.down_proj": BANK,
            "*.shared_mlp.input_linear.weight": GATE_UP,
            "*.shared_mlp.output_linear.weight": M,
        },
    ),
    "bamba": ("bamba", {**DENSE, **MAMBA, "attn_layer_indices": [1]}, {**ATTENTION, "*.feed_forward.*_proj.weight": M, **MAMBA2}),
    "falcon_h1": ("falcon_h1", {**MOE, **MAMBA, "mamba_d_ssm": 64}, {**ATTENTION, "*.feed_forward.*_proj.weight": M, **MAMBA2}),
    "nemotron_h": (
        "nemotron_h",
        {**MOE, "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 6,
         "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "moe_shared_expert_intermediate_size": 20, "n_group": 1, "topk_group": 1},
        {
            "model.embeddings.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.mixer.[qkvo]_proj.weight": M,
            **MAMBA2,
            "*.mixer.gate.weight": M,
            "*.mixer.experts.up_proj": BANK,
            "*.mixer.experts.down_proj": BANK,
            "*.mixer.shared_experts.*_proj.weight": M,
        },
    ),
    "zamba2": (
        "zamba2",
        {**TINY, "num_hidden_layers": 3, "intermediate_size": 24, "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_d_state": 6,
         "mamba_ngroups": 2, "layers_block_type": ["mamba", "mamba", "hybrid"], "adapter_rank": 4, "num_mem_blocks": 1,
         "chunk_size": 8, "use_shared_attention_adapter": True},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.self_attn.linear_[qkv]_adapter_list.*.weight": M,
            "*.feed_forward.gate_up_proj.weight": GATE_UP,
            "*.gate_up_proj_adapter_list.*.0.weight": M,
            "*.gate_up_proj_adapter_list.*.1.weight": GATE_UP,  # is added to the gate and up above
            "*.feed_forward.down_proj.weight": M,
            "*.layers.*.linear.weight": M,
            **MAMBA2,
        },
    ),
    "zamba": (
        "zamba",
        {**TINY, "num_hidden_layers": 5, "intermediate_size": 24, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_d_state": 6,
         "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.feed_forward.*_proj.weight": M,
            "*.layers.*.linear.weight": M,
            "*.mamba.in_proj.weight": ("matrix", "64 groups of 2"),  # x and z alternate
            "*.mamba.x_proj_weight": ("matrix", "bank of 1 dim, split (4, 6, 6) along output"),  # dt, B, C of each head
            "*.mamba.dt_proj_weight": BANK,
            "*.mamba.dt_proj_bias": V,
            "*.mamba.A_log": V,
            "*.mamba.D": V,
            "*.mamba.conv1d.weight": V,
            "*.mamba.out_proj.weight": M,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**MOE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.temporal_block.[qkvo]_proj.weight": M,
            "*.temporal_block.linear_*.weight": M,
            "*.temporal_block.conv_1d.weight": V,
            "*.rg_lru.*_gate_weight": ("matrix", "transposed, bank of 1 dim"),  # a block for each head, x @ W
            "*.rg_lru.*_gate_bias": V,
            "*.mlp_block.*_proj.weight": M,
        },
    ),
    "gemma3": ("gemma3_text", MOE, TIED),
    "glm4": (
        "glm4", MOE, {**ATTENTION, "*.gate_up_proj.weight": GATE_UP, "*.down_proj.weight": M},
    ),
    "glm4_moe": (
        "glm4_moe",
        {**MOE, "moe_intermediate_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
         "n_group": 1, "topk_group": 1},
        {**MIXTURE, "*.mlp.*_proj.weight": M},
    ),
    "cohere": ("cohere", {**DENSE, "eos_token_id": 1}, TIED),
    "stablelm": ("stablelm", DENSE, LLAMA),
    "opt": (
        "opt",
        {**TINY, "word_embed_proj_dim": 16, "ffn_dim": 48, "max_position_embeddings": 64},
        {
            "model.decoder.embed_*.weight": EMBEDDING,
            "model.decoder.project_*.weight": M,
            "*.self_attn.*_proj.weight": M,
            "*.fc[12].weight": M,
        },
    ),
    "gptj": (
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "rotary_dim": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 1},
        {"transformer.wte.weight": EMBEDDING, "lm_head.weight": H, "*.attn.*_proj.weight": M, "*.mlp.fc_*.weight": M},
    ),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 96, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 1},
        {"transformer.w[tp]e.weight": EMBEDDING, "*.attention.*_proj.weight": M, "*.mlp.c_*.weight": M},
    ),
    "phi": (
        "phi",
        {**TINY, "intermediate_size": 48},
        {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": H, "*.[qkv]_proj.weight": M, "*.dense.weight": M,
         "*.fc[12].weight": M},
    ),
    "persimmon": (
        "persimmon",
        {**TINY, "intermediate_size": 48},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": H,
            "*.query_key_value.weight": ("matrix", "4 groups of 3"),
            "*.dense*.weight": M,
        },
    ),
    "starcoder2": (
        "starcoder2",
        {**DENSE, "bos_token_id": 1, "eos_token_id": 1},
        {"model.embed_tokens.weight": EMBEDDING, "*.self_attn.[qkvo]_proj.weight": M, "*.mlp.c_*.weight": M},
    ),
    "minimax": (
        "minimax",
        {**MOE, "num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
        {
            **MIXTURE,
            "*.self_attn.qkv_proj.weight": ("matrix", "4 groups of 3"),
            "*.self_attn.out_proj.weight": M,
            "*.self_attn.output_gate.weight": M,
        },
    ),
    "jetmoe": (
        "jetmoe",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 8,
         "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.mlp.input_linear.weight": BANK2,
            "*.self_attention.experts.input_linear.weight": BANK,  # queries alone: keys and values are everybody's
            "*.output_linear.weight": BANK,
            "*.router.layer.weight": M,
            "*.kv_proj.weight": ("matrix", "split 2 along output"),
        },
    ),
    "lfm2": (
        "lfm2",
        {**MOE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.conv.in_proj.weight": ("matrix", "split 3 along output"),  # B, C, x
            "*.conv.out_proj.weight": M,
            "*.conv.conv.weight": V,
            "*.self_attn.*_proj.weight": M,
            "*.feed_forward.w[123].weight": M,
        },
    ),
    "xlnet": (
        "xlnet",
        {"vocab_size": 96, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        {
            "transformer.mask_emb": V,
            "transformer.word_embedding.weight": EMBEDDING,
            "*.rel_attn.[qkvor]": M,
            "*.rel_attn.r_?_bias": V,
            "*.rel_attn.seg_embed": EMBEDDING,
            "*.ff.layer_[12].weight": M,
        },
    ),
    "rwkv": (
        "rwkv",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
        {
            "rwkv.embeddings.weight": EMBEDDING,
            "head.weight": H,
            "*.time_mix_*": V,
            "*.attention.*.weight": M,
            "*.feed_forward.*.weight": M,
        },
    ),
    "xlstm": (
        "xlstm",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "num_blocks": 2},
        {"backbone.embeddings.weight": EMBEDDING, "lm_head.weight": H, "*.mlstm_layer.*.weight": M, "*.ffn.proj_*.weight": M},
    ),
}  # fmt: skip

# What three steps need beside tokens, and matrices that get no gradient from them.
INPUTS = {"gpt2": {"input_ids": (2, 12), "encoder_hidden_states": (2, 5, 32)}}
IDLE = {"phimoe": ("*.router.weight",)}  # outside of training its mixer picks without weighing
TYING = ("lm_head.weight", "embed_out.weight")

ENTRIES = {
    name: Entry(*row, inputs=INPUTS.get(name, {"input_ids": (2, 12)}), idle=IDLE.get(name, ()), tied=TYING)
    for name, row in ZOO.items()
}
