"""Mamba-2 (arXiv 2405.21060): the layer, also for hybrids, and the model.

The layer's order: in_proj -> [z, x, B, C, dt] -> causal conv and SiLU over x, B, C -> SSD + D x -> norm(y · silu(z)) -> out_proj.
Details and first values as in the paper's code (state-spaces/mamba, modules/mamba2.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from muonlab.models.attention import RMSNorm
from muonlab.models.causal_conv import CausalConv
from muonlab.models.decoding import counted, newest, pads, without_pads
from muonlab.models.family import ModelConfig
from muonlab.models.head import Headed
from muonlab.models.ssd import at_least_float32, ssd, ssd_step

FLOAT32 = ("A_log", "dt_bias", "D")  # decays are sensitive: these parameters stay in float32
DT_RANGE, A_RANGE = (1e-3, 1e-1), (1.0, 16.0)  # of fresh layers: step sizes (log-uniform) and −A (uniform)


class Mamba2Config(Protocol):
    """What the layer needs to know of a model's config."""

    @property
    def width(self) -> int: ...
    @property
    def expand(self) -> int: ...
    @property
    def ssm_head_width(self) -> int: ...
    @property
    def ssm_state(self) -> int: ...
    @property
    def ssm_groups(self) -> int: ...
    @property
    def conv_width(self) -> int: ...
    @property
    def chunk(self) -> int: ...


def check_sizes(config: Mamba2Config) -> None:
    """Raises ValueError where heads and groups do not fit."""
    inner = config.expand * config.width
    if inner % config.ssm_head_width:
        raise ValueError(f"ssm_head_width: expected a divisor of expand · width, {inner}, got {config.ssm_head_width}")
    heads = inner // config.ssm_head_width
    if heads % config.ssm_groups:
        raise ValueError(f"ssm_groups: expected a divisor of the number of heads, {heads}, got {config.ssm_groups}")


class Mamba2Sizes(ModelConfig):
    """The sizes of Mamba-2's layers, for every family that has some."""

    width: PositiveInt = Field(768, description="model dimension d")
    expand: PositiveInt = Field(2, description="inner dimension of a Mamba-2 layer in units of width")
    ssm_head_width: PositiveInt = Field(64, description="dimensions per Mamba-2 head; divides expand · width")
    ssm_state: PositiveInt = Field(128, description="state size N: a head's state is ssm_head_width × N")
    ssm_groups: PositiveInt = Field(1, description="groups of Mamba-2 heads, each with its own B and C")
    conv_width: PositiveInt = Field(4, description="positions that Mamba-2's causal convolution sees")
    chunk: PositiveInt = Field(64, description="positions per chunk of the scan: speed and memory, not the result")

    @model_validator(mode="after")
    def _ssm_fits(self) -> Mamba2Sizes:
        check_sizes(self)
        return self


class MambaConfig(Mamba2Sizes):
    """Sizes of a Mamba-2. The defaults are those of mamba2-130m, but for the vocabulary, which follows the tokenizer."""

    family: Literal["mamba"] = "mamba"
    layers: PositiveInt = Field(24, description="number of blocks")
    context: PositiveInt = Field(1024, description="the training length; the model itself has no longest length")
    tied: bool = Field(True, description="the head's matrix is the embedding's")

    def build(self, vocab_size: int) -> Mamba:
        """The module, uninitialized; vocab_size is used where the config leaves it open."""
        return Mamba(self, self.vocab_size or vocab_size)


class MambaState(NamedTuple):
    """All that a layer remembers of the positions before."""

    conv: Tensor  # (B, conv_width − 1, d_inner + 2 g N): the newest inputs of the convolution
    ssm: Tensor  # (B, heads, head width, N), at least float32


class GatedNorm(nn.Module):
    """norm(y · silu(z)) ⊙ gains: an RMSNorm over each group of heads apart, in at least float32."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # (..., width)
        return _GatedNorm.apply(y, z, self.gains, self.groups)  # pyright: ignore[reportReturnType]


class _GatedNorm(torch.autograd.Function):
    """Computes y · silu(z) again for the gradient: three tensors as large as y less to keep."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, gains: Tensor, groups: int) -> Tensor:
        gated = (at_least_float32(y) * F.silu(at_least_float32(z))).unflatten(-1, (groups, -1))
        size = torch.linalg.vector_norm(gated, dim=-1, keepdim=True)
        scale = torch.rsqrt(size.square() / gated.shape[-1] + 1e-5)  # (..., groups, 1)
        ctx.save_for_backward(y, z, gains, scale)
        return (gated.mul_(scale).flatten(-2) * gains).to(y.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y, z, gains, scale), of_result = ctx.saved_tensors, at_least_float32(grads[0])
        y, z, shape = at_least_float32(y), at_least_float32(z), (*scale.shape[-2:-1], -1)
        gate = F.silu(z)
        normed = (y * gate).unflatten(-1, shape).mul_(scale)
        product = of_result * normed.flatten(-2)
        of_gains = product.flatten(0, -2).sum(0)
        along = torch.einsum("...gk,gk->...g", product.unflatten(-1, shape), at_least_float32(gains).view(shape))[..., None]
        of_gated = (of_result * gains).unflatten(-1, shape).addcmul_(normed, along, value=-1 / normed.shape[-1])
        of_gated = of_gated.mul_(scale).flatten(-2)
        of_y, of_gate = of_gated * gate, of_gated.mul_(y)
        of_z = torch.ops.aten.silu_backward(of_gate, z)
        return of_y.to(grads[0].dtype), of_z.to(grads[0].dtype), of_gains.to(gains.dtype), None


class Mamba2(nn.Module):
    """One layer: x (B, T, d) -> (B, T, d). `extend` and `step` also take and return what the layer remembers."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        check_sizes(config)
        inner, bc = config.expand * config.width, config.ssm_groups * config.ssm_state
        self.heads, self.groups, self.chunk = inner // config.ssm_head_width, config.ssm_groups, config.chunk
        self.blocks = (inner, inner, bc, bc, self.heads)  # rows of in_proj: z, x, B, C, dt
        conv = inner + 2 * bc
        self.in_proj = nn.Linear(config.width, sum(self.blocks), bias=False)
        self.conv = CausalConv(conv, config.conv_width)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(self.heads)), nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedNorm(inner, config.ssm_groups)
        self.out_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """x: (B, T, d); documents (B, T), rising along a row: each begins with an empty state."""
        return self.extend(x, documents=documents)[0]

    def extend(
        self, x: Tensor, state: MambaState | None = None, lengths: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """y (B, T, d) for positions x (B, T, d) that follow those of `state` (None: nothing), in parallel, and the new state.

        With lengths (B,), only the first lengths[b] positions of row b count."""
        if state is not None and x.shape[1] == 1 and lengths is None:
            y, state = self.step(x[:, 0], state)
            return y[:, None], state
        z, u, dt = self._projected(x)
        width = self.conv.weight.shape[2] - 1
        before = u.new_zeros(u.shape[0], width, u.shape[2]) if state is None else state.conv.to(u.dtype)
        u = torch.cat([before, u], dim=1)  # (B, conv_width − 1 + T, ...)
        x, B, C = self._heads(self.conv(u, documents))
        if lengths is not None:  # a pad does nothing to the state: exp(0 A) H + 0 · 0 Bᵀ
            pad = pads(x, lengths)[..., None]
            x, dt = x.masked_fill(pad[..., None], 0), dt.masked_fill(pad, 0)
        A, D = self._decays()
        y, ssm = ssd(x, dt, A, B, C, D, None if state is None else state.ssm, documents, chunk=self.chunk)
        return self.out_proj(self.norm(y.flatten(-2), z)), MambaState(newest(u, width, lengths), ssm)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """y (B, d) for the one position x (B, d) that follows those of `state`, by the recurrence, and the new state."""
        z, u, dt = self._projected(x)
        window = torch.cat([state.conv.to(u.dtype), u[:, None]], dim=1)  # (B, conv_width, ...)
        x, B, C = self._heads(self.conv(window)[:, 0])
        A, D = self._decays()
        y, ssm = ssd_step(x, dt, A, B, C, D, state.ssm)
        return self.out_proj(self.norm(y.flatten(-2), z)), MambaState(window[:, 1:], ssm)

    def empty_state(self, batch: int) -> MambaState:
        """What a layer remembers of nothing."""
        weight, (inner, _, bc, _, heads) = self.conv.weight, self.blocks
        conv = weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0])
        ssm = at_least_float32(weight.new_zeros(batch, heads, inner // heads, bc // self.groups))
        return MambaState(conv, ssm)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d) -> z (..., d_inner), the convolution's inputs (..., d_inner + 2 g N), step sizes dt (..., heads)."""
        inner, heads = self.blocks[0], self.blocks[-1]
        z, u, dt = self.in_proj(x).split([inner, sum(self.blocks) - inner - heads, heads], dim=-1)
        return z, u, F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))

    def _heads(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_inner + 2 g N) -> x (..., heads, head width), B and C (..., groups, N)."""
        x, B, C = u.split(list(self.blocks[1:4]), dim=-1)
        return x.unflatten(-1, (self.heads, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))

    def _decays(self) -> tuple[Tensor, Tensor]:
        """A and D (heads,), at least float32."""
        return -torch.exp(at_least_float32(self.A_log)), at_least_float32(self.D)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mamba2:
        """What .to(), .bfloat16() and .half() call: FLOAT32 follow to the device, but not to a type of fewer bits."""
        kept = {name: getattr(self, name).data for name in FLOAT32}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            p = getattr(self, name)
            if p.dtype != torch.promote_types(p.dtype, torch.float32):
                p.data = value.to(p.device)
        return self

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator], residuals: int) -> None:
        """Fresh weights, each parameter from its own stream; `residuals`: how many branches the model's residual stream adds up."""
        low, high = (math.log(dt) for dt in DT_RANGE)
        for name, p in self.named_parameters():
            if name == "A_log":
                p.uniform_(*A_RANGE, generator=generator(name)).log_()
            elif name == "dt_bias":  # softplus(dt_bias) = dt
                dt = p.uniform_(low, high, generator=generator(name)).exp()
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif name in ("D", "norm.gains"):
                p.fill_(1.0)
            else:  # torch's own: uniform within 1/sqrt(inputs)
                inputs = self.conv.weight.shape[2] if name.startswith("conv") else p.shape[1]
                bound = inputs**-0.5 / (math.sqrt(residuals) if name == "out_proj.weight" else 1)
                p.uniform_(-bound, bound, generator=generator(name))


class Block(nn.Module):
    """x + mamba(norm(x))."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm, self.mamba = RMSNorm(config.width), Mamba2(config)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:  # x: (B, T, d)
        return x + self.mamba(self.norm(x), documents)


class Mamba(Headed):
    """tokens (B, T) int64 -> logits (B, T, vocab) float32; position t sees the tokens 0 … t."""

    def __init__(self, config: MambaConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = RMSNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, vocab_size, bias=False)

    def features(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, documents)
        return self.norm_out(x)

    @torch.no_grad()
    def extend(
        self, tokens: Tensor, states: list[MambaState] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, list[MambaState]]:
        """See Model.extend. Reads in parallel; a single token for each row by the recurrence, which is faster."""
        tokens, short = without_pads(tokens, counted(tokens, lengths))
        if states is not None:
            rows = [len(state.ssm) for state in states if isinstance(state, MambaState)]
            if rows != [len(tokens)] * len(self.blocks):
                raise ValueError(
                    f"states: expected those of {len(tokens)} rows and {len(self.blocks)} layers of Mamba-2, "
                    f"got {len(rows)} layers of {sorted(set(rows))} rows; decoding.select picks rows"
                )
        x, new = self.embed(tokens), []
        for i, block in enumerate(self._blocks()):
            y, state = block.mamba.extend(block.norm(x), None if states is None else states[i], short)
            x = x + y
            new.append(state)
        return self.logits(self.norm_out(x)), new

    def step(self, tokens: Tensor, states: list[MambaState]) -> tuple[Tensor, list[MambaState]]:
        """Logits (B, vocab) for the next tokens (B,), one of each sequence, by the recurrence, and the new states."""
        x, new = self.embed(tokens), []
        for block, state in zip(self._blocks(), states, strict=True):
            y, state = block.mamba.step(block.norm(x), state)
            x = x + y
            new.append(state)
        return self.logits(self.norm_out(x)), new

    def empty_states(self, batch: int) -> list[MambaState]:
        """What the layers remember of nothing: where decoding without a prompt begins."""
        return [block.mamba.empty_state(batch) for block in self._blocks()]

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @torch.no_grad()
    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fresh weights, as the paper's code has them. `generator(name)` gives each parameter a random stream of its own, so that
        its first value depends on the seed, its name and its shape, and on no other parameter."""
        for i, block in enumerate(self._blocks()):
            block.norm.gains.fill_(1.0)
            block.mamba.initialize(lambda name, i=i: generator(f"blocks.{i}.mamba.{name}"), residuals=self.config.layers)
        self.norm_out.gains.fill_(1.0)
        self.embed.weight.normal_(std=0.02, generator=generator("embed.weight"))
        if self.head is not None:
            bound = self.config.width**-0.5
            self.head.weight.uniform_(-bound, bound, generator=generator("head.weight"))

    def roles(self) -> dict[str, str]:
        """{pattern: role} for whoever builds an optimizer."""
        head = {} if self.head is None else {"head.weight": "head"}
        return {"*": "vector", "embed.weight": "embedding", **head, "*.in_proj.weight": "matrix", "*.out_proj.weight": "matrix"}

    def specs(self) -> dict[str, dict[str, Any]]:
        """in_proj holds five matrices, one above the other."""
        return {"*.in_proj.weight": {"split": self._blocks()[0].mamba.blocks}}
