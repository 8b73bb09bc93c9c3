"""Tokenizers: bytes, any Hugging Face tokenizer.json, and the training of a byte-level BPE.

A tokenizer knows the token that ends a document, and never reads it out of a text: where a text spells a special token, it is
encoded letter by letter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muonlab.data import tokenizer as byte_tokens
from muonlab.errors import InputError
from muonlab.extras import needed
from muonlab.files import write_atomically

TokenIds = NDArray[np.unsignedinteger]  # uint16, or uint32 where the vocabulary is larger than 65,536

# The tokens that end a document in published tokenizers: GPT-2, Llama 3, Llama 2 and T5, Gemma, DeepSeek, BERT.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "[SEP]")
_BYTES_AND_END = 257  # the smallest vocabulary of a byte-level BPE


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    end: int  # ends a document
    sha256: str

    def encode(self, text: str) -> TokenIds:
        """text -> tokens (N,), without an end. Raises UnicodeEncodeError where the text has half a surrogate pair."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        """`encode` of each, faster."""
        ...

    def decode(self, tokens: Iterable[int] | TokenIds) -> str:
        """tokens -> text; ends of documents are left out, bytes that are not UTF-8 become U+FFFD."""
        ...

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json that `load_tokenizer` reads back with the same sha256."""
        ...


_UNFINISHED = 32  # tokens: how far back a character may begin. (A run of byte tokens is decoded whole or not at all.)


def continuation(tokenizer: Tokenizer, before: Sequence[int] | TokenIds, tokens: Sequence[int] | TokenIds) -> str:
    """The text that `tokens` add after the tokens `before`: text of both = text of `before` + this.

    Decoded alone, a continuation is taken for the beginning of a text, which Llama-style and Metaspace tokenizers rob of its space.
    A character that `before` leaves unfinished belongs to the continuation.
    """
    begin = len(before)
    if begin and before[-1] != tokenizer.end:  # the text after an end begins anew
        begin -= 1
        while begin > 0 and len(before) - begin < _UNFINISHED and tokenizer.decode(before[begin:]).endswith("\ufffd"):
            begin -= 1
    head, whole = tokenizer.decode(before[begin:]), tokenizer.decode([*before[begin:], *tokens])
    shared = min(len(head), len(whole))
    return whole[next((i for i in range(shared) if head[i] != whole[i]), shared) :]


def about(tokenizer: Tokenizer) -> dict[str, Any]:
    """What manifests and runs say of it."""
    return {key: getattr(tokenizer, key) for key in ("name", "sha256", "vocab_size", "end")}


def load_tokenizer(name: str | Path) -> Tokenizer:
    """ "bytes", the path of a tokenizer.json (or of a folder that holds one), or a name on the Hugging Face hub.

    Raises InputError for what is not there, or not a tokenizer.
    """
    if str(name) == "bytes":
        return ByteTokenizer()
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.exists() or path.suffix == ".json" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        try:
            content = path.read_bytes()
        except OSError as error:
            known = "bytes, a tokenizer.json or a name on the hub"
            raise InputError(f"tokenizer: cannot read {path}: {error.strerror}; expected {known}") from None
        return _from_json(content, path.name)
    return _from_json(_download(str(name)), str(name))


def _from_json(content: bytes, name: str) -> Tokenizer:
    try:
        table = json.loads(content)
    except ValueError as error:
        raise InputError(f"tokenizer: {name}: not JSON ({error})") from None
    if table == _BYTES:
        return ByteTokenizer()
    return HubTokenizer(content, name)


def _download(name: str) -> bytes:
    hub = needed("huggingface_hub", f"tokenizer {name!r} (no such file, so a name on the hub)")
    try:
        return Path(hub.hf_hub_download(name, "tokenizer.json")).read_bytes()
    except (OSError, ValueError) as error:  # what the hub's client raises is both, or one of them
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"tokenizer {name!r}: no such file, and the hub did not give it: {reason}") from None


# -- bytes ----------------------------------------------------------------------------------------------------------

_BYTES = {"muonlab": "bytes", "vocab_size": byte_tokens.VOCAB_SIZE, "end": byte_tokens.END_OF_DOCUMENT}


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token, and 256 ends a document."""

    name, vocab_size, end = "bytes", byte_tokens.VOCAB_SIZE, byte_tokens.END_OF_DOCUMENT
    content = json.dumps(_BYTES).encode()
    sha256 = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> TokenIds:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[int] | TokenIds) -> str:
        return byte_tokens.decode(np.fromiter(tokens, dtype=np.uint16)).decode(errors="replace")

    def save(self, path: Path) -> None:
        write_atomically(path, self.content)


# -- Hugging Face tokenizers ----------------------------------------------------------------------------------------


class HubTokenizer:
    """A tokenizer.json of the library `tokenizers`. Its truncation, padding and added sentence marks are not used: a document
    is all of its text, and then its end."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name
        library = needed("tokenizers", f"tokenizer {name!r}")
        try:
            self._tokenizer = library.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"tokenizer: {name}: expected a tokenizer.json of the library tokenizers ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.sha256 = hashlib.sha256(content).hexdigest()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        ends = [vocabulary[end] for end in _ENDS if end in vocabulary]
        if not ends:
            raise InputError(f"tokenizer: {name}: no token ends a document; expected one of {', '.join(_ENDS)}: add it to the file")
        self.end, self.vocab_size = ends[0], max(vocabulary.values()) + 1  # ids may have gaps
        self._dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode(self, text: str) -> TokenIds:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        for text in texts:
            if not text.isascii():
                text.encode()  # the library's own error for half a surrogate pair names no place
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=self._dtype) for one in found]

    def decode(self, tokens: Iterable[int] | TokenIds) -> str:
        return self._tokenizer.decode([int(token) for token in tokens if token != self.end], skip_special_tokens=False)

    def save(self, path: Path) -> None:
        write_atomically(path, self.content)


# -- training -------------------------------------------------------------------------------------------------------


def train_bpe(texts: Iterable[str], vocab_size: int, *, split_digits: bool = False) -> HubTokenizer:
    """A byte-level BPE with GPT-2's way to cut a text into words; with `split_digits` no token has two digits.

    It reads any text: all bytes are tokens. Where the texts do not yield so many tokens, the vocabulary is smaller.
    """
    if vocab_size < _BYTES_AND_END:
        raise InputError(f"--vocab-size: expected at least {_BYTES_AND_END} (the bytes and an end of document), got {vocab_size}")
    library = needed("tokenizers", "training a tokenizer")
    before, trainers = library.pre_tokenizers, library.trainers
    tokenizer = library.Tokenizer(library.models.BPE())
    words = before.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = before.Sequence([before.Digits(individual_digits=True), words]) if split_digits else words
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = sorted(before.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[_ENDS[0]], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_whole(texts), trainer=trainer)
    return HubTokenizer(tokenizer.to_str().encode(), "bpe")


def _whole(texts: Iterable[str]) -> Iterator[str]:
    """Only texts that are: the library stops without a word at half a surrogate pair."""
    for text in texts:
        text.encode()
        yield text
