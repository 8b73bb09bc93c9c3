"""What the tests of several clients share: a model with every role, batches for it, and a comparison to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = 11


class Tiny(nn.Module):
    """Token -> next token. An embedding, two hidden matrices of one shape, a norm, biases and a head."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.lm_head(self.norm(x))


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens), (tokens * 3 + 1) % VOCABULARY)


def batches(count: int, size: int = 16, device: str = "cpu") -> list[Tensor]:
    """Always the same: a longer list begins as a shorter one does."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (size,), generator=generator).to(device) for _ in range(count)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: list[Tensor]) -> None:
    for batch in tokens:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Equal to the bit, name by name."""
    weights, others = dict(one.named_parameters()), dict(other.named_parameters())
    assert weights.keys() == others.keys()
    different = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert not different
