"""The GPT of the modded-nanogpt optimization benchmark, at any size.

RMSNorm with gains, QK-norm, half-truncated RoPE, ReLU² MLP, soft-capped logits, zero-initialized projections.
The benchmark's own size: 12 layers, width 768, heads of 128, vocabulary 50304, context 1024.

Extras, all off by default: grouped queries, a tied head, sliding windows, value embeddings, skips, a residual scale, other caps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from muonlab.models.attention import Attention, Cache, QKLayer, RMSNorm, document_mask, rotary_table, window_mask
from muonlab.models.decoding import Past, States
from muonlab.models.family import ModelConfig, extra
from muonlab.models.head import Headed
from muonlab.models.softcap import Form


class GPTConfig(ModelConfig):
    """Sizes of a GPT. The defaults are the benchmark's, but for the vocabulary, which follows the tokenizer."""

    family: Literal["gpt"] = "gpt"
    layers: PositiveInt = Field(12, description="number of blocks")
    width: PositiveInt = Field(768, description="model dimension d")
    head_width: PositiveInt = Field(128, description="dimensions per attention head; divides width, a multiple of 4")
    mlp_ratio: PositiveInt = Field(4, description="hidden width of the MLP in units of width")
    bias: bool = Field(True, description="biases in the linear layers (the benchmark has them)")
    rope_base: float = Field(1024.0, gt=1, description="RoPE frequencies run from 1 to 1/rope_base")
    qk_norm: bool = Field(True, description="normalize queries and keys; without it logits can grow: see QKClip")
    attention_scale: float = Field(0.12, gt=0, description="softmax scale of queries and keys")
    logit_cap: float = Field(15.0, gt=0, description="bound on logits: they are cap·x/sqrt(x² + cap²), or see logit_cap_form")

    kv_heads: PositiveInt | None = extra(None, description="heads of keys and values (grouped queries); default: as many as heads")
    tied: bool = extra(False, description="the head's matrix is the embedding's")
    value_embeddings: NonNegativeInt = extra(
        0, description="tables of token embeddings that are mixed into values, of the first layers and again of the last ones"
    )
    skips: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = extra(
        (), description="[to, from] pairs of layers, from 0: what `from` gave, times a learned weight, is added to what `to` gets"
    )
    logit_cap_form: Form = extra("rsqrt", description="tanh: logits are cap·tanh(x/cap); none: x")
    window_pattern: str | None = extra(
        None, pattern="^[LS]+$", description="sliding windows: L(ong) or S(hort, half as many blocks) for each layer, repeated"
    )
    window_block: PositiveInt = extra(128, description="tokens per block, the unit of windows; see schedule.windows")
    residual_scale: float = extra(1.0, description="factor on what each branch adds to the residual stream")
    residual_scale_learned: Literal["no", "layer", "branch"] = extra(
        "no", description="train the residual scale, one for each layer or for each branch; residual_scale is its start"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> GPTConfig:
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} is not a multiple of head_width {self.head_width}")
        if self.head_width % 4:
            raise ValueError(f"head_width must be a multiple of 4 (half of its pairs rotate), got {self.head_width}")
        if self.kv_heads is not None and (self.width // self.head_width) % self.kv_heads:
            heads = self.width // self.head_width
            raise ValueError(f"kv_heads: expected a divisor of the number of heads, {heads}, got {self.kv_heads}")
        if 2 * self.value_embeddings > self.layers:
            raise ValueError(
                f"value_embeddings: each table serves two layers; expected at most {self.layers // 2} for {self.layers} layers, "
                f"got {self.value_embeddings}"
            )
        if self.logit_cap_form == "none" and self.logit_cap != type(self).model_fields["logit_cap"].default:
            raise ValueError(f'logit_cap: logit_cap_form = "none" has no use for a cap of {self.logit_cap}; leave one of them out')
        return self

    @field_validator("skips")
    @classmethod
    def _one_order(cls, skips: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if len(set(skips)) < len(skips):
            raise ValueError(f"expected each pair once, got {[list(pair) for pair in skips]}")
        return tuple(sorted(skips))

    @model_validator(mode="after")
    def _skips_fit(self) -> GPTConfig:
        for to, source in self.skips:
            if not source < to < self.layers:
                raise ValueError(f"skips: expected [to, from] with from < to < layers ({self.layers}), got [{to}, {source}]")
        return self

    def value_table(self, layer: int) -> int | None:
        """Which value embedding the layer mixes in: with 3 tables, 0 1 2 in the first layers and 0 1 2 in the last ones."""
        table = layer if layer < self.value_embeddings else layer - (self.layers - self.value_embeddings)
        return table if table >= 0 else None

    @property
    def window_blocks(self) -> int | None:
        return -(-self.context // self.window_block) if self.window_pattern else None

    def build(self, vocab_size: int) -> GPT:
        return GPT(self, self.vocab_size or vocab_size)


class MLPConfig(Protocol):
    """What the MLP needs to know of a model's config."""

    @property
    def width(self) -> int: ...
    @property
    def mlp_ratio(self) -> int: ...
    @property
    def bias(self) -> bool: ...


class MLP(nn.Module):
    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.proj = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, d)
        return self.proj(self.up(x).relu().square())


class Block(nn.Module):
    """x + s·attention(norm(x)), then x + s·mlp(norm(x)); s is the residual scale."""

    def __init__(self, config: GPTConfig, mixes_values: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(config.width), Attention(config, mixes_values)
        self.norm2, self.mlp = RMSNorm(config.width), MLP(config)
        learned = {"no": 0, "layer": 1, "branch": 2}[config.residual_scale_learned]
        self.residual_scales = nn.Parameter(torch.full((learned,), config.residual_scale)) if learned else None
        self.residual_scale = config.residual_scale

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        values: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:  # x: (B, T, d); mask, values, cache: see Attention
        x = x + self._scaled(self.attention(self.norm1(x), cos, sin, mask, values, cache), 0)
        return x + self._scaled(self.mlp(self.norm2(x)), 1)

    def _scaled(self, branch: Tensor, which: int) -> Tensor:
        if self.residual_scales is not None:
            return self.residual_scales[which % len(self.residual_scales)].to(branch.dtype) * branch
        return branch if self.residual_scale == 1.0 else self.residual_scale * branch


class GPT(Headed):
    config: GPTConfig
    cos: Tensor
    sin: Tensor
    window: Tensor  # (2,): tokens that long and short layers see

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.longest = config, vocab_size, config.context
        self.embed = nn.Embedding(vocab_size, config.width)
        self.norm_in = RMSNorm(config.width)
        self.blocks = nn.ModuleList(Block(config, config.value_table(i) is not None) for i in range(config.layers))
        self.norm_out = RMSNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, vocab_size, bias=config.bias)
        value_width = (config.kv_heads or config.width // config.head_width) * config.head_width
        self.value_embeds = nn.ModuleList(nn.Embedding(vocab_size, value_width) for _ in range(config.value_embeddings))
        self.skip_weights = nn.Parameter(torch.ones(len(config.skips))) if config.skips else None
        cos, sin = rotary_table(config.context, config.head_width, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # a tensor, so that a window that changes in training does not compile the model again
        self.register_buffer("window", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.set_window(-(-config.context // config.window_block))

    @torch.no_grad()
    def set_window(self, blocks: int) -> None:
        """Lets long layers see `blocks` blocks of config.window_block tokens, short ones half as many (at least one)."""
        self.window[0] = blocks * self.config.window_block
        self.window[1] = max(1, blocks // 2) * self.config.window_block

    @torch.no_grad()
    def extend(self, tokens: Tensor, states: States | None = None, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """See Model.extend."""
        past = Past(tokens, states, lengths, layers=len(self.blocks), longest=self.config.context)
        return self.logits(self.features(past.tokens, past=past)), past.states()

    @property
    def cap(self) -> tuple[float, Form]:
        return self.config.logit_cap, self.config.logit_cap_form

    def features(self, tokens: Tensor, documents: Tensor | None = None, past: Past | None = None) -> Tensor:
        """See Headed. With a past, the tokens are those that it adds."""
        T, pattern, skips = tokens.shape[1], self.config.window_pattern, self.config.skips
        windows = {kind: self.window["LS".index(kind)] for kind in set(pattern or "")}
        if past is None:
            cos, sin, own = self.cos[:T], self.sin[:T], None if documents is None else document_mask(documents)
            masks = {kind: window_mask(T, window) for kind, window in windows.items()}
            masks = {kind: mask if own is None else mask & own for kind, mask in masks.items()}
        else:
            (cos, sin), own = past.tables(self.cos, self.sin), past.mask()
            masks = {kind: past.mask(window) for kind, window in windows.items()}
        values = [table(tokens) for table in self.value_embeds]
        x = self.norm_in(self.embed(tokens))
        weights = () if self.skip_weights is None else self.skip_weights
        kept: dict[int, Tensor] = {}  # what later layers ask for
        for i, block in enumerate(self.blocks):
            for weight, (to, source) in zip(weights, skips, strict=True):
                if to == i:
                    x = x + weight.to(x.dtype) * kept[source]
            table = self.config.value_table(i)
            mask = masks[pattern[i % len(pattern)]] if pattern else own
            cache = None if past is None else partial(past.keep, i)
            x = block(x, cos, sin, mask, None if table is None else values[table], cache)
            if any(source == i for _, source in skips):
                kept[i] = x
        return self.norm_out(x)

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        for name, p in self.named_parameters():
            if name.endswith("gains") or name == "skip_weights":
                p.fill_(1.0)
            elif name.endswith("value_mix"):
                p.fill_(0.5)
            elif name.startswith("value_embeds"):
                p.normal_(generator=generator(name))
            elif name.endswith("residual_scales"):
                p.fill_(self.config.residual_scale)
            elif p.ndim < 2 or "proj" in name or name.startswith("head"):
                p.zero_()
            elif name.startswith("embed"):
                # tied, it also makes the logits: GPT-2's 0.02 lets them start small
                p.normal_(std=0.02 if self.config.tied else 1.0, generator=generator(name))
            else:
                p.normal_(std=(0.33 / p.shape[1]) ** 0.5, generator=generator(name))

    def qk_layers(self) -> list[QKLayer]:
        """The attention layers for QK-Clip; from now on they record their largest logits in training (a product more a layer).

        Raises ValueError with qk_norm: normalized queries and keys do not feel the scale of their weights.
        """
        if self.config.qk_norm:
            raise ValueError("QK-Clip needs a model with qk_norm = false: behind a norm, scaling W_q and W_k changes nothing")
        attentions = [block.attention for block in self.blocks if isinstance(block, Block)]
        for attention in attentions:
            attention.record_logits = True
        return [QKLayer(attention) for attention in attentions]

    def roles(self) -> dict[str, str]:
        head = {} if self.config.tied else {"head.weight": "head"}
        values = {"value_embeds.*": "embedding"} if self.config.value_embeddings else {}
        return {"*": "vector", "embed.weight": "embedding", **values, **head, "blocks.*.weight": "matrix"}
