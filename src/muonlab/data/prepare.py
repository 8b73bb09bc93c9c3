"""From rows to a folder of tokens: streamed, resumable, the same bytes every time.

The folder holds for each split (train, validation) shards of tokens (little-endian uint16, or uint32 beyond 65,536), of an
index: for each document (end in the shard, leading tokens that are no targets) int64, and of the keys of their prompts: uint64. A
document begins with the token that ends one ("begins" in the manifest; those of old did not). While it is being made,
progress.json says up to which row all files are whole, and how long they are then: whatever was killed goes on there.
manifest.json is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from muonlab.data.examples import Example, Reader
from muonlab.data.formats import DataFile
from muonlab.data.lock import LOCK, locked, writing
from muonlab.data.prepared import MANIFEST, OLD_FORM, SPLITS, Prepared, open_prepared
from muonlab.data.seen import Seen
from muonlab.data.sources import Source, find_sources
from muonlab.data.split_files import KINDS, SplitFiles
from muonlab.data.template import Template
from muonlab.data.tokenizers import Tokenizer, about, load_tokenizer
from muonlab.errors import InputError
from muonlab.files import sha256_of, sync_directory, write_atomically

Mask = Literal["prompt", "none"]

_PROGRESS, _SEEN = "progress.json", "seen.u64"
_BATCH_ROWS, _BATCH_CHARACTERS = 1024, 1 << 18  # what is tokenized at a time
_SAVE_EVERY = 2.0  # seconds between two points that a killed preparation can go on from
SHARD_TOKENS = 1 << 27  # a new shard begins after the document that reaches this


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, and how. Raises InputError where it cannot be."""

    sources: Sequence[str]
    columns: tuple[str, ...] = ("text",)
    template: str | None = None
    mask: Mask | None = None  # default: prompt where there is one
    tokenizer: str = "bytes"
    kind: str | None = None
    subset: str | None = None
    split: str | None = None
    limit: int | None = None
    dedupe: bool = False
    skip_bad: bool = False
    held_out: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"--held-out: expected a share of at least 0 and below 1, got {self.held_out:g}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit: expected a number of at least 1, got {self.limit}")
        if self.mask == "prompt" and len(self.columns) == 1:
            raise InputError(f"--mask prompt: one column ({self.columns[0]}) has no prompt: name --columns PROMPT,ANSWER")


class Progress(NamedTuple):
    rows: int
    tokens: int
    share: float  # of the sources, 0 to 1; 0 where that is not known
    seconds: float  # that all of this share would have taken at this process's pace
    tokens_per_second: float


def prepare(
    plan: Plan,
    out: str | Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    shard_tokens: int = SHARD_TOKENS,
    wait: bool = False,
) -> Prepared:
    """Prepares into the folder `out`; goes on with what an earlier call with the same plan began there.

    wait: for another process that is at it, not refuse. Raises InputError for what is wrong with plan, sources or rows, and
    then leaves nothing behind; RunError where the folder cannot be written to its end.
    """
    template, tokenizer = Template(plan.columns, plan.template), load_tokenizer(plan.tokenizer)
    reader = Reader(find_sources(plan.sources, kind=plan.kind, subset=plan.subset, split=plan.split), template, tokenizer, plan)
    request = _request(plan, reader, template, tokenizer)
    folder = Path(out)
    if (not wait or (folder / MANIFEST).exists()) and _already(folder, request, reader.sources):
        _remove_traces(folder)  # of one that was killed when all was done
        there = open_prepared(folder)
        say(f"{out}: already prepared{'' if there.begins else f', {OLD_FORM}'}")
        return there
    with locked(folder, wait, say) as made, writing(folder):
        if _already(folder, request, reader.sources):  # since another had the lock
            _remove_traces(folder)
            return open_prepared(folder)
        work = _Work(folder, request, reader, tokenizer, on_progress, shard_tokens)
        try:
            if work.rows:
                say(f"{out}: goes on after row {work.rows:,}")
            work.run()
        except InputError:
            work.discard()
            for path in made if not work.resumed else [folder]:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
    return open_prepared(folder)


def _request(plan: Plan, reader: Reader, template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """All that decides what comes out; JSON types."""
    return {
        "sources": [source.identity for source in reader.sources],
        "columns": list(template.columns),
        "template": template.text,
        "mask": plan.mask or ("prompt" if template.has_prompt else "none"),
        "limit": plan.limit,
        "dedupe": plan.dedupe,
        "skip_bad": plan.skip_bad,
        "held_out": plan.held_out,
        "tokenizer": about(tokenizer),
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "begins": True,
    }


def _without(about: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in source.items() if key not in keys} for source in about]


def _lasting(request: dict[str, Any]) -> dict[str, Any]:
    """The request without what a copy of the same files changes."""
    return {**request, "sources": _without(request["sources"], "changed", "path")}


def _already(folder: Path, request: dict[str, Any], sources: Sequence[Source]) -> bool:
    """Whether the folder holds just this. Raises InputError where it holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: expected a folder, or a name for a new one, got a file")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if MANIFEST in inside:
        there = open_prepared(folder).manifest
        same = {**there, "sources": _without(there["sources"], "sha256"), "begins": True}  # of the old form: it is read on
        _same(folder, same, _lasting(request))
        for source, entry in zip(sources, there["sources"], strict=True):  # the same names and sizes: what is in them?
            if isinstance(source, DataFile) and source.sha256() != entry.get("sha256"):
                raise _another(folder, f"sources: {source.path} has not the content that was prepared")
        return True
    if inside - {LOCK, f"{_PROGRESS}.tmp"} and _PROGRESS not in inside:
        raise InputError(f"--out {folder}: holds something else ({sorted(inside)[0]}, ...): choose a new folder")
    return False


def _same(folder: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    differ = [f"{key}: {there.get(key)} there, {value} now" for key, value in now.items() if there.get(key) != value]
    if "begins" not in there:
        differ = [f"begun {OLD_FORM}"]
    if differ:
        raise _another(folder, "; ".join(differ))


def _another(folder: Path, why: str) -> InputError:
    return InputError(f"--out {folder}: holds another preparation ({why}): delete it, or choose a new folder")


def _remove_traces(folder: Path) -> None:
    for name in (_PROGRESS, f"{_PROGRESS}.tmp", _SEEN, LOCK):
        (folder / name).unlink(missing_ok=True)


class _Work:
    """One process's share of a preparation: state that progress.json holds, and what advances it."""

    def __init__(
        self,
        folder: Path,
        request: dict[str, Any],
        reader: Reader,
        tokenizer: Tokenizer,
        on_progress: Callable[[Progress], None],
        shard_tokens: int,
    ) -> None:
        self.folder, self.request, self.reader, self.tokenizer, self.on_progress = folder, request, reader, tokenizer, on_progress
        self.splits = {name: SplitFiles(folder, name, request["dtype"], shard_tokens) for name in SPLITS}
        self.resumed = (folder / _PROGRESS).exists()
        self.state: dict[str, Any] = {
            "source": 0, "number": 0, "rows": 0, "duplicates": 0, "left_out": {}, "seen": 0,
            "rows_sha256": hashlib.sha256().hexdigest(), **{name: split.state() for name, split in self.splits.items()},
        }  # fmt: skip
        if self.resumed:
            known = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            _same(folder, known["request"], request)
            self.state = known["state"]
            for name, split in self.splits.items():
                split.restore(self.state[name])
        self.seen = Seen(folder / _SEEN, self.state["seen"]) if request["dedupe"] else None
        self._save()

    @property
    def rows(self) -> int:
        return self.state["rows"]

    def run(self) -> None:
        began = saved = time.monotonic()
        tokens = self._tokens()
        for batch in self.reader.batches(self.state["source"], self.state["number"], self.rows, _BATCH_ROWS, _BATCH_CHARACTERS):
            self._take(batch.examples)
            self.state |= {"source": batch.source, "number": batch.number, "rows": self.rows + batch.rows}
            for reason, count in batch.left_out.items():
                self.state["left_out"][reason] = self.state["left_out"].get(reason, 0) + count
            now = time.monotonic()
            if now - saved >= _SAVE_EVERY:
                self._save()
                saved = now
            share, rate = self._share(), (self._tokens() - tokens) / (now - began)
            self.on_progress(Progress(self.rows, self._tokens(), share, self._tokens() / rate if rate else 0.0, rate))
        if not any(split.shards for split in self.splits.values()):
            why = "; ".join(f"{count:,} left out: {reason}" for reason, count in self.state["left_out"].items())
            raise InputError(
                f"{', '.join(source.name for source in self.reader.sources)}: no document comes of it ({why or 'no rows'})"
            )
        self._save()
        self._finish()

    def _take(self, examples: list[Example]) -> None:
        digest = hashlib.sha256(bytes.fromhex(self.state["rows_sha256"]))
        digest.update(b"".join(example.fingerprint for example in examples))
        if examples:  # a chain, since a hash's own state cannot be saved
            self.state["rows_sha256"] = digest.hexdigest()
        if self.seen is not None:
            fresh = self.seen.first(np.frombuffer(b"".join(e.fingerprint[:8] for e in examples), dtype="<u8"))
            self.state["duplicates"] += len(examples) - int(fresh.sum())
            examples = [example for example, is_fresh in zip(examples, fresh) if is_fresh]
        encoded = self.reader.encode(examples)
        masks = self.request["mask"] == "prompt"
        for name, split in self.splits.items():
            held = name == SPLITS[1]
            split.add([(t, lead if masks else 0, e.key) for e, (t, lead) in zip(examples, encoded) if e.held_out == held])

    def _share(self) -> float:
        limit = self.request["limit"]
        return max(self.reader.share(), self.rows / limit if limit else 0.0)

    def _tokens(self) -> int:
        return sum(tokens for split in self.splits.values() for _, tokens in split.shards)

    def _save(self) -> None:
        """Makes sure of what is written so far, and says so in progress.json."""
        for name, split in self.splits.items():
            for path in split.changed:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            split.changed.clear()
            self.state[name] = split.state()
        self.state["seen"] = 0 if self.seen is None else self.seen.save()
        write_atomically(self.folder / _PROGRESS, json.dumps({"request": self.request, "state": self.state}))

    def _files(self) -> list[Path]:
        """The files of all shards, sorted."""
        return sorted(s.path(i, kind) for s in self.splits.values() for i in range(len(s.shards)) for kind in KINDS)

    def _finish(self) -> None:
        self.tokenizer.save(self.folder / "tokenizer.json")
        files = [*self._files(), self.folder / "tokenizer.json"]
        lasting = _lasting(self.request)
        for source, entry in zip(self.reader.sources, lasting["sources"], strict=True):
            entry |= {"sha256": source.sha256()} if isinstance(source, DataFile) else {}
        manifest = {
            "format": 1,
            **lasting,
            "rows": self.rows,
            "rows_sha256": self.state["rows_sha256"],
            "duplicates": self.state["duplicates"],
            "left_out": dict(sorted(self.state["left_out"].items())),
            **{
                name: {
                    "documents": sum(documents for documents, _ in split.shards),
                    "tokens": sum(tokens for _, tokens in split.shards),
                    "targets": split.targets,
                    "shards": [{"documents": documents, "tokens": tokens} for documents, tokens in split.shards],
                }
                for name, split in self.splits.items()
            },
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
        }
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        _remove_traces(self.folder)
        sync_directory(self.folder)

    def discard(self) -> None:
        """Removes all that this made in the folder."""
        for pattern in (*(f"{name}-*" for name in SPLITS), "tokenizer.json"):
            for path in self.folder.glob(pattern):
                path.unlink()
        _remove_traces(self.folder)
