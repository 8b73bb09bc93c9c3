"""LoRA of peft: what it adds, what it keeps frozen, and the new head; from peft's own source."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.unit.zoo.language import DENSE, MOE
from tests.unit.zoo.walk import BANK, BANK2, EMBEDDING, GATE_UP, QKV, Expected, H, M, T


class Adapted(NamedTuple):
    kind: str
    options: dict[str, Any]
    adapter: dict[str, Any]
    expected: Expected
    task: str = "AutoModelForCausalLM"


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}
FACTORS = {"*.lora_[AB].default.weight": M}
LLAMA = {"*.embed_tokens.weight": EMBEDDING, "*_proj.base_layer.weight": M, "*_proj.weight": M, "*.lm_head.weight": H}

# An adapter's A is (rank, in) and B (out, rank), whatever the layer stores: B's outputs are fused as the layer's are.
ADAPTERS = {
    "llama": Adapted(
        "llama", DENSE, {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}, {**FACTORS, **LLAMA},
    ),
    "llama, a new head": Adapted(  # peft keeps the old one beside the copy that trains
        "llama", DENSE, {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"},
        {**FACTORS, "*.score.*.weight": H, **{pattern: said for pattern, said in LLAMA.items() if said != H}},
        "AutoModelForSequenceClassification",
    ),
    "llama, both ends": Adapted(
        "llama", DENSE, {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "task_type": "CAUSAL_LM"},
        {
            "*.lm_head.lora_B.default.weight": H,
            "*.lm_head.base_layer.weight": H,
            "*.embed_tokens.base_layer.weight": EMBEDDING,
            "*.lora_embedding_A.default": EMBEDDING,  # a column for each token
            "*.lora_embedding_B.default": M,
            **FACTORS,
            "*_proj.base_layer.weight": M,
            "*_proj.weight": M,
        },
    ),
    "gpt2": Adapted(
        "gpt2", GPT2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"},
        {
            "*.c_attn.lora_B.default.weight": QKV,
            **FACTORS,
            "*.w[tp]e.weight": EMBEDDING,
            "*.c_attn.base_layer.weight": ("matrix", "transposed, split 3 along output"),
            "*.c_proj.base_layer.weight": T,
            "*.c_fc.weight": T,
        },
    ),
    "phi3": Adapted(
        "phi3", DENSE, {"target_modules": "all-linear", "use_dora": True, "task_type": "CAUSAL_LM"},
        {
            "*.qkv_proj.lora_B.default.weight": ("matrix", "split (32, 16, 16) along output"),
            "*.gate_up_proj.lora_B.default.weight": GATE_UP,
            **FACTORS,
            "*.embed_tokens.weight": EMBEDDING,
            "*.lm_head.weight": H,
            "*.qkv_proj.base_layer.weight": ("matrix", "split (32, 16, 16) along output"),
            "*.gate_up_proj.base_layer.weight": GATE_UP,
            "*_proj.base_layer.weight": M,
        },
    ),
    "mixtral, experts": Adapted(
        "mixtral", {**MOE, "num_local_experts": 4},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"], "task_type": "CAUSAL_LM"},
        {
            "*.experts.lora_A.default.weight": ("matrix", "split 4 along output"),  # (experts · rank, in)
            **FACTORS,  # the experts' B is (out, rank · experts), alternating: one matrix, as a MatrixSpec cannot say that
            "*.embed_tokens.weight": EMBEDDING,
            "*.lm_head.weight": H,
            "*_proj.base_layer.weight": M,
            "*.self_attn.*_proj.weight": M,
            "*.mlp.gate.weight": M,
            "*.gate_up_proj": BANK2,
            "*.down_proj": BANK,
        },
    ),
    "resnet": Adapted(
        "resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 7},
        {"target_modules": ["convolution"], "modules_to_save": ["classifier"]},
        {
            "*.embedder.convolution.lora_A.default.weight": EMBEDDING,  # reads the image
            "*.embedder.convolution.base_layer.weight": EMBEDDING,
            **FACTORS,
            "*.convolution.base_layer.weight": M,
            "*.classifier.*.weight": H,
        },
        "AutoModelForImageClassification",
    ),
}  # fmt: skip
