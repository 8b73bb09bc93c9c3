"""What a model family is. A file in this package that defines a `ModelConfig` with a `family` is found by itself, and
`[model] family = "..."` in a recipe chooses it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, WithJsonSchema, field_validator
from torch import Tensor, nn

from muonlab.names import choose
from muonlab.presets import presets


def extra(off: Any, **about: Any) -> Any:
    """A config key for something that is not there unless asked for: at `off` it is left out of the recipe's canonical form, so
    that runs keep their identity when a new extra comes into the world."""
    return Field(off, exclude_if=lambda value: value == off, **about)


def _needs_its_name(schema: dict[str, Any]) -> None:
    """A table without a family is a gpt's: every other has to name itself."""
    if schema["properties"].get("family", {}).get("default") not in (None, "gpt"):
        schema["required"] = ["family"]


class ModelConfig(BaseModel):
    """Sizes of a model. A family names itself, `family: Literal["..."] = "..."`, adds its keys, and builds its module."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_needs_its_name)

    preset: Annotated[str | None, WithJsonSchema({"type": "string", "enum": [*presets("model")]})] = Field(
        None, exclude=True, description="a model preset (see `muonlab presets`) that the other keys are laid over"
    )
    context: PositiveInt = Field(1024, description="tokens that a position can see, itself included; the training length")
    vocab_size: PositiveInt | None = Field(None, description="rows of embedding and head; default: the tokenizer's vocabulary")

    @field_validator("preset")
    @classmethod
    def _preset_known(cls, name: str | None) -> None:
        if name is not None:  # a recipe has put the sizes of a known one in its place
            choose("model preset", name, presets("model"))
            raise ValueError(f"{name!r} is for a recipe's [model] table; here, give the sizes themselves")

    @property
    def window_blocks(self) -> int | None:
        """The blocks of a whole context, for a model with sliding windows; None: it has none."""
        return None

    def build(self, vocab_size: int) -> Model:
        """The module, uninitialized; vocab_size is used where the config leaves it open."""
        raise NotImplementedError


class Model(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, vocab) float32; position t sees the tokens 0 … t. T ≤ config.context.

    With documents (B, T) int64, numbers that rise along a row, position t sees of these only the tokens of its own document. A
    family may do without: then it cannot be trained on packed data.
    """

    vocab_size: int
    longest: int | None = None  # tokens of a row that `extend` can read; None: there is no limit

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of predicting targets (B, T) from tokens (B, T), a scalar: what training calls. Targets of
        -100 do not count; there must be some that do."""
        logits = self(tokens) if documents is None else self(tokens, documents)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def keeps_documents_apart(self) -> bool:
        """Whether `forward` takes documents."""
        return "documents" in inspect.signature(self.forward).parameters

    def extend(self, tokens: Tensor, states: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Logits (B, T, vocab) float32 for tokens (B, T) that follow those of `states` (None: nothing), and the new states.

        They are the forward pass's, to rounding, whatever the parts that a text comes in. Rows are padded on the right: of row b
        the first lengths[b] tokens count (None: all T), and logits at pads mean nothing. No gradients. States are tensors with the
        rows first, in tuples, lists or NamedTuples: `decoding.select` picks or repeats rows. States once returned stay what they
        are: one can go on from them again. Raises ValueError for what does not fit, and beyond `longest`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot generate: its family has a forward pass, but no `extend`")

    def initialize(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fresh weights. `generator(name)` gives each parameter a random stream of its own, so that a parameter's first
        value depends on the seed, its name and its shape, and on no other parameter."""
        raise NotImplementedError

    def roles(self) -> Mapping[str, str]:
        """{pattern: role} for whoever builds an optimizer: matrix, embedding, head or vector; the last match wins."""
        raise NotImplementedError

    def specs(self) -> Mapping[str, Mapping[str, Any]]:
        """{pattern: fields of optim.MatrixSpec}: how matrices are stored (split), and what their norm is kept along (norm_axis)."""
        return {}

    def set_window(self, blocks: int) -> None:
        """Lets long windows see so many blocks of tokens. Called by schedule.windows, on models whose config has window_blocks."""
        raise NotImplementedError


@cache
def families() -> dict[str, type[ModelConfig]]:
    """name -> config class, for every file in this package that defines one, sorted by name."""
    package = __name__.rpartition(".")[0]
    found = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values():
            if inspect.isclass(value) and issubclass(value, ModelConfig) and "family" in value.model_fields:
                found[value.model_fields["family"].default] = value
    return dict(sorted(found.items()))
