"""Corpora: where the tokens come from, how validation is split off, and a hash that any machine can check."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muonlab.data import overlap, tokenizer
from muonlab.data.config import DataConfig
from muonlab.data.examples import prompt_key
from muonlab.data.folders import cache, folders
from muonlab.data.paths import expand
from muonlab.data.prepared import OLD_FORM, SPLITS, Documents, Prepared
from muonlab.data.shards import read_shard
from muonlab.data.tokenizer import Tokens
from muonlab.data.tokenizers import ByteTokenizer, about, load_tokenizer
from muonlab.errors import InputError

Document = tuple[str, bytes]  # a name that does not depend on the machine, and the content

_SPLIT_BY_DOCUMENT = 20  # with fewer documents than this, validation is the tail of the text instead
SHARD_VOCABULARY = 2**16  # what a uint16 can say
_SHARD_SAMPLE = 1 << 20  # bytes of a shard's start and end that go into its hash: whole shards take minutes

Text = list[Tokens] | Documents


@dataclass(frozen=True)
class Corpus:
    """train and validation: lists of token arrays (N,) uint16, and a window never crosses from one array to the next; of prepared
    data, documents that are packed."""

    train: Text
    validation: Text
    vocab_size: int
    provenance: dict[str, Any]  # source, sha256, split, tokens, tokenizer
    tokenizer: bytes | None  # tokenizer.json; None: token shards do not tell theirs


def load(config: DataConfig) -> Corpus:
    """Reads and tokenizes what `config` names. Raises InputError for missing, empty or malformed files."""
    if config.source in ("prepared", "rows"):
        return _load_prepared(config)
    if config.source == "bin":
        return _load_shards(config)
    train_paths, held_paths = _paths(config)
    documents = list(_documents(config, train_paths))
    held_out = list(_documents(config, held_paths)) if held_paths else None
    digest = _digest([*documents, ("validation", b""), *(held_out or [])])
    if held_out is not None:
        train, validation, split = _encode(documents), _encode(held_out), "by files"
    else:
        train, validation, split = _split(documents, config)
    if not len(train) or not len(validation):
        raise InputError(f"data: the corpus is empty, or too short to hold some out ({', '.join(config.files)}): name more text")
    provenance = {
        "source": config.source,
        "sha256": digest,
        "split": split,
        "documents": len(documents) + len(held_out or []),
        "train_tokens": len(train),
        "validation_tokens": len(validation),
        "tokenizer": about(ByteTokenizer()),
        **({} if held_out is None else {"seen": overlap.counted([_keys(held_out)], [_keys(documents)])}),
    }
    return Corpus([train], [validation], tokenizer.VOCAB_SIZE, provenance, ByteTokenizer.content)


def vocab_size(config: DataConfig) -> int:
    """The vocabulary of what `config` names, without reading it: a model has at least so many rows."""
    if config.source == "prepared":
        return _one_tokenizer(folders(config)[0])["vocab_size"]
    if config.source == "rows":
        return load_tokenizer(config.tokenizer).vocab_size
    return SHARD_VOCABULARY if config.source == "bin" else tokenizer.VOCAB_SIZE


def _paths(config: DataConfig) -> tuple[list[Path], list[Path]]:
    """Training and validation files. A held-out file is not trained on, whatever `files` matches."""
    held = expand(config.validation_files)
    chosen = {path.resolve() for path in held}
    return [path for path in expand(config.files) if path.resolve() not in chosen], held


# -- documents ------------------------------------------------------------------------------------------------------


def _documents(config: DataConfig, paths: list[Path]) -> Iterator[Document]:
    if config.source == "stdlib":
        yield from standard_library()
    for path in paths:
        try:
            if config.source == "jsonl":
                yield from _jsonl(path, config.text_key)
            elif content := path.read_bytes():
                yield path.name, content
        except OSError as error:
            raise InputError(f"data: cannot read {path}: {error.strerror}") from None


def standard_library() -> Iterator[Document]:
    """The .py files of the running Python's standard library, sorted by path.

    Left out, so that equal Python versions give equal text on every machine: installed packages, the test suites (not
    everybody ships them), and files that a build or a distribution writes.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        foreign = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"} & set(relative.parts)
        generated = relative.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
        if foreign or generated or relative.parts[0].startswith("config-"):
            continue
        yield relative.as_posix(), path.read_bytes()


def _jsonl(path: Path, key: str) -> Iterator[Document]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"data: {path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON ({error})") from None
            if not isinstance(row, dict) or key not in row:
                there = f"keys {sorted(row)}" if isinstance(row, dict) else type(row).__name__
                raise InputError(f"{where}: expected an object with key {key!r}, got {there}; set data.text_key")
            if not isinstance(row[key], str):
                raise InputError(f"{where}: expected text in {key!r}, got {type(row[key]).__name__}")
            if row[key]:
                yield f"{path.name}:{number}", row[key].encode("utf-8", "surrogatepass")


# -- split and hash -------------------------------------------------------------------------------------------------


def _split(documents: list[Document], config: DataConfig) -> tuple[Tokens, Tokens, str]:
    """Holds out whole documents, chosen by a hash of their content, so that equal texts never land on both sides; for the
    standard library by a hash of the file's name, so that the split outlives a new version."""
    held: list[bool] = []
    for name, content in documents:
        key = name.encode() if config.source == "stdlib" else content
        held.append(int.from_bytes(hashlib.sha256(key).digest()[:4], "big") < config.validation_fraction * 2**32)
    if len(documents) >= _SPLIT_BY_DOCUMENT and any(held) and not all(held):
        train = [d for d, h in zip(documents, held) if not h]
        return _encode(train), _encode([d for d, h in zip(documents, held) if h]), "by document hash"
    tokens = _encode(documents)
    cut = round(len(tokens) * (1 - config.validation_fraction))
    return tokens[:cut], tokens[cut:], "tail"


def _encode(documents: list[Document]) -> Tokens:
    return np.concatenate([tokenizer.encode(content) for _, content in documents] or [np.empty(0, np.uint16)])


def _digest(documents: list[Document]) -> str:
    total = hashlib.sha256()
    for name, content in documents:
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _keys(documents: list[Document]) -> NDArray[np.uint64]:
    return np.array([prompt_key([content.decode(errors="replace")]) for _, content in documents], dtype=np.uint64)


# -- shards ---------------------------------------------------------------------------------------------------------


def _load_shards(config: DataConfig) -> Corpus:
    paths, held_paths = _paths(config)
    try:
        train, validation, split = [read_shard(p) for p in paths], [read_shard(p) for p in held_paths], "by files"
        digest = _shard_digest(paths), _shard_digest(held_paths)
    except OSError as error:
        raise InputError(f"data: cannot read {error.filename}: {error.strerror}") from None
    if not held_paths:
        total = sum(map(len, train))
        train, validation = _cut_tail(train, round(total * (1 - config.validation_fraction)))
        split = "tail"
    counts = sum(map(len, train)), sum(map(len, validation))
    if not all(counts):
        raise InputError(f"data: the corpus is empty ({', '.join(config.files)}): name shards with tokens in them")
    provenance = {
        "source": "bin",
        "sha256": hashlib.sha256("/".join(digest).encode()).hexdigest(),
        "sha256_of": "names, sizes, first and last MiB of each shard",
        "split": split,
        "documents": len(paths) + len(held_paths),
        "train_tokens": counts[0],
        "validation_tokens": counts[1],
    }
    return Corpus(train, validation, SHARD_VOCABULARY, provenance, None)


def _cut_tail(segments: list[Tokens], keep: int) -> tuple[list[Tokens], list[Tokens]]:
    head: list[Tokens] = []
    tail: list[Tokens] = []
    for segment in segments:
        here = max(0, min(len(segment), keep))
        keep -= here
        head += [segment[:here]] if here else []
        tail += [segment[here:]] if here < len(segment) else []
    return head, tail


def _shard_digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            total.update(file.read(_SHARD_SAMPLE))
            file.seek(max(0, size - _SHARD_SAMPLE))
            total.update(file.read())
    return total.hexdigest()


# -- prepared data --------------------------------------------------------------------------------------------------


def _load_prepared(config: DataConfig) -> Corpus:
    """Folders one after the other. Held out is what they hold out, or all that the validation folders have."""
    made, held = folders(config)
    named = _one_tokenizer([*made, *held])
    shares = {folder.manifest["held_out"] for folder in made}
    if not held and len(shares) > 1:
        raise InputError(
            f"data: the folders hold out different shares ({', '.join(f'{s:g}' for s in sorted(shares))}), so that what one holds "
            "out another may train on: prepare them with the same --held-out, or name data.validation_files"
        )
    train = sum((folder.train for folder in made), Documents([]))
    validation = sum((folder.validation for folder in made), Documents([]))
    if held:
        validation = sum((part for folder in held for part in (folder.train, folder.validation)), Documents([]))
    provenance = {
        "source": config.source,
        "sha256": hashlib.sha256("/".join(folder.sha256 for folder in (*made, *held)).encode()).hexdigest(),
        "sha256_of": "the manifests' SHA-256",
        "split": "by files" if held else "by prompt hash",
        "documents": len(train) + len(validation),
        "train_tokens": int(train.sizes()[:, 0].sum()),
        "validation_tokens": int(validation.sizes()[:, 0].sum()),
        "tokenizer": named,
        "manifests": [_about_folder(folder) for folder in (*made, *held)],
        **_seen(made, held),
    }
    return Corpus(train, validation, named["vocab_size"], provenance, made[0].tokenizer_json())


def _seen(made: list[Prepared], held: list[Prepared]) -> dict[str, Any]:
    """How many validation rows are training rows, where folders to hold out are named (a hash of the prompt parts a folder's own)
    and none is of the old form, which has no keys."""
    if not held or not all(folder.begins for folder in (*made, *held)):
        return {}
    trained = [keys for folder in made for keys in folder.prompts("train")]
    tested = [keys for folder in held for keys in folder.prompts(*SPLITS)]
    return {"seen": overlap.counted(tested, trained)}


def remarks(provenance: dict[str, Any]) -> list[str]:
    """What is to be said of a corpus before it is trained on."""
    old = [m for m in provenance.get("manifests", ()) if not m.get("begins", False)]
    remedy = f"delete {cache()}, and they are prepared again" if provenance["source"] == "rows" else "prepare again"
    said = [f"data: prepared {OLD_FORM}; for new runs {remedy}"] if old else []
    seen = overlap.in_words(provenance.get("seen"))
    return said + ([f"data: {seen}: the validation loss is not that of unseen text"] if seen else [])


def _one_tokenizer(made: list[Prepared]) -> dict[str, Any]:
    first, *others = made
    for other in others:
        if other.manifest["tokenizer"]["sha256"] != first.manifest["tokenizer"]["sha256"]:
            names = (f"{folder.folder} ({folder.manifest['tokenizer']['name']})" for folder in (first, other))
            raise InputError(f"data: {' and '.join(names)} have different tokenizers: prepare both with the same --tokenizer")
    return first.manifest["tokenizer"]


def _about_folder(folder: Prepared) -> dict[str, Any]:
    keys = ("sources", "columns", "template", "mask", "held_out", "rows_sha256")
    form = {"begins": True} if folder.begins else {}
    return {"sha256": folder.sha256, **{key: folder.manifest[key] for key in keys}, **form}
