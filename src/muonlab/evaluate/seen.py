"""What a run is evaluated on and was trained on: by the keys of prompts that its prepared folders keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muonlab.data.examples import prompt_key
from muonlab.data.folders import cache
from muonlab.data.overlap import Keys, among
from muonlab.data.prepared import MANIFEST, Prepared, open_prepared
from muonlab.errors import InputError
from muonlab.evaluate.gsm8k import Problem
from muonlab.files import sha256_of


def trained_keys(described: Mapping[str, Any]) -> list[Keys] | None:
    """The keys of the prompts that a run was trained on, by its run.json; None: it was trained on windows of text, its folders are
    not here any more, or they are of the old form, which has none."""
    data = described["recipe"]["data"]
    if data.get("source") not in ("prepared", "rows"):
        return None
    prepared = data["source"] == "prepared"
    trained = described["data"]["manifests"][: len(data["files"]) if prepared else 1]
    made = [_found(manifest["sha256"], data["files"] if prepared else _cached()) for manifest in trained]
    whole = [folder for folder in made if folder is not None and folder.begins]
    return [keys for folder in whole for keys in folder.prompts("train")] if len(whole) == len(trained) else None


def problems_seen(runs: Iterable[Mapping[str, Any]], problems: Sequence[Problem]) -> int | None:
    """How many of the problems' questions one of the runs, given by their run.json, was trained on; None where nobody can tell."""
    asked = np.array([prompt_key([problem.question]) for problem in problems], dtype=np.uint64)
    found, told = np.zeros(len(asked), dtype=bool), False
    for described in runs:
        if (trained := trained_keys(described)) is not None:
            found, told = found | among(asked, trained), True
    return int(found.sum()) if told else None


def in_words(seen: int | None, problems: int, what: str) -> str:
    """A warning, where there is something to warn of."""
    if seen is None:
        return f"whether {what} was trained on these problems is not known: its rows are not here, or have no keys"
    return f"{seen:,} of the {problems:,} problems are training rows of {what}: right answers to them show memory" if seen else ""


def _cached() -> list[Path]:
    return sorted(path.parent for path in cache().glob(f"*/{MANIFEST}"))


def _found(sha256: str, folders: Sequence[str | Path]) -> Prepared | None:
    for folder in map(Path, folders):
        try:
            if (folder / MANIFEST).is_file() and sha256_of(folder / MANIFEST) == sha256:
                return open_prepared(folder)
        except (OSError, InputError):  # a folder that cannot be read tells nothing
            continue
    return None
