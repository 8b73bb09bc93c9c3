"""Batches of windows. An epoch visits no window twice, in an order that depends on the seed alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from muonlab.data.tokenizer import Tokens
from muonlab.errors import InputError
from muonlab.streams import stream_seed

IGNORED = -100  # a target that does not count; cross_entropy's own default


class Batch(NamedTuple):
    """Rows of tokens (B, T) int64. targets: the inputs shifted by one, IGNORED where no loss counts. documents: for packed rows the
    number of each token's document in its row, from 0, rising; None: a row is a window of one text."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None

    def counted(self) -> int:
        """Targets that count."""
        return self.targets.numel() if self.documents is None else int((self.targets != IGNORED).sum())

    def split(self, parts: int) -> list[Batch]:
        """Equal parts by rows."""
        of_each = (t.chunk(parts) for t in self if t is not None)
        return [Batch(*tensors) for tensors in zip(*of_each, strict=True)]


class Loader:
    """Endless batches of `batch` windows of `context` tokens. `state_dict` is the exact position.

    Each epoch cuts the segments into windows at a fresh random phase and permutes them; windows that do not fill a last
    batch are left to chance in the next epoch. Raises InputError if the segments hold less than one batch.
    """

    def __init__(self, segments: list[Tokens], *, context: int, batch: int, seed: int) -> None:
        self.segments, self.context, self.batch, self.seed = segments, context, batch, seed
        # The phase may cost each segment one window, and an epoch must fill a batch whatever the phase.
        always = sum(max(0, (len(s) - context) // context) for s in segments)
        if always < batch:
            raise InputError(
                f"data: the corpus is shorter than a batch: {sum(map(len, segments))} training tokens, and a batch of {batch} × "
                f"{context} needs {(batch + 1) * context}. Lower train.batch or model.context, or add text."
            )
        self.epoch, self.index = 0, 0
        self._starts = self._shuffled(0)

    def next(self) -> Batch:
        if (self.index + 1) * self.batch > len(self._starts):
            self.epoch, self.index = self.epoch + 1, 0
            self._starts = self._shuffled(self.epoch)
        rows = self._starts[self.index * self.batch : (self.index + 1) * self.batch]
        self.index += 1
        return to_batch([self.segments[s][start : start + self.context + 1] for s, start in rows])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]
        self._starts = self._shuffled(self.epoch)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """(segment, start) of every window of an epoch, in its order: (windows, 2) int64."""
        random = np.random.Generator(np.random.PCG64(stream_seed(self.seed, "data", epoch)))
        starts = []
        for s, segment in enumerate(self.segments):
            phase = int(random.integers(0, self.context))
            first = np.arange(phase, len(segment) - self.context, self.context, dtype=np.int64)
            starts.append(np.stack([np.full_like(first, s), first], axis=1))
        return random.permutation(np.concatenate(starts))


def validation_batches(segments: list[Tokens], *, context: int, batch: int, tokens: int) -> list[Batch]:
    """The first `tokens` validation tokens as batches of at most `batch` windows: the same for every run.

    Raises InputError where the corpus holds out fewer.
    """
    windows = tokens // context
    found = [segment[i : i + context + 1] for segment in segments for i in range(0, len(segment) - context, context)]
    if windows < 1 or windows > len(found):
        raise InputError(
            f"train.eval_tokens: expected {context} (one window) to {len(found) * context} (all validation tokens), got {tokens}"
        )
    return [to_batch(found[i : min(i + batch, windows)]) for i in range(0, windows, batch)]


def to_batch(windows: list[Tokens]) -> Batch:
    """Windows of T + 1 tokens -> inputs and targets. The one place where the labels of windows are shifted."""
    both = torch.from_numpy(np.stack(windows).astype(np.int64))
    return Batch(both[:, :-1], both[:, 1:])
