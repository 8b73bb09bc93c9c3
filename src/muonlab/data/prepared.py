"""What `muonlab data prepare` made: documents of tokens, memory-mapped, and what is known about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muonlab.data.template import Template
from muonlab.data.tokenizers import TokenIds, Tokenizer, load_tokenizer
from muonlab.errors import InputError
from muonlab.files import sha256_of

MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
OLD_FORM = "in the old form: documents do not begin with the end token, so that a model does not learn how they begin"


class Documents:
    """Documents in shards, one after the other. Nothing is read before it is asked for."""

    def __init__(self, shards: list[tuple[TokenIds, NDArray[np.int64]]]) -> None:
        """shards: tokens (N,), and for each document its end there and its leading tokens that are no targets (D, 2)."""
        self._shards = shards
        self._first = np.cumsum([0, *(len(index) for _, index in shards)])  # number of each shard's first document

    def __len__(self) -> int:
        return int(self._first[-1])

    def __add__(self, other: Documents) -> Documents:
        return Documents(self._shards + other._shards)

    def tokens(self, i: int) -> TokenIds:
        """Document i: (N,), its end included, and its beginning where the folder has them."""
        shard, index, at = self._find(i)
        return shard[int(index[at - 1, 0]) if at else 0 : int(index[at, 0])]

    def counts(self, i: int) -> NDArray[np.bool_]:
        """Which tokens of document i are targets, if something stands before them: (N,)."""
        return np.arange(len(self.tokens(i))) >= self.masked(i)

    def masked(self, i: int) -> int:
        """Leading tokens of document i that are no targets."""
        _, index, at = self._find(i)
        return int(index[at, 1])

    def sizes(self) -> NDArray[np.int64]:
        """(tokens, leading tokens that are no targets) of every document: (D, 2)."""
        tables = []
        for _, index in self._shards:
            tables.append(np.stack([np.diff(index[:, 0], prepend=0), index[:, 1]], axis=1))
        return np.concatenate([np.empty((0, 2), np.int64), *tables])

    def _find(self, i: int) -> tuple[TokenIds, NDArray[np.int64], int]:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return *self._shards[shard], i - int(self._first[shard])


class Prepared:
    """A prepared folder. `sha256` is its manifest's: it stands for all files, whose own sums are in it."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.folder, self.sha256 = folder, hashlib.sha256(content).hexdigest()
        self.manifest: dict[str, Any] = json.loads(content)
        self.train, self.validation = (self._documents(name) for name in SPLITS)

    def tokenizer_json(self) -> bytes:
        return (self.folder / "tokenizer.json").read_bytes()

    @property
    def begins(self) -> bool:
        """Whether documents begin with the token that ends one; those that an older muonlab prepared do not."""
        return self.manifest.get("begins", False)

    def prompts(self, *splits: str) -> list[NDArray[np.uint64]]:
        """The keys (examples.prompt_key) of the documents' prompts, by shards; none where an older muonlab prepared the folder."""
        if not self.begins:  # both came with one form
            return []
        shards = [(split, i, shard) for split in splits for i, shard in enumerate(self.manifest[split]["shards"])]
        return [np.memmap(self._file(split, i, "prompts"), "<u8", "r", shape=(shard["documents"],)) for split, i, shard in shards]

    @property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / "tokenizer.json")

    @property
    def template(self) -> Template:
        """Makes prompts as those in here were made."""
        return Template(self.manifest["columns"], self.manifest["template"])

    def damage(self) -> list[str]:
        """What differs from the manifest's SHA-256 sums: reads every file."""
        return [name for name, about in self.manifest["files"].items() if sha256_of(self.folder / name) != about["sha256"]]

    def _documents(self, split: str) -> Documents:
        shards = []
        for i, shard in enumerate(self.manifest[split]["shards"]):
            dtype = "<u2" if self.manifest["dtype"] == "uint16" else "<u4"
            tokens = np.memmap(self._file(split, i, "tokens"), dtype=dtype, mode="r", shape=(shard["tokens"],))
            index = np.memmap(self._file(split, i, "index"), dtype="<i8", mode="r", shape=(shard["documents"], 2))
            shards.append((tokens, index))
        return Documents(shards)

    def _file(self, split: str, shard: int, kind: str) -> Path:
        return self.folder / f"{split}-{shard:05}.{kind}"


def open_prepared(folder: str | Path) -> Prepared:
    """Raises InputError for what is not a prepared folder, not finished, or not whole."""
    folder = Path(folder)
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != 1:
            raise InputError(f"{folder}: expected format 1, got {manifest['format']}: made by a newer muonlab")
        for name, about in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != about["bytes"]:
                raise InputError(f"{folder}: damaged: {name} has {size} of {about['bytes']} bytes; prepare it again")
        return Prepared(folder, content)
    except FileNotFoundError as error:
        if Path(error.filename).name != MANIFEST:
            raise InputError(f"{folder}: damaged: {Path(error.filename).name} is missing; prepare it again") from None
        if (folder / "progress.json").exists():
            raise InputError(f"{folder}: not finished: give the same `muonlab data prepare` again, and it goes on") from None
        raise InputError(f"{folder}: expected a folder that `muonlab data prepare` made (it has no {MANIFEST})") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}: damaged: {MANIFEST} cannot be read; prepare it again") from None
