"""The files of one split of a prepared folder, while they are written: shards of tokens, an index of documents, prompts' keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from muonlab.data.tokenizers import TokenIds

KINDS = ("tokens", "index", "prompts")  # files of a shard


@dataclass
class SplitFiles:
    """The shards of one split that are being written."""

    folder: Path
    name: str
    dtype: str
    shard_tokens: int
    shards: list[list[int]] = field(default_factory=list)  # [documents, tokens] of each
    targets: int = 0
    changed: set[Path] = field(default_factory=set)  # files written since the last save

    def restore(self, state: dict[str, Any]) -> None:
        """Makes the files as long as they were at `state`, and forgets those begun after it."""
        self.shards, self.targets = [list(pair) for pair in state["shards"]], state["targets"]
        known = set()
        for i, (documents, tokens) in enumerate(self.shards):
            sizes = {"tokens": tokens * np.dtype(self.dtype).itemsize, "index": documents * 16, "prompts": documents * 8}
            for kind, size in sizes.items():
                path = self.path(i, kind)
                os.truncate(path, size)
                known.add(path)
        for path in self.folder.glob(f"{self.name}-*"):
            if path not in known:
                path.unlink()

    def state(self) -> dict[str, Any]:
        return {"shards": self.shards, "targets": self.targets}

    def add(self, documents: list[tuple[TokenIds, int, int]]) -> None:
        """Appends documents: tokens, how many of them lead without being targets, the prompt's key."""
        while documents:
            if not self.shards or self.shards[-1][1] >= self.shard_tokens:
                self.shards.append([0, 0])
            shard = self.shards[-1]
            ends = shard[1] + np.cumsum([len(tokens) for tokens, _, _ in documents])
            fit = min(len(documents), int(np.searchsorted(ends, self.shard_tokens)) + 1)
            here, documents = documents[:fit], documents[fit:]
            index = np.stack([ends[:fit], [masked for _, masked, _ in here]], axis=1).astype("<i8")
            tokens = np.concatenate([tokens for tokens, _, _ in here]).astype(f"<u{np.dtype(self.dtype).itemsize}")
            keys = np.array([key for _, _, key in here], dtype="<u8")
            for kind, content in (("tokens", tokens), ("index", index), ("prompts", keys)):
                path = self.path(len(self.shards) - 1, kind)
                with open(path, "ab") as file:
                    file.write(content.tobytes())
                self.changed.add(path)
            shard[0], shard[1] = shard[0] + fit, int(ends[fit - 1])
            self.targets += sum(len(tokens) - max(1, masked) for tokens, masked, _ in here)

    def path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{self.name}-{shard:05}.{kind}"
