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

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, vocab)
        return torch.stack([model(tokens) for model in self.models]).mean(0)

    def extend(self, tokens: Tensor, states: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """Logits (B, T, vocab) for tokens (B, T) that follow those of `states` (None: nothing), and the models' new states."""
        each: list[Any] = list(self.models)
        found = [model.extend(tokens, None if states is None else states[i]) for i, model in enumerate(each)]
        return torch.stack([logits for logits, _ in found]).mean(0), [state for _, state in found]
