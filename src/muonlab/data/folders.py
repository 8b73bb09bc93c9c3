"""The prepared folders that a recipe's [data] table stands for: named ones, or those that its rows are prepared into."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from muonlab.data.config import OF_ROWS, DataConfig
from muonlab.data.prepare import Plan, Progress, prepare
from muonlab.data.prepared import MANIFEST, Prepared, open_prepared
from muonlab.data.sources import find_sources, local_files, on_hub
from muonlab.errors import InputError


def folders(
    config: DataConfig, *, on_progress: Callable[[Progress], None] = lambda _: None, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Prepared], list[Prepared]]:
    """Folders to train on, and those held out, for the sources "prepared" and "rows". Rows are prepared where they are not yet.

    Raises InputError for what is wrong with folders, rows or the way they are to be read.
    """
    if config.source == "prepared":
        return _apart([open_prepared(name) for name in config.files], [open_prepared(name) for name in config.validation_files])
    named = (_trained_on(config), config.validation_files)
    shares = (0.0 if config.validation_files else config.validation_fraction, 0.0)
    made = [
        [_prepared(config, names, share, on_progress, say)] if names else [] for names, share in zip(named, shares, strict=True)
    ]
    return made[0], made[1]


def _apart(made: list[Prepared], held: list[Prepared]) -> tuple[list[Prepared], list[Prepared]]:
    """Both, if no folder, nor a copy of it, is in both."""
    for folder in held:
        if same := next((other for other in made if other.sha256 == folder.sha256), None):
            raise InputError(
                f"data: validation_files: {folder.folder} is trained on as well (files: {same.folder}): name another folder to "
                "hold out, or leave validation_files out, which holds out what each folder does"
            )
    return made, held


def _trained_on(config: DataConfig) -> tuple[str, ...]:
    """`files` without the files that validation_files names too. A name of which none is held out stays as it is."""
    held_files: set[Path] = set()
    held_sets: set[str] = set()
    for name in config.validation_files:
        paths = local_files(name)
        held_files |= {path.resolve() for path in paths or ()}
        held_sets |= {_data_set(name)} if paths is None else set()
    left: list[str] = []
    for name in config.files:
        paths = local_files(name)
        if paths is None and _data_set(name) in held_sets:
            raise InputError(
                f"data: validation_files: {name} is trained on as well (files): name another data set to hold out, or leave "
                "validation_files out, which holds out a share of its prompts (validation_fraction)"
            )
        kept = [str(path) for path in paths or () if path.resolve() not in held_files]
        left += [name] if len(kept) == len(paths or ()) else kept
    if not left:
        raise InputError(f"data: validation_files: holds out all that files names ({', '.join(config.files)}): name more files")
    return tuple(left)


def _data_set(name: str) -> str:
    """One name for a data set, however its folder is written."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name.casefold()


def cache() -> Path:
    """Where prepared rows are kept: $XDG_CACHE_HOME/muonlab/prepared, by default ~/.cache/muonlab/prepared. It may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muonlab" / "prepared"


def _prepared(
    config: DataConfig, names: tuple[str, ...], held_out: float, on_progress: Callable[[Progress], None], say: Callable[[str], None]
) -> Prepared:
    """A data set on the hub is asked for once: what is prepared needs no connection. Files are prepared again when they change."""
    options = {name: getattr(config, name) for name in OF_ROWS}
    options["columns"] = config.columns or ("text",)
    local = [name for name in names if not on_hub(name)]
    identity = [source.identity for source in find_sources(local, subset=config.subset, split=config.split)]
    tokenizer = Path(config.tokenizer)
    content = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else None
    key = json.dumps([names, held_out, options, identity, content], sort_keys=True)
    folder = cache() / hashlib.sha256(key.encode()).hexdigest()[:16]
    if (folder / MANIFEST).exists():
        return open_prepared(folder)
    say(f"preparing {', '.join(names)} in {folder}")
    return prepare(Plan(sources=names, held_out=held_out, **options), folder, on_progress=on_progress, say=say, wait=True)
