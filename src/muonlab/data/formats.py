"""Files of rows: JSONL, JSON, CSV, Parquet, text and token shards, plain or compressed. A reader can begin after any row, and
holds no more than a few rows in memory."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import numpy as np

from muonlab.data.shards import documents, follows
from muonlab.data.unpacking import BROKEN, COMPRESSIONS, ROW_LIMIT, Lines, decompressed, too_long
from muonlab.errors import InputError
from muonlab.files import sha256_of

Item = TypeVar("Item")
Numbered = Iterator[tuple[int, Item]]  # the number of a row in its file, from 1 (JSONL: of its line), and the row
Row = dict[str, Any]

TEXT_BLOCK = 1 << 16  # bytes: a longer text file is cut after a line into documents of about this size
_CHUNK = 1 << 16  # characters of JSON read at a time
_PARQUET_ROWS = 256  # read at a time, and no fewer than
_PARQUET_LEAST = 16
_PARQUET_BUFFER = 1 << 20  # bytes of each column: without it a whole row group is read, which may be the whole file
_SEPARATORS = " \t\r\n,"  # between two objects of a JSON array, or of none

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", ".text": "text", ".md": "text", ".bin": "bin",
}  # fmt: skip


def format_of(path: Path) -> str | None:
    """By the name, without what says that the file is compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


class DataFile:
    """A local file of rows, and how far its reading is. Values are as the file has them, whatever their type.

    Reading raises InputError, with the file and where in it, for what is not of its format, cut short, or not UTF-8.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind, self.name = path, kind, path.name
        self.size, self._changed = self._stat()
        self.identity = {"name": path.name, "kind": kind, "bytes": self.size, "changed": self._changed, "path": str(path.resolve())}
        self._raw: Any = None

    def sha256(self) -> str:
        """Of the file as it is, compressed or not: reads it whole. Raises InputError where it changed since it was found."""
        try:
            found, now = sha256_of(self.path), self._stat()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        if now != (self.size, self._changed):
            raise InputError(f"{self.path}: changed while it was read: prepare it when it is whole")
        return found

    def _stat(self) -> tuple[int, int]:
        about = self.path.stat()
        return about.st_size, about.st_mtime_ns

    def rows(self, skip: int, columns: tuple[str, ...]) -> Numbered[Row]:
        """The rows after number `skip`."""
        if self.kind == "parquet":
            return self._readable(lambda: _parquet(self, skip, columns))
        reader = {"jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _tsv}[self.kind]
        return self._readable(lambda: reader(self, skip))

    def blocks(self, skip: int) -> Numbered[tuple[str, bool]]:
        """A text's blocks after number `skip`: the block's text, and whether the file ends there. Without a byte order mark."""
        return self._readable(lambda: itertools.islice(_blocks(self), skip, None))

    def documents(self, skip: int, end: int, before: Iterable[Path], after: Iterable[Path]) -> Numbered[np.ndarray]:
        """The documents after number `skip` that begin in this token shard, of a stream of shards: see shards.documents."""
        return self._readable(lambda: itertools.islice(enumerate(documents(self.path, end, before, after), 1), skip, None))

    def where(self, number: int) -> str:
        return f"{self.path}, {'line' if self.kind == 'jsonl' else 'row'} {number}"

    def share(self) -> float:
        """The part of the file that has been read, 0 to 1."""
        return self._raw.tell() / max(1, self.size) if self._raw is not None and not self._raw.closed else 0.0

    def open(self) -> BinaryIO:
        """The content, decompressed where the name says so."""
        self._raw = raw = open(self.path, "rb")  # noqa: SIM115 (closed with what wraps it)
        suffix = self.path.suffix.lower()
        return decompressed(raw, suffix if suffix in COMPRESSIONS else None)

    def _readable(self, rows: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """`rows()`, with what goes wrong on the way in words."""
        suffix = self.path.suffix.lower()
        try:
            yield from rows()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: expected UTF-8, got the byte 0x{error.object[error.start]:02x} ({error.reason})"
            ) from None
        except EOFError:
            raise InputError(f"{self.path}: cut short: the compressed file ends before its end; fetch it again") from None
        except BROKEN as error:
            raise InputError(f"{self.path}: not a whole {suffix} file ({error}); fetch it again, or correct its name") from None
        except OSError as error:
            if suffix in COMPRESSIONS and error.errno is None:
                raise InputError(f"{self.path}: not a whole {suffix} file ({error}); fetch it again, or correct its name") from None
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from None


def neighbours(sources: Sequence[Any], at: int) -> tuple[Iterator[Path], Iterator[Path]]:
    """The token shards before and after the shard `at` that are one stream with it, the nearest first, found when asked for."""

    def along(step: int) -> Iterator[Path]:
        i = at
        while 0 <= i + step < len(sources) and _one_stream(*(sources[j] for j in sorted((i, i + step)))):
            i += step
            yield sources[i].path

    return along(-1), along(1)


def _one_stream(first: object, second: object) -> bool:
    if not isinstance(first, DataFile) or not isinstance(second, DataFile):
        return False
    return first.kind == second.kind == "bin" and follows(first.path, second.path)


# -- JSON -----------------------------------------------------------------------------------------------------------


def _jsonl(source: DataFile, skip: int) -> Numbered[Row]:
    with source.open() as file:
        for number, line in enumerate(Lines(file, source.path).each(), 1):
            if number <= skip or not line.strip():
                continue
            where = f"{source.path}, line {number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: expected UTF-8, got the byte 0x{line[error.start]:02x} ({error.reason})") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON ({error})") from None
            yield number, _object(row, where)


def _json(source: DataFile, skip: int) -> Numbered[Row]:
    with io.TextIOWrapper(source.open(), encoding="utf-8-sig") as file:
        for number, row in json_rows(file, source.path):
            if number > skip:
                yield number, _object(row, f"{source.path}, row {number}")


def json_rows(file: TextIO, path: str | Path) -> Numbered[Any]:
    """Those of an array, or of values one after the other: decoded one by one, so that the file need not fit in memory."""
    decoder = json.JSONDecoder()
    text, number = file.read(_CHUNK).lstrip(), 0
    array = text.startswith("[")
    text = text[array:]
    while True:
        text = text.lstrip(_SEPARATORS)
        if array and text.startswith("]"):
            _at_end(path, number, text[1:], file)
            return
        try:
            row, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            goes_on = _may_go_on(error, text)
            if goes_on and len(text) > ROW_LIMIT:
                raise too_long(f"{path}, row {number + 1}", ROW_LIMIT) from None
            # twice as much each time: a row is read again a few times, not once for each chunk
            more = file.read(max(_CHUNK, len(text))) if goes_on else ""
            if more:
                text += more
                continue
            if not text and not array:
                return
            cut = "the file ends before its array does" if not text else str(error)
            raise InputError(f"{path}, row {number + 1}: not JSON ({cut}): is the file cut?") from None
        text, number = text[end:], number + 1
        yield number, row
        if len(text) < _CHUNK:
            text += file.read(_CHUNK)


def _at_end(path: str | Path, number: int, text: str, file: TextIO) -> None:
    """Raises InputError for anything but white space after an array."""
    after = ""
    while text and not (after := text.strip(" \t\r\n")):
        text = file.read(_CHUNK)
    if after:
        raise InputError(
            f"{path}: expected nothing after the array's end (row {number}), got {after[:20]!r}: name a file of one array, "
            "or of objects one after the other"
        )


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether more text could mend it: it broke at the end of what there is, or within a string."""
    return isinstance(error, json.JSONDecodeError) and (error.pos >= len(text) - 16 or error.msg.startswith("Unterminated"))


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected an object such as {{"text": ...}}, got {type(row).__name__}')
    return row


# -- tables ---------------------------------------------------------------------------------------------------------


def _tsv(source: DataFile, skip: int) -> Numbered[Row]:
    return _csv(source, skip, delimiter="\t")


def _csv(source: DataFile, skip: int, delimiter: str = ",") -> Numbered[Row]:
    """Rows below a header. A value may hold line ends where it stands in quotes."""
    csv.field_size_limit((1 << 31) - 1)  # the module's own limit is 128 KiB; it knows no other way to raise it
    with io.TextIOWrapper(source.open(), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(lines := Lines(file, source.path), delimiter=delimiter, strict=True)
        number = 0
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"{source.path}: expected a header of names, each once, got {', '.join(header)}")
            lines.row()
            for fields in reader:
                lines.row()
                if not fields:  # an empty line
                    continue
                number += 1
                if len(fields) != len(header):
                    raise InputError(
                        f"{source.path}, row {number}: expected {len(header)} fields as in the header, got {len(fields)}"
                    )
                if number > skip:
                    yield number, dict(zip(header, fields))
        except csv.Error as error:
            raise InputError(f"{source.path}, row {number + 1}: not CSV ({error})") from None


def _parquet(source: DataFile, skip: int, columns: tuple[str, ...]) -> Numbered[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.path.suffix.lower() in COMPRESSIONS:
        raise InputError(f"{source.path}: a Parquet file is compressed within: decompress it first")
    try:
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_PARQUET_BUFFER) as file:
            names = file.schema_arrow.names
            number, chosen = 0, []
            for group in range(file.num_row_groups):  # whole groups are left out unread
                rows = file.metadata.row_group(group).num_rows
                if not chosen and number + rows <= skip:
                    number += rows
                else:
                    chosen.append(group)
            wanted = [name for name in names if name in columns] or names[:1]
            others = dict.fromkeys(name for name in names if name not in wanted)  # not read, but there: for messages
            size = rows_at_a_time(file.metadata, wanted)
            for batch in file.iter_batches(batch_size=size, row_groups=chosen, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    if number > skip:
                        yield number, {**row, **others}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{source.path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def rows_at_a_time(metadata: Any, columns: Collection[str]) -> int:
    """A value that stands once in a row group's dictionary may come in each of its rows, so a batch of a small file can be large.
    No value is larger than its column in a group: by that a batch stays within ROW_LIMIT, but for groups that are large anyway.
    """
    largest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        largest = max(largest, sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".", 1)[0] in columns))
    return max(_PARQUET_LEAST, min(_PARQUET_ROWS, ROW_LIMIT // largest))


# -- text -----------------------------------------------------------------------------------------------------------


def _blocks(source: DataFile) -> Numbered[tuple[str, bool]]:
    """Blocks cut after their last line end, or where they have none after their last whole character."""
    with source.open() as file:
        number, rest = 0, file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while True:
            more = file.read(TEXT_BLOCK - len(rest)) if len(rest) < TEXT_BLOCK else b""
            block = rest + more
            over = file.read(1) if len(block) >= TEXT_BLOCK else b""  # is there anything after it?
            cut = len(block) if not over else (block.rfind(b"\n") + 1 or _whole_characters(block))
            if block:
                number += 1
                yield number, (block[:cut].decode(), not over)
            if not over:
                return
            rest = block[cut:] + over


def _whole_characters(block: bytes) -> int:
    """Bytes of the block without a last character that is cut (UTF-8: bytes that begin with the bits 10 continue one)."""
    for back in range(1, 5):
        byte = block[-back]
        if byte & 0xC0 != 0x80:
            size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(block) if size == back else len(block) - back
    return len(block)  # no UTF-8 at all: decoding says so
