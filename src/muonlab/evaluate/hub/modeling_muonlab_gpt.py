"""A GPT trained with muonlab, for transformers (5.2 or newer). It needs torch and transformers alone: this file is copied beside
the weights, and `from_pretrained(folder, trust_remote_code=True)` loads it from there. The parameters have muonlab's names.

RMSNorm with gains, QK-norm, half-truncated RoPE, ReLU² MLP, soft-capped logits; grouped queries, a tied head, sliding windows,
value embeddings, skips and a residual scale where the config has them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple


class MuonlabGPTConfig(PretrainedConfig):
    """The keys of muonlab's [model] table, but for two: `windows` are the tokens that long and short layers see, and vocab_size is
    a number."""

    model_type = "muonlab_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' form)
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "head_dim": "head_width",
        "max_position_embeddings": "context",
    }

    def __init__(
        self,
        vocab_size: int = 50304,
        context: int = 1024,
        layers: int = 12,
        width: int = 768,
        head_width: int = 128,
        mlp_ratio: int = 4,
        bias: bool = True,
        rope_base: float = 1024.0,
        qk_norm: bool = True,
        attention_scale: float = 0.12,
        logit_cap: float = 15.0,
        kv_heads: int | None = None,
        tied: bool = False,
        value_embeddings: int = 0,
        skips: Any = (),  # [to, from] pairs of layers
        logit_cap_form: str = "rsqrt",
        window_pattern: str | None = None,
        windows: Any = None,
        residual_scale: float = 1.0,
        residual_scale_learned: str = "no",
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.context, self.layers, self.width = vocab_size, context, layers, width
        self.head_width, self.mlp_ratio, self.bias, self.rope_base = head_width, mlp_ratio, bias, rope_base
        self.qk_norm, self.attention_scale = qk_norm, attention_scale
        self.logit_cap, self.logit_cap_form = logit_cap, logit_cap_form
        self.kv_heads, self.tied, self.value_embeddings = kv_heads, tied, value_embeddings
        self.skips = [list(pair) for pair in skips]
        self.window_pattern, self.windows = window_pattern, windows
        self.residual_scale, self.residual_scale_learned = residual_scale, residual_scale_learned
        self.use_cache = use_cache
        if (window_pattern is None) != (windows is None):
            raise ValueError("windows: expected [long, short] with a window_pattern, and nothing without one")
        super().__init__(**kwargs)

    @property
    def num_attention_heads(self) -> int:
        return self.width // self.head_width

    @property
    def num_key_value_heads(self) -> int:
        return self.kv_heads or self.num_attention_heads

    def value_table(self, layer: int) -> int | None:
        """Which value embedding the layer mixes in: with 3 tables, 0 1 2 in the first layers and 0 1 2 in the last ones."""
        table = layer if layer < self.value_embeddings else layer - (self.layers - self.value_embeddings)
        return table if table >= 0 else None


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.gains.to(x.dtype))


@lru_cache(maxsize=8)
def rotary_table(length: int, head_width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_width / 2), float32: the first half of the pairs turns, at frequencies from 1 down to 1/base; the
    second half stands still. No buffers: whoever casts or loads the model leaves them as they are."""
    cpu = torch.device("cpu")
    turning = (1 / base) ** torch.linspace(0, 1, head_width // 4, dtype=torch.float64, device=cpu)
    frequency = torch.cat([turning, torch.zeros_like(turning)])
    angle = torch.outer(torch.arange(length, dtype=torch.float64, device=cpu), frequency)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x: (B, T, heads, head_width); cos, sin: (B, T, head_width / 2)
    x1, x2 = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: MuonlabGPTConfig, layer: int) -> None:
        super().__init__()
        d, narrow = config.width, config.num_key_value_heads * config.head_width
        self.config, self.layer = config, layer
        self.q = nn.Linear(d, d, bias=config.bias)
        self.k = nn.Linear(d, narrow, bias=config.bias)
        self.v = nn.Linear(d, narrow, bias=config.bias)
        self.proj = nn.Linear(d, d, bias=config.bias)
        self.value_mix = None if config.value_table(layer) is None else nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, values: Tensor | None, past: Cache | None
    ) -> Tensor:  # x: (B, T, d); mask: (B, 1, T, S) bool, None for all of the past
        config, (B, T, d) = self.config, x.shape
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        q = self.q(x).view(B, T, heads, -1)
        k, v = (f(x).view(B, T, kv_heads, -1) for f in (self.k, self.v))
        if self.value_mix is not None and values is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v + mix[1] * values.view_as(v)
        q, k = (rotate(F.rms_norm(u, (u.shape[-1],)) if config.qk_norm else u, cos, sin) for u in (q, k))
        q, k, v = (u.transpose(1, 2) for u in (q, k, v))
        if past is not None:
            k, v = past.update(k, v, self.layer)
        k = k.to(q.dtype)
        grouped = kv_heads < heads and T == 1  # with several queries, torch may send groups to slower kernels
        if kv_heads < heads and not grouped:
            k, v = (u.repeat_interleave(heads // kv_heads, dim=1) for u in (k, v))
        causal = mask is None and k.shape[2] == T
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=config.attention_scale, enable_gqa=grouped
        )  # (B, heads, T, head_width)
        return self.proj(y.transpose(1, 2).reshape(B, T, d))


class MLP(nn.Module):
    def __init__(self, config: MuonlabGPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.proj = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.up(x).relu().square())


class Block(nn.Module):
    def __init__(self, config: MuonlabGPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(config.width), Attention(config, layer)
        self.norm2, self.mlp = RMSNorm(config.width), MLP(config)
        learned = {"no": 0, "layer": 1, "branch": 2}[config.residual_scale_learned]
        self.residual_scales = nn.Parameter(torch.full((learned,), config.residual_scale)) if learned else None
        self.residual_scale = config.residual_scale

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, values: Tensor | None, past: Cache | None
    ) -> Tensor:
        x = x + self._scaled(self.attention(self.norm1(x), cos, sin, mask, values, past), 0)
        return x + self._scaled(self.mlp(self.norm2(x)), 1)

    def _scaled(self, branch: Tensor, which: int) -> Tensor:
        if self.residual_scales is not None:
            return self.residual_scales[which % len(self.residual_scales)].to(branch.dtype) * branch
        return branch if self.residual_scale == 1.0 else self.residual_scale * branch


class MuonlabGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Rows of a batch are padded on either side, told by attention_mask (B, S), where S counts what the cache holds as well.

    Fresh weights, those of `from_config`, are transformers' usual ones and not those that muonlab begins with.
    """

    config_class = MuonlabGPTConfig
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: MuonlabGPTConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.norm_in = RMSNorm(config.width)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm_out = RMSNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=config.bias)
        narrow = config.num_key_value_heads * config.head_width
        self.value_embeds = nn.ModuleList(nn.Embedding(config.vocab_size, narrow) for _ in range(config.value_embeddings))
        self.skip_weights = nn.Parameter(torch.ones(len(config.skips))) if config.skips else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def resize_token_embeddings(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a new vocabulary: not with this model, whose tables of values and head's biases have its size")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T), the labels too: they are shifted here, the label of a position being a target of the one before it;
        -100 does not count. Raises ValueError beyond the context that the model was trained with."""
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache) and not self.training:
            past_key_values = DynamicCache(config=self.config)
        x = self.norm_out(self._features(input_ids, attention_mask, past_key_values))
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        logits = self._capped((F.linear(x, self.embed.weight) if self.head is None else self.head(x)).float())
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # pyright: ignore[reportArgumentType]

    def _features(self, tokens: Tensor, attention_mask: Tensor | None, past: Cache | None) -> Tensor:
        config, T = self.config, tokens.shape[1]
        S = T + (0 if past is None else past.get_seq_length())
        if past is not None and past.is_compileable:
            raise ValueError("past_key_values: expected a cache that grows, such as DynamicCache, got one of a fixed size")
        if config.context < S:
            raise ValueError(f"input_ids: expected at most {config.context} tokens in a row, the model's context, got {S}")
        positions, masks = _seen(S, T, attention_mask, config.windows, tokens.device)
        cos, sin = (table[positions] for table in rotary_table(config.context, config.head_width, config.rope_base, tokens.device))
        values = [table(tokens) for table in self.value_embeds]
        x = self.norm_in(self.embed(tokens))
        weights = () if self.skip_weights is None else self.skip_weights
        kept: dict[int, Tensor] = {}  # what later layers ask for
        for i, block in enumerate(self.blocks):
            for weight, (to, source) in zip(weights, config.skips, strict=True):
                if to == i:
                    x = x + weight.to(x.dtype) * kept[source]
            table = config.value_table(i)
            pattern = config.window_pattern or "L"
            x = block(x, cos, sin, masks[pattern[i % len(pattern)]], None if table is None else values[table], past)
            if any(source == i for _, source in config.skips):
                kept[i] = x
        return x

    def _capped(self, logits: Tensor) -> Tensor:
        cap, form = self.config.logit_cap, self.config.logit_cap_form
        if form == "none":
            return logits
        return cap * torch.tanh(logits / cap) if form == "tanh" else cap * logits * torch.rsqrt(logits.square() + cap * cap)


def _seen(
    S: int, T: int, attention_mask: Tensor | None, windows: Any, device: torch.device
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The positions of the last T of S tokens, (B or 1, T), and what these see in layers of either kind, (B or 1, 1, T, S) bool
    (None: all of their past). Pads, zeros of the mask, have no position of their own and are seen by nobody else."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f"attention_mask: expected (B, S), got {tuple(attention_mask.shape)}")
    if attention_mask is not None and attention_mask.shape[1] != S:
        raise ValueError(f"attention_mask: expected {S} columns, cached tokens included, got {attention_mask.shape[1]}")
    slot = torch.arange(S, device=device)
    past = slot <= slot[-T:, None]  # (T, S)
    if attention_mask is None or bool(attention_mask.all()):
        position, past, whole = slot[None], past[None], T in (1, S)
    else:
        counts = attention_mask.to(device).bool()
        position, whole = (counts.cumsum(1) - 1).clamp(min=0), False
        # a pad sees itself: attention to nothing is not a number, and would spread
        past = (past & counts[:, None]) | (slot == slot[-T:, None])
    back = position[:, -T:, None] - position[:, None]  # (B, T, S): how far a key lies behind a query
    masks: dict[str, Tensor | None] = {}
    for kind, window in zip("LS", windows or (None, None), strict=True):
        mask = past if window is None else past & (back < window)
        masks[kind] = None if whole and window is None else mask[:, None]
    return position[:, -T:], masks
