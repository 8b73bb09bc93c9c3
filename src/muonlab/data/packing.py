"""Packing: whole documents in rows of `context` tokens, best fit first. Labels are shifted here, and for windows in loader.py.

A document of n tokens takes n - 1 positions of a row: its tokens but the last are inputs, its tokens but the first their
targets, so that no target belongs to another document. What is longer than a row is cut into pieces of a row's length; a piece
without a target that counts is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from muonlab.data.loader import IGNORED, Batch
from muonlab.data.prepared import Documents
from muonlab.errors import InputError
from muonlab.streams import stream_seed

WINDOW = 1 << 14  # documents that are packed together: rows are full to a fraction of a percent, and memory stays bounded

Pieces = NDArray[np.int64]  # (P, 3): document, first input token in it, inputs


@dataclass
class Waste:
    """What packing costs."""

    documents: int = 0
    rows: int = 0
    positions: int = 0  # in these rows, context each
    used: int = 0  # of them, by documents
    cut: int = 0  # documents longer than a row
    dropped: int = 0  # pieces of them without a target that counts
    all: bool = True  # whether these are all documents

    @property
    def share(self) -> float:
        """Of the positions, those that hold no document."""
        return 1 - self.used / self.positions if self.positions else 0.0

    def __str__(self) -> str:
        which = "" if self.all else "the first "
        text = f"{which}{self.documents:,} documents in {self.rows:,} rows, {100 * self.share:.2f} % of them empty"
        if self.cut:
            left = f", of which {self.dropped:,} are left out: they have no target" if self.dropped else ""
            text += f"; {self.cut:,} documents are longer than a row and cut into pieces{left}"
        return text


class PackedLoader:
    """Endless batches of `batch` packed rows. `state_dict` is the exact position: epoch, window of documents, row in it.

    Each epoch permutes the documents, packs them window by window, and shuffles a window's rows; a batch may begin in one epoch
    and end in the next, so that every document comes once an epoch.
    """

    def __init__(self, documents: Documents, *, context: int, batch: int, seed: int) -> None:
        self.documents, self.context, self.batch, self.seed = documents, context, batch, seed
        self._sizes = documents.sizes()
        if not len(documents) or not (self._sizes[:, 0] > np.maximum(1, self._sizes[:, 1])).any():
            raise InputError("data: no document to train on: prepare more, or with a lower --held-out")
        self.epoch, self.window, self.row = 0, 0, 0
        self._order = self._permuted(0)
        self._rows = self._packed()

    def next(self) -> Batch:
        rows = []
        while len(rows) < self.batch:
            if self.row == len(self._rows):
                self._advance()
                continue
            rows.append(self._rows[self.row])
            self.row += 1
        return packed_batch(self.documents, rows, self.context)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "window": self.window, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.window, self.row = state["epoch"], state["window"], state["row"]
        self._order = self._permuted(self.epoch)
        self._rows = self._packed()

    def waste(self, documents: int = 64 * WINDOW) -> Waste:
        """Of the first `documents` documents of the first epoch: a million take about two seconds."""
        order, total = self._permuted(0), Waste(all=len(self.documents) <= documents)
        for start in range(0, min(documents, len(order)), WINDOW):
            pack(self._sizes, order[start : start + WINDOW], self.context, total)
        return total

    def _advance(self) -> None:
        self.window, self.row = self.window + 1, 0
        if self.window * WINDOW >= len(self._order):
            self.epoch, self.window = self.epoch + 1, 0
            self._order = self._permuted(self.epoch)
        self._rows = self._packed()

    def _permuted(self, epoch: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64(stream_seed(self.seed, "data", epoch))).permutation(len(self.documents))

    def _packed(self) -> list[Pieces]:
        """The rows of the current window, in their order."""
        rows = pack(self._sizes, self._order[self.window * WINDOW : (self.window + 1) * WINDOW], self.context)
        random = np.random.Generator(np.random.PCG64(stream_seed(self.seed, "data", self.epoch, self.window)))
        return [rows[i] for i in random.permutation(len(rows))]


def packed_validation_batches(documents: Documents, *, context: int, batch: int, tokens: int) -> list[Batch]:
    """The first rows of the validation documents, `tokens` // context of them, in batches of at most `batch`: the same for every
    run. Raises InputError where there are fewer."""
    sizes, wanted = documents.sizes(), tokens // context
    rows: list[Pieces] = []
    for start in range(0, len(documents), WINDOW):
        rows += pack(sizes, np.arange(start, min(start + WINDOW, len(documents))), context)
        if len(rows) >= wanted:
            break
    if not rows:
        raise InputError("data: no document is held out: prepare with a larger --held-out, or name data.validation_files")
    if not 1 <= wanted <= len(rows):
        raise InputError(
            f"train.eval_tokens: expected {context} (one row) to {len(rows) * context} (all {len(documents)} validation documents, "
            f"packed), got {tokens}"
        )
    return [packed_batch(documents, rows[i : min(i + batch, wanted)], context) for i in range(0, wanted, batch)]


def pack(sizes: NDArray[np.int64], chosen: NDArray[np.int64], context: int, waste: Waste | None = None) -> list[Pieces]:
    """Rows of pieces: the longest first, each into the fullest row that still has room for it.

    sizes: see Documents.sizes; chosen (D,): the documents to pack. Counts into `waste`.
    """
    pieces, dropped = _cut(sizes[chosen], chosen, context)
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # rows by the positions that they have left
    some = 0  # bit n: some row has n left
    lengths = pieces[:, 2]
    for p in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[p])
        fitting = some >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = room[left].pop()
            if not room[left]:
                some ^= 1 << left
        else:
            left, row = context, len(rows)
            rows.append([])
        rows[row].append(p)
        if left > length:
            room.setdefault(left - length, []).append(row)
            some |= 1 << (left - length)
    if waste is not None:
        waste.documents, waste.rows = waste.documents + len(chosen), waste.rows + len(rows)
        waste.positions, waste.used = waste.positions + len(rows) * context, waste.used + int(lengths.sum())
        waste.cut, waste.dropped = waste.cut + int((sizes[chosen, 0] - 1 > context).sum()), waste.dropped + dropped
    return [pieces[row] for row in rows]


def _cut(sizes: NDArray[np.int64], chosen: NDArray[np.int64], context: int) -> tuple[Pieces, int]:
    """The documents as pieces of at most `context` inputs, and how many pieces are left out because no target in them counts."""
    inputs = sizes[:, 0] - 1
    count = -(-inputs // context)
    owner = np.repeat(np.arange(len(chosen)), count)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)) * context
    length = np.minimum(context, inputs[owner] - start)
    counts = start + length >= sizes[owner, 1]  # the last target of the piece is token start + length
    return np.stack([chosen[owner], start, length], axis=1)[counts], int((~counts).sum())


def packed_batch(documents: Documents, rows: list[Pieces], context: int) -> Batch:
    """Rows of pieces -> inputs, targets and documents, (B, context) int64 each.

    The one place where packed labels are shifted. What no document fills is a document of its own, of zeros that no target follows.
    """
    inputs, targets = (np.full((len(rows), context), empty, dtype=np.int64) for empty in (0, IGNORED))
    ids = np.empty((len(rows), context), dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for order, (document, start, length) in enumerate(row.tolist()):
            tokens, first = documents.tokens(document)[start : start + length + 1], documents.masked(document)
            here = slice(at, at + length)
            inputs[r, here], targets[r, here], ids[r, here] = tokens[:-1], tokens[1:], order
            targets[r, at : at + min(length, max(0, first - start - 1))] = IGNORED
            at += length
        ids[r, at:] = len(row)
    return Batch(*(torch.from_numpy(a) for a in (inputs, targets, ids)))
