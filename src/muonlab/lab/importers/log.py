"""A log as a stream: unpacked piece by piece, as text, as often as its reader has to go through it."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from muonlab.data.unpacking import BROKEN, Unpacked, compression_of, decompressed, size_in_words
from muonlab.errors import InputError
from muonlab.lab.importers.speedrun import MarkSearch

UNPACK_LIMIT = 1 << 30  # bytes; logs have some megabytes, the largest exports some hundred
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Look:
    """What a log's text looks like. start: the first character that is no white space, "" if there is none."""

    start: str
    speedrun: bool
    separated: bool  # the first line may be the header of a CSV


class Log:
    """A file that may be packed: its content says so, whatever its name.

    limit: bytes that a packed file may unpack to (None: any); beyond them reading raises InputError, as it does for a file that
    is cut or no text. on_progress: told now and then of the share that is done, 0 to 1.
    """

    def __init__(self, path: Path, limit: int | None = UNPACK_LIMIT, on_progress: Callable[[float], None] | None = None) -> None:
        self.path, self.limit, self._on_progress = path, limit, on_progress
        try:
            with open(path, "rb") as file:
                self._size, start = path.stat().st_size, file.read(16)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        self._compression = compression_of(start)
        self.parquet = start.startswith(b"PAR1")
        self._encoding = "utf-8-sig"

    @contextmanager
    def text(self, begin: float, end: float = 1.0) -> Iterator[TextIO]:
        """The text from its start, with line ends as they are. begin, end: which share of all the work this is. After look()."""
        with self._content(begin, end) as file, io.TextIOWrapper(file, encoding=self._encoding, newline="\n") as text:
            yield text

    @contextmanager
    def _content(self, begin: float, end: float) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb") as raw:

                def on_read() -> None:
                    self.done(begin + (end - begin) * raw.tell() / max(1, self._size))

                limit = None if self._compression is None else self.limit
                with Unpacked(decompressed(raw, self._compression), limit, self.too_large, on_read).buffered() as file:
                    yield file
        except UnicodeDecodeError as error:
            raise self._not_text(error.start) from None
        except (*BROKEN, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or self._compression is None):
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
            raise InputError(f"{self.path}: cannot be unpacked: {error}: is the file cut?") from None

    def done(self, share: float) -> None:
        if self._on_progress is not None:
            self._on_progress(share)

    def too_large(self) -> InputError:
        return InputError(
            f"{self.path}: unpacks to more than {size_in_words(self.limit or 0)}, the limit on one log: "
            "if it is a log of that size, raise it with --unpack-limit"
        )

    def _not_text(self, at: int) -> InputError:
        return InputError(f"{self.path}: expected text in UTF-8, got other bytes (at {at}): convert it, or choose another")

    def look(self, end: float) -> Look:
        """Goes through all of the text. end: as for text()."""
        marks, first, start, separated = MarkSearch(), True, "", False
        with self._content(0.0, end) as file:
            raw, at = file.read(_CHUNK), 0
            if raw.startswith(b"PAR1"):
                raise InputError(f"{self.path}: a Parquet file is compressed within: decompress it first")
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what PowerShell's `>` writes
                self._encoding = "utf-16"
            decoder = codecs.getincrementaldecoder(self._encoding)()
            while True:
                begun = len(decoder.getstate()[0])  # bytes of a character that the last piece ended in
                try:
                    text = decoder.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    raise self._not_text(at - begun + error.start) from None
                if "\0" in text:
                    raise InputError(f"{self.path}: expected text, got a binary file")
                if first:
                    line, end_of_line, _ = text.partition("\n")
                    separated, first = separated or any(mark in line for mark in ",;\t"), not end_of_line
                start = start or text.lstrip()[:1]
                marks.feed(text)
                if not raw:
                    return Look(start, marks.found(), separated)
                raw, at = file.read(_CHUNK), at + len(raw)
