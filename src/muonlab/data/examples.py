"""Rows -> examples: a prompt and an answer (or a plain text), checked, with what identifies them and the side they fall on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from muonlab.data.formats import DataFile, Numbered, neighbours
from muonlab.data.sources import Source
from muonlab.data.template import Template
from muonlab.data.tokenizers import TokenIds, Tokenizer
from muonlab.errors import InputError


class Example(NamedTuple):
    prompt: str  # empty for a plain text
    answer: str
    fingerprint: bytes  # 16: equal for equal columns
    key: int  # 64 bits: equal for prompts (plain texts: for texts) that are equal but for letter case and white space
    held_out: bool
    begins: bool = True  # False: a text's block that follows another
    ends: bool = True  # False: a text's block that another follows
    tokens: TokenIds | None = None  # of a token shard, instead of prompt and answer, with its beginning and end


class Batch(NamedTuple):
    examples: list[Example]
    rows: int  # that were read for it
    left_out: dict[str, int]  # {what was wrong: rows}
    source: int  # it ends after row `number` of this source
    number: int


class Settings(Protocol):
    @property
    def limit(self) -> int | None: ...
    @property
    def skip_bad(self) -> bool: ...
    @property
    def held_out(self) -> float: ...


class BadRow(Exception):
    """What is wrong with a row, in a few words, and what to do about it."""

    def __init__(self, reason: str, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.reason, self.detail, self.remedy = reason, detail, remedy


class Reader:
    """Examples from sources, in order, in batches that depend on nothing but the rows."""

    def __init__(self, sources: Sequence[Source], template: Template, tokenizer: Tokenizer, settings: Settings) -> None:
        self.sources, self.template, self.tokenizer, self.settings = list(sources), template, tokenizer, settings
        self._at = 0
        shards = [source.name for source in sources if source.kind == "bin"]
        if shards and template.columns != ("text",):
            raise InputError(f"--columns: {shards[0]} is a token shard, and has none: leave --columns out")

    def batches(self, source: int, number: int, rows: int, most_rows: int, most_characters: int) -> Iterator[Batch]:
        """Batches from after row `number` of a source on; `rows`: read so far."""
        batch, characters = Batch([], 0, {}, source, number), 0
        for at, here, row in self._rows(source, number):
            if self.settings.limit is not None and rows + batch.rows >= self.settings.limit:
                break
            batch = batch._replace(rows=batch.rows + 1, source=at, number=here)
            try:
                example = self._example(row)
                batch.examples.append(example)
                characters += len(example.prompt) + len(example.answer) + (0 if example.tokens is None else len(example.tokens))
            except BadRow as bad:
                if not self.settings.skip_bad:
                    hint = bad.remedy or "mend it, or leave such rows out with --skip-bad"
                    raise InputError(f"{self.sources[at].where(here)}: {bad.detail}; {hint}") from None
                batch.left_out[bad.reason] = batch.left_out.get(bad.reason, 0) + 1
            if batch.rows >= most_rows or characters >= most_characters:
                yield batch
                rows += batch.rows
                batch, characters = Batch([], 0, {}, at, here), 0
        if batch.rows:
            yield batch

    def encode(self, examples: Sequence[Example]) -> list[tuple[TokenIds, int]]:
        """Each example's tokens (N,), and how many of them lead as its prompt. A document begins with the token that ends one, so
        that its first token has something before it, as in generation. Prompt and answer are tokenized apart, so that the
        prompt's tokens are those that generation begins with."""
        texts = [text for e in examples if e.tokens is None for text in ((e.prompt, e.answer) if e.prompt else (e.answer,))]
        parts = iter(self.tokenizer.encode_all(texts))
        end = np.array([self.tokenizer.end], dtype=np.uint32)
        encoded: list[tuple[TokenIds, int]] = []
        for e in examples:
            if e.tokens is not None:
                encoded.append((e.tokens, 0))
                continue
            lead = [*([end] if e.begins else []), *([next(parts)] if e.prompt else [])]
            tokens = np.concatenate([*lead, next(parts), *([end] if e.ends else [])])
            encoded.append((tokens, sum(map(len, lead)) if e.prompt else 0))
        return encoded

    def share(self) -> float:
        """The part of the sources that has been read, 0 to 1; by bytes, where all are files."""
        weights = [source.size for source in self.sources]
        sizes = [1 if any(w is None for w in weights) else w or 0 for w in weights]
        done = sum(sizes[: self._at]) + sizes[self._at] * self.sources[self._at].share()
        return done / max(1, sum(sizes))

    # -- one row ----------------------------------------------------------------------------------------------------

    def _rows(self, first: int, skip: int) -> Iterator[tuple[int, int, Any]]:
        """(source, number, row) after row `skip` of source `first`. Rows as they come: objects; of text (block, whether the text
        begins and whether it ends there); of shards tokens."""
        for at in range(first, len(self.sources)):
            self._at, source, skip = at, self.sources[at], skip if at == first else 0
            if isinstance(source, DataFile) and source.kind == "text":
                rows: Numbered[Any] = ((n, (block, n == 1, ends)) for n, (block, ends) in source.blocks(skip))
            elif isinstance(source, DataFile) and source.kind == "bin":
                rows = source.documents(skip, self.tokenizer.end, *neighbours(self.sources, at))
            else:
                rows = source.rows(skip, self.template.columns)
            yield from ((at, number, row) for number, row in rows)

    def _example(self, row: Any) -> Example:
        if isinstance(row, np.ndarray):
            return self._shard_example(row)
        begins = ends = True
        if isinstance(row, tuple):
            text, begins, ends = row
            row = {"text": text}
        values = [_text(row, name) for name in self.template.columns]
        answer = self.template.answer(row)
        if not answer:
            raise BadRow("empty answer" if self.template.has_prompt else "empty text", f"{self.template.columns[-1]!r} is empty")
        if self.template.has_prompt and not any(values[:-1]):
            raise BadRow("empty prompt", f"the prompt ({', '.join(self.template.columns[:-1])}) is empty")
        try:
            content = b"".join(b"%d:%s" % (len(data), data) for data in map(str.encode, values))
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            raise BadRow("not Unicode", f"expected whole Unicode characters, got {half} alone") from None
        key = prompt_key(values[:-1] if self.template.has_prompt else values)
        return Example(self.template.prompt(row), answer, _fingerprint(content), key, self._held_out(key), begins, ends)

    def _shard_example(self, tokens: TokenIds) -> Example:
        end = self.tokenizer.end
        inner = tokens[int(tokens[0] == end) : len(tokens) - int(tokens[-1] == end)]
        if not len(inner):
            raise BadRow("no tokens", "a document without a token: an end of document follows another")
        if int(tokens.max()) >= self.tokenizer.vocab_size:
            size, name = self.tokenizer.vocab_size, self.tokenizer.name
            raise InputError(
                f"--tokenizer {name}: expected tokens below {size}, got {tokens.max()}: the shard has another tokenizer"
            )
        content = inner.tobytes()
        key = _key(content)
        return Example("", "", _fingerprint(content), key, self._held_out(key), tokens=tokens)

    def _held_out(self, key: int) -> bool:
        """By the prompt's columns alone, letter case and spaces aside: a question with two answers, or in two forms, lands on one
        side, whatever template and tokenizer, in every data set."""
        return (key >> 32) / 2**32 < self.settings.held_out


def _text(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        there = ", ".join(map(str, row))
        raise BadRow("no such column", f"expected a column {name!r}; there are: {there}", "name others with --columns")
    value = row[name]
    if not isinstance(value, str):
        kind = "none" if value is None else f"{type(value).__name__} ({str(value)[:40]})"
        raise BadRow("not a text", f"expected text in column {name!r}, got {kind}")
    return value


def _fingerprint(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def prompt_key(values: Sequence[str]) -> int:
    """64 bits of a prompt's columns, whatever their letter case and white space. Its upper half says what is held out."""
    return _key(" ".join("\n".join(values).casefold().split()).encode())


def _key(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
