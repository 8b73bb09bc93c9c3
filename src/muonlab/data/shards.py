"""Token shards in modded-nanogpt's `.bin` format: 256 int32 of header (magic 20240520, version 1, count), then uint16 tokens."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from muonlab.data.tokenizer import Tokens
from muonlab.errors import InputError

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = HEADER_INTS * 4


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
