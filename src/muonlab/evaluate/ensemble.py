"""Several models as one: their logits averaged. (Models that vote answer one after the other: see gsm8k.evaluate.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import InputError
from muonlab.models.family import Model


class Averaged(Model):
    """Logits are the mean of the models' logits: the distribution is the normalized geometric mean of theirs.

    Raises InputError for models with different vocabularies, and for fewer than two. That one tokenizer is theirs all is for the
    caller to check.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        sizes = [model.vocab_size for model in models]
        if len(models) < 2 or len(set(sizes)) > 1:
            raise InputError(f"ensemble: expected at least two models with one vocabulary, got vocabularies of {sizes} tokens")
        self.models, self.vocab_size = nn.ModuleList(models), sizes[0]
        self.longest = min((model.longest for model in models if model.longest is not None), default=None)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:  # (B, T) -> (B, T, vocab)
        return torch.stack([model(tokens, documents) for model in self.models]).mean(0)

    def extend(self, tokens: Tensor, states: list[Any] | None = None, lengths: Tensor | None = None) -> tuple[Tensor, list[Any]]:
        """See Model.extend. states: those of each model."""
        each: list[Any] = list(self.models)
        found = [model.extend(tokens, None if states is None else states[i], lengths) for i, model in enumerate(each)]
        return torch.stack([logits for logits, _ in found]).mean(0), [state for _, state in found]
