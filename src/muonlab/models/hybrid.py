"""Mamba-2, attention, MLPs and recursive blocks in any order, given by a pattern with a letter for each layer.

    M  x + mamba(norm(x))          *  x + attention(norm(x))          -  x + mlp(norm(x))          R  see recursive.py

The parts are those of the other families: Mamba-2's layer, the GPT's attention and ReLU² MLP (without biases), and its embedding,
norms and soft-capped logits. A layer is one branch, as in the patterns of Nemotron-H (arXiv 2504.03624).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from muonlab.models.attention import Attention, RMSNorm, document_mask, rotary_table
from muonlab.models.decoding import Past, States
from muonlab.models.gpt import MLP
from muonlab.models.head import Headed
from muonlab.models.mamba import Mamba2, Mamba2Sizes
from muonlab.models.multiscale import keys_of, new_keys
from muonlab.models.recursive import RecursiveBlock, half_life
from muonlab.models.softcap import Form

KINDS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "R": "recursive block"}


class HybridConfig(Mamba2Sizes):
    """Sizes of a hybrid."""

    family: Literal["hybrid"] = "hybrid"
    layers: PositiveInt = Field(12, description="number of layers")
    pattern: str = Field("M*", description="a letter for each layer, repeated: M (Mamba-2), * (attention), - (MLP), R (recursive)")
    mlp_ratio: PositiveInt = Field(4, description="hidden width of MLPs in units of width")
    tied: bool = Field(True, description="the head's matrix is the embedding's")
    logit_cap: float = Field(15.0, gt=0, description="logits are cap·x/sqrt(x² + cap²)")

    head_width: PositiveInt = Field(128, description="dimensions per attention head; divides width, a multiple of 4")
    rope_base: float = Field(1024.0, gt=1, description="RoPE frequencies run from 1 to 1/rope_base")
    attention_scale: float = Field(0.12, gt=0, description="softmax scale of queries and keys, which are normalized")

    passes: PositiveInt = Field(3, description="how often a recursive block's MLP works on each token")
    share_passes: bool = Field(True, description="one MLP for all passes of a recursive block, or one for each pass")
    scales: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), min_length=1, description="tokens per key of a recursive block's attention: 1, then growing blocks"
    )

    @model_validator(mode="after")
    def _layers_fit(self) -> HybridConfig:
        unknown = sorted(set(self.pattern) - set(KINDS))
        if unknown or not self.pattern:
            known = ", ".join(f"{letter} ({kind})" for letter, kind in KINDS.items())
            raise ValueError(f"pattern: expected the letters {known}, got {', '.join(map(repr, unknown)) or 'none'}")
        if len(self.pattern) > self.layers:
            count = len(self.pattern)
            raise ValueError(f"pattern: expected at most layers = {self.layers} letters, got {count}: set layers = {count}")
        if self.width % self.head_width or self.head_width % 4:
            raise ValueError(f"head_width: expected a divisor of width, {self.width}, and a multiple of 4, got {self.head_width}")
        if self.scales[0] != 1 or any(a >= b for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales: expected 1 and then growing numbers of tokens such as [1, 2, 4], got {list(self.scales)}")
        return self

    @property
    def kinds(self) -> str:
        """The letter of every layer."""
        return (self.pattern * self.layers)[: self.layers]

    # What attention and MLP also ask for, and hybrids leave as they are:

    @property
    def bias(self) -> bool:
        return False

    @property
    def kv_heads(self) -> int | None:
        return None

    @property
    def qk_norm(self) -> bool:
        return True

    def build(self, vocab_size: int) -> Hybrid:
        return Hybrid(self, self.vocab_size or vocab_size)


class Layer(nn.Module):
    """x + branch(norm(x))."""

    def __init__(self, width: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = RMSNorm(width), branch

    def forward(self, x: Tensor, *about: Tensor | None) -> Tensor:  # x: (B, T, d); about: what else the branch asks for
        return x + self.branch(self.norm(x), *about)

    def extend(self, x: Tensor, past: Past, layer: int) -> Tensor:
        """The same for the new tokens of `past`, whose `layer` this is, of Mamba-2."""
        assert isinstance(self.branch, Mamba2)
        y, past.layers[layer] = self.branch.extend(self.norm(x), past.layers[layer] or None, past.lengths)
        return x + y


def layer_of(kind: str, config: HybridConfig) -> nn.Module:
    if kind == "R":
        return RecursiveBlock(config)
    branch = {"M": Mamba2, "*": Attention, "-": MLP}[kind]
    return Layer(config.width, branch(config))


class Hybrid(Headed):
    cos: Tensor
    sin: Tensor

    def __init__(self, config: HybridConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.longest = config.context if set(config.kinds) & set("*R") else None
        self.embed = nn.Embedding(vocab_size, config.width)
        self.norm_in = RMSNorm(config.width)
        self.blocks = nn.ModuleList(layer_of(kind, config) for kind in config.kinds)
        self.norm_out = RMSNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, vocab_size, bias=False)
        cos, sin = rotary_table(config.context, config.head_width, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def extend(self, tokens: Tensor, states: States | None = None, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """See Model.extend."""
        past = Past(tokens, states, lengths, layers=len(self.blocks), longest=self.longest)
        return self.logits(self._extended(past)), past.states()

    @property
    def cap(self) -> tuple[float, Form]:
        return self.config.logit_cap, "rsqrt"

    def features(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        T, kinds = tokens.shape[1], self.config.kinds
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.norm_in(self.embed(tokens))
        keys = keys_of(T, self.config.scales, cos, sin, documents) if "R" in kinds else None
        mask = None if documents is None else document_mask(documents)
        about = {"M": (documents,), "*": (cos, sin, mask), "-": ()}
        memory = torch.zeros_like(x)
        for kind, block in zip(kinds, self.blocks, strict=True):
            if kind == "R":
                x, memory = block(x, memory, cos, sin, keys, documents)
            else:
                x = block(x, *about[kind])
        return self.norm_out(x)

    def _extended(self, past: Past) -> Tensor:
        """The same for the new tokens of `past`."""
        kinds, x = self.config.kinds, self.norm_in(self.embed(past.tokens))
        memory = torch.zeros_like(x)
        cos, sin = past.tables(self.cos, self.sin) if self.longest else (self.cos, self.sin)
        mask = past.mask() if "*" in kinds else None
        keys = new_keys(past, self.config.scales, self.cos, self.sin) if "R" in kinds else None
        for i, (kind, block) in enumerate(zip(kinds, self.blocks, strict=True)):
            if isinstance(block, RecursiveBlock):
                assert keys is not None
                x, memory = block.extend(x, memory, cos, sin, keys, past, i)
            elif kind == "M" and isinstance(block, Layer):
                x = block.extend(x, past, i)
            else:
                x = block(x, cos, sin, mask, None, partial(past.keep, i)) if kind == "*" else block(x)
        return self.norm_out(x)

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        """Mamba-2's layers as they say themselves, the rest as in the GPT. Gates begin even, and a memory keeps half of itself
        through a recursive block."""
        residuals = sum(2 if kind == "R" else 1 for kind in self.config.kinds)
        of_mamba = set()
        for path, module in self.named_modules():
            if isinstance(module, Mamba2):
                module.initialize(lambda name, path=path: generator(f"{path}.{name}"), residuals)
                of_mamba |= {f"{path}.{name}" for name, _ in module.named_parameters()}
        for name, p in self.named_parameters():
            if name in of_mamba:
                continue
            if name.endswith("gains"):
                p.fill_(1.0)
            elif name.endswith("write"):
                p.fill_(half_life(self.config.passes))
            elif name.startswith("embed"):
                p.normal_(std=0.02 if self.config.tied else 1.0, generator=generator(name))
            elif name.endswith(("read", "proj.weight", "depth.weight", "fuse.weight")) or name.startswith("head"):
                p.zero_()
            else:
                p.normal_(std=(0.33 / p.shape[1]) ** 0.5, generator=generator(name))

    def roles(self) -> dict[str, str]:
        kinds = self.config.kinds
        roles = {"*": "vector", "embed.weight": "embedding", "blocks.*.weight": "matrix"}
        if self.head is not None:
            roles["head.weight"] = "head"
        if "M" in kinds or "R" in kinds:
            roles["*.conv.weight"] = "vector"
        if "R" in kinds:  # gates: a few rows, each a direction of its own
            roles["*.fuse.weight"] = "vector"
        if "R" in kinds and self.config.passes > 1:
            roles["*.depth.weight"] = "vector"
        return roles

    def specs(self) -> dict[str, dict[str, Any]]:
        """in_proj of Mamba-2 holds five matrices, one above the other."""
        mambas = [module for module in self.modules() if isinstance(module, Mamba2)]
        return {"*.in_proj.weight": {"split": mambas[0].blocks}} if mambas else {}
