"""Compressed files read as a stream, and two bounds on what is held: of what a file may unpack to, and of one row of it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from muonlab.errors import InputError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ROW_LIMIT = 256 << 20  # bytes, or characters of text: of one row, which has to be in memory whole
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # what decompression raises, and an OSError without errno
_BUFFER = 1 << 18


def compression_of(start: bytes) -> str | None:
    """By a file's first bytes (11 are enough), whatever its name: one of COMPRESSIONS."""
    if start.startswith(b"\x1f\x8b"):
        return ".gz"
    if start[:3] == b"BZh" and start[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):  # a block, or the end of an empty file
        return ".bz2"
    if start.startswith(b"\xfd7zXZ\0"):
        return ".xz"
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        return ".zst"
    return None


def decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """The content of an open file; None: as it is."""
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))  # pyright: ignore[reportArgumentType]
    if compression == ".bz2":
        return io.BufferedReader(bz2.BZ2File(raw))  # pyright: ignore[reportArgumentType]
    if compression == ".xz":
        return io.BufferedReader(lzma.LZMAFile(raw))  # pyright: ignore[reportArgumentType]
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))  # pyright: ignore
    return raw


def size_in_words(size: int) -> str:
    """ "1 GiB", "900 bytes": exact, as a limit is to be given."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit:,} {name}"
    return f"{size:,} bytes"


class Unpacked(io.RawIOBase):
    """What is unpacked from `source`, counted.

    on_read: told of each piece. Reading beyond `limit` bytes raises InputError: the message comes from `beyond`.
    """

    def __init__(self, source: BinaryIO, limit: int | None, beyond: Callable[[], InputError], on_read: Callable[[], None]) -> None:
        self._source, self._limit, self._beyond, self._on_read = source, limit, beyond, on_read
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._source.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]
        self._count += count
        if self._limit is not None and self._count > self._limit:
            raise self._beyond()
        self._on_read()
        return count

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def buffered(self) -> BinaryIO:
        return io.BufferedReader(self, _BUFFER)  # pyright: ignore[reportReturnType]


class Lines:
    """The lines of a file, text or bytes, as an iterator, where a row may take several. Who has read a row says so by row().

    A row of more than ROW_LIMIT raises InputError before it is in memory.
    """

    def __init__(self, file: Any, where: str | Path) -> None:
        self._file, self._where = file, where
        self._line = 0
        self._left = self._limit = ROW_LIMIT

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        line = self._file.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._line += 1
        self._left -= len(line)
        if self._left < 0:
            raise too_long(f"{self._where}, line {self._line}", self._limit)
        return line

    def row(self) -> None:
        self._left = self._limit

    def each(self) -> Iterator[Any]:
        """The lines, where each is a row."""
        for line in self:
            self._left = self._limit
            yield line


def too_long(where: str, limit: int) -> InputError:
    return InputError(
        f"{where}: a row of more than {size_in_words(limit)}, which is all that is held of one: is it a file of rows? "
        "Cut it into smaller ones"
    )
