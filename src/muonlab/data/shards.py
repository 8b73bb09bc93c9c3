"""Token shards in modded-nanogpt's `.bin` format: 256 int32 of header (magic 20240520, version 1, count), then uint16 tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from muonlab.data.tokenizer import Tokens
from muonlab.errors import InputError

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = HEADER_INTS * 4
_AT_A_TIME = 1 << 22  # tokens that are looked at for ends
_LONGEST = 1 << 27  # tokens without an end that are put together from shards


def read_shard(path: str | Path) -> Tokens:
    """The tokens of a shard, memory-mapped and read-only. Raises InputError for a file that is not a whole shard."""
    path = Path(path)
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise InputError(f"{path}: expected a token shard (a header of {HEADER_BYTES} bytes), got a file of {size} bytes")
    magic, version, count = (int(x) for x in np.fromfile(path, dtype="<i4", count=3))
    if magic != MAGIC:
        raise InputError(f"{path}: expected magic number {MAGIC} at its start, got {magic}: not a modded-nanogpt token shard")
    if version != VERSION:
        raise InputError(f"{path}: expected shard version {VERSION}, got {version}")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        raise InputError(f"{path}: expected {count} tokens ({expected} bytes) by its header, got {size} bytes: fetch it again")
    if count == 0:
        return np.empty(0, dtype=np.uint16)
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def documents(path: Path, end: int, before: Iterable[Path] = (), after: Iterable[Path] = ()) -> Iterator[Tokens]:
    """The documents that begin in a shard of a stream of shards: (N,) uint16 each, beginning with `end`, and ending with it if
    that is known.

    `end` parts documents: whether a writer puts it before each (llm.c, modded-nanogpt) or after each gives the same ones. Where the
    stream begins, a document does, too. What is cut by the end of a shard goes on in those after it, and one that began in those
    before it is theirs; the stream's last one may have no end.
    """
    tokens = read_shard(path)
    if not len(tokens):
        return
    if end >= 2**16:
        raise InputError(
            f"{path}: expected a --tokenizer whose end of a document is below 65,536, as a shard's tokens are, got {end}"
        )
    earlier = next((shard for shard in map(read_shard, before) if len(shard)), None)
    begins = 0 if earlier is None or earlier[-1] == end else None  # where the inner tokens of a document begin
    for here in range(0, len(tokens), _AT_A_TIME):
        for at in map(int, here + np.flatnonzero(tokens[here : here + _AT_A_TIME] == end)):
            if begins is not None and at > 0:  # an end at 0 is the first document's beginning
                yield _from(tokens[: at + 1], begins, end)
            begins = at + 1
    if begins is not None and begins < len(tokens):
        head, rest = _from(tokens, begins, end), list(_rest(after, end))
        yield np.concatenate([head, *rest]) if rest else head


def _from(tokens: Tokens, begins: int, end: int) -> Tokens:
    """The tokens from `begins` on, after an end: the one that stands there, or one of its own."""
    return tokens[begins - 1 :] if begins else np.concatenate([np.array([end], tokens.dtype), tokens])


def _rest(shards: Iterable[Path], end: int) -> Iterator[Tokens]:
    """What the shards go on with, up to the first `end`, which is the last token then."""
    size = 0
    for path in shards:
        tokens = read_shard(path)
        for here in range(0, len(tokens), _AT_A_TIME):
            ends = np.flatnonzero(tokens[here : here + _AT_A_TIME] == end)
            if len(ends):
                yield tokens[: here + int(ends[0]) + 1]
                return
        yield tokens
        size += len(tokens)
        if size > _LONGEST:
            raise InputError(
                f"{path}: no document ends in {size:,} tokens: expected the token {end}, the end of a document of --tokenizer; "
                "name the tokenizer that the shards were written with"
            )


def follows(first: Path, second: Path) -> bool:
    """Whether the shard `second` goes on where `first` ends: they were given so, and their names, where both end in a number, are
    the same but for numbers that follow one another."""
    a, b = (re.fullmatch(r"(.*?)(\d+)", path.stem) for path in (first, second))
    return not (a and b) or (first.parent == second.parent and a[1] == b[1] and int(b[2]) == int(a[2]) + 1)


def write_shard(path: str | Path, tokens: Tokens) -> None:
    """Writes a shard: to a temporary file, then renamed, so that no half-written shard is ever seen.

    tokens (N,): integers in 0 … 65535. Raises ValueError for others.
    """
    path, tokens = Path(path), np.asarray(tokens)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"expected integer tokens (N,), got {tokens.dtype} {tokens.shape}")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**16:
        raise ValueError(f"expected tokens in 0 … 65535, got {tokens.min()} … {tokens.max()}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2").tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
