"""The end of a language model, written once: features -> head -> soft cap -> loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.models.cross_entropy import head_loss
from muonlab.models.family import Model
from muonlab.models.softcap import Form, soft_cap


class Headed(Model):
    """A model that says what its features are. `head` makes its logits, or, where that is None, the matrix of the embedding."""

    embed: nn.Embedding
    head: nn.Linear | None

    def features(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """What the head makes logits of: (B, T, d)."""
        raise NotImplementedError

    @property
    def cap(self) -> tuple[float, Form]:
        """The bound on logits, and its form (see softcap)."""
        return 1.0, "none"

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.logits(self.features(tokens, documents))

    def logits(self, x: Tensor) -> Tensor:  # (B, T, d) -> (B, T, vocab) float32
        logits = F.linear(x, self.embed.weight) if self.head is None else self.head(x)
        return soft_cap(logits.float(), *self.cap)

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        weight, bias = (self.embed.weight, None) if self.head is None else (self.head.weight, self.head.bias)
        return head_loss(self.features(tokens, documents), weight, bias, targets, *self.cap)
