"""What generation needs of a model: going on from what it has read, a few tokens at a time, rows of different lengths together.

`model.extend(tokens, states, lengths)` gives the logits that a forward pass over everything read so far would give at the new
positions. States are values: whoever keeps old ones can go on from them a second time, another way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class KV(NamedTuple):
    """The keys and values of one attention layer. What lies behind a row's last token is room, and holds anything finite."""

    keys: Tensor  # (B, slots, kv heads, head width), normalized and rotated
    values: Tensor


class States(NamedTuple):
    """All that a model with attention remembers of B rows."""

    length: Tensor  # (B,) int64, on the CPU: tokens read
    written: Tensor  # (B,) int64, on the CPU: tokens in the buffers of `layers`, more where someone else has gone on from here
    layers: tuple[Any, ...]  # what each layer remembers: KV, MambaState, ... or () for nothing


def select(states: Any, rows: Tensor | Sequence[int]) -> Any:
    """The states of these rows (n,), any number of times each and in any order: row i of the result goes on from row rows[i].

    For every model's states, and lists of them. The result shares no memory with them.
    """
    index = torch.as_tensor(rows, dtype=torch.int64)
    if isinstance(states, Tensor):
        return states.index_select(0, index.to(states.device))
    if not isinstance(states, (list, tuple)):
        raise TypeError(f"states: expected what a model's extend returned, got {type(states).__name__}")
    parts = [select(part, index) for part in states]
    return type(states)(*parts) if hasattr(states, "_fields") else type(states)(parts)


def counted(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """How many tokens of each row of tokens (B, T) count: (B,) int64, on the CPU. Raises ValueError for what does not fit."""
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens: expected (B, T) with at least one row and one token, got {tuple(tokens.shape)}")
    rows, columns = tokens.shape
    if lengths is None:
        return torch.full((rows,), columns)
    found = lengths.detach().to("cpu", torch.int64)
    if found.shape != (rows,) or int(found.min()) < 0 or int(found.max()) > columns:
        raise ValueError(f"lengths: expected a number of tokens from 0 to {columns} for each of {rows} rows, got {found.tolist()}")
    return found


def without_pads(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
    """tokens (B, T) with 0 at every pad, and what `counted` gave, on their device; None instead where nothing is a pad."""
    if int(lengths.min()) == tokens.shape[1]:
        return tokens, None
    lengths = lengths.to(tokens.device)
    return tokens.masked_fill(pads(tokens, lengths), 0), lengths


def pads(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) bool: where x (B, T, ...) has a pad, with the lengths (B,) of its rows."""
    return torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


def newest(x: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The last `count` of each row of x (B, count + T, ...), of whose last T positions the first lengths[b] count (None: all)."""
    if lengths is None:
        return x[:, x.shape[1] - count :]
    index = lengths[:, None] + torch.arange(count, device=x.device)
    return x.take_along_dim(index.view(*index.shape, *(1,) * (x.ndim - 2)), dim=1)


class Slots(NamedTuple):
    """Where a layer's cache puts what is new: entry `entries[i]` of row `rows[i]` goes to slot `slots[i]`."""

    rows: Tensor  # (N,), like entries and slots
    entries: Tensor
    slots: Tensor
    total: int  # slots in use after that, in the longest row
    most: int  # slots of a full context


class Past:
    """One call of `extend`: T new columns of tokens, of which the first lengths[b] of row b follow its start[b] earlier ones.

    Raises ValueError for tokens, states and lengths that do not fit, and for more than `longest` tokens in a row. Nothing that is
    computed at pads gets into a cache: they are read as token 0, at the row's last position.
    """

    def __init__(self, tokens: Tensor, states: States | None, lengths: Tensor | None, *, layers: int, longest: int | None) -> None:
        rows, columns = tokens.shape if tokens.ndim == 2 else (0, 0)
        new, self.longest, self.device = counted(tokens, lengths), longest or sys.maxsize, tokens.device
        self.tokens, self.lengths = without_pads(tokens, new)
        if states is None:
            states = States(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), ((),) * layers)
        if not isinstance(states, States):
            raise ValueError(f"states: expected what this model's extend returned, got {type(states).__name__}")  # noqa: TRY004
        if len(states.length) != rows or len(states.layers) != layers:
            raise ValueError(
                f"states: expected those of {rows} rows and {layers} layers, got {len(states.length)} and {len(states.layers)}; "
                "decoding.select picks rows"
            )
        self.start, self.end = states.length, states.length + new
        if int(self.end.max()) > self.longest:
            row = int(self.end.argmax())
            raise ValueError(
                f"tokens: expected at most {longest} in a row, the model's context, got {int(self.start[row])} read and "
                f"{int(new[row])} more: stop there, or begin again with the newest ones"
            )
        self.layers = list(states.layers)
        # Buffers are written in place, behind what every row has read. If someone has already done so, this call takes copies.
        self.copies = not torch.equal(states.written, states.length)
        self.written = self.end.clone() if self.copies else states.written.copy_(self.end)
        column = torch.arange(columns)
        self.counts = column < new[:, None]  # (B, T), on the CPU, like its positions
        self.places = (self.start[:, None] + column).minimum((self.end - 1).clamp(min=0)[:, None])
        self.position = self.places.to(self.device)
        self.slots = self.put(self.places, self.counts, total=int(self.end.max()), most=self.longest)

    def tables(self, *tables: Tensor) -> tuple[Tensor, ...]:
        """Rows of each table (context, n) for the new tokens: (B, T, n)."""
        return tuple(table[self.position] for table in tables)

    def mask(self, window: Tensor | None = None) -> Tensor | None:
        """What each new token sees, (B, 1, T, slots) bool: its past, or the `window` (0-d) newest positions of it. None: all of
        the past, where that is as many slots as there are columns."""
        if window is None and not self.start.any() and self.slots.total == self.position.shape[1]:
            return None
        seen, slot = self.position[:, None, :, None], torch.arange(self.slots.total, device=self.device)
        return slot <= seen if window is None else (slot <= seen) & (slot > seen - window)

    def put(self, slots: Tensor, counts: Tensor, *, total: int, most: int) -> Slots:
        """A plan that puts entry (b, i) of new keys and values into slots[b, i] where it counts; both (B, entries), on the CPU."""
        rows, entries = counts.nonzero(as_tuple=True)
        places = (index.to(self.device) for index in (rows, entries, slots[rows, entries]))
        return Slots(*places, total=total, most=most)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> KV:
        """Puts keys and values (B, T, kv heads, head width) into the layer's cache and gives all in it, (B, slots, ...)."""
        self.layers[layer] = self.cached(self.layers[layer], KV(keys, values), self.slots)
        return KV(*(buffer[:, : self.slots.total] for buffer in self.layers[layer]))

    def cached(self, old: KV | tuple[()], new: KV, at: Slots) -> KV:
        """A cache with the new entries in it. Room grows by doubling, so that n tokens one by one copy less than 2n."""
        buffers = []
        for i, entries in enumerate(new):
            entries = entries.to(new.values.dtype)  # under autocast, keys are float32 behind their norm
            buffer = old[i] if old else entries[:, :0]
            if buffer.shape[1] < at.total:
                room = min(at.most, max(at.total, 2 * buffer.shape[1]))
                buffer = torch.cat([buffer, buffer.new_zeros(len(buffer), room - buffer.shape[1], *buffer.shape[2:])], dim=1)
            elif self.copies:
                buffer = buffer.clone()
            buffers.append(buffer.index_put_((at.rows, at.slots), entries[at.rows, at.entries]))
        return KV(*buffers)

    def states(self) -> States:
        """What the model remembers after the call."""
        return States(self.end, self.written, tuple(self.layers))
