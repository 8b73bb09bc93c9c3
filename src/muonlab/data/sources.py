"""Sources of rows: local files and folders, data sets saved by the library `datasets`, names on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muonlab.data.embedded import EMBEDDED, Embedded
from muonlab.data.formats import COMPRESSIONS, FORMATS, DataFile, Numbered, Row, format_of
from muonlab.data.paths import expand
from muonlab.errors import InputError, RunError
from muonlab.extras import needed

_HUB_NAME = r"[\w.-]+/[\w.-]+|[\w-]+"  # owner/name, or one of the old names without an owner
_DATASET_MARKS = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves
_ROWS = 256  # of a saved data set, read at a time


class HubDataset:
    """A data set of the library `datasets`: from the hub, streamed, or from a folder that save_to_disk wrote."""

    kind, size = "dataset", None

    def __init__(self, name: str, subset: str | None, split: str | None) -> None:
        library = needed("datasets", f"{name} (no such file, so the name of a data set)")
        folder = Path(name)
        self.name = folder.name if folder.is_dir() else name
        try:
            if folder.is_dir():
                self._rows = _split_of(library.load_from_disk(name), split, name)
                about: dict[str, Any] = {"fingerprint": self._rows._fingerprint}
            else:
                self._rows = library.load_dataset(name, subset, split=split or "train", streaming=True)
                about = {"subset": subset}
        except InputError:
            raise
        except Exception as error:  # an unknown split, subset or name; no connection: the library's and its client's own types
            raise InputError(f"{name}: {_first_line(error)}") from None
        self.identity = {"name": self.name, **about, "split": split or "train"}
        self._total, self._done = getattr(self._rows, "num_rows", None), 0

    def rows(self, skip: int, columns: tuple[str, ...]) -> Numbered[Row]:
        """The rows after number `skip`. Raises RunError where the data set does not go on: a connection may come back."""
        try:
            for number, row in enumerate(self._after(skip, columns), skip + 1):
                self._done = number
                yield number, row
        except Exception as error:  # of any type, as above
            where = f"{self.name}, after row {self._done}"
            raise RunError(f"{where}: {_first_line(error)}; the same command goes on from there") from None

    def where(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def share(self) -> float:
        return self._done / self._total if self._total else 0.0

    def _after(self, skip: int, columns: tuple[str, ...]) -> Iterator[Row]:
        if self._total is None:
            yield from self._rows.skip(skip)
            return
        names = self._rows.column_names
        wanted = [name for name in names if name in columns] or names[:1]
        others = dict.fromkeys(name for name in names if name not in wanted)  # not decoded, but there: for messages
        chosen = self._rows.select_columns(wanted)
        for start in range(skip, self._total, _ROWS):
            table = chosen[start : start + _ROWS]
            yield from ({**dict(zip(table, values)), **others} for values in zip(*table.values()))


Source = DataFile | HubDataset | Embedded


def find_sources(
    names: Sequence[str], *, kind: str | None = None, subset: str | None = None, split: str | None = None
) -> list[Source]:
    """What the names stand for, in their order; files that a glob or a folder holds are sorted.

    kind: the files' format where their names do not say it. subset and split: of a data set. Raises InputError for a
    name that is neither there nor could be on the hub, a folder without data, and a split of what has none.
    """
    found: list[Source] = []
    for name in names:
        paths = local_files(name)
        if paths is None:
            found.append(Embedded(subset, split) if name == EMBEDDED else HubDataset(name, subset, split))
            continue
        if subset is not None or split is not None:
            flag = "--subset" if subset is not None else "--split"
            raise InputError(f"{flag}: {name} is a file or a folder of files, and has none: name the files that you mean")
        found += [DataFile(file, kind or _known_format(file)) for file in paths]
    return found


def local_files(name: str) -> list[Path] | None:
    """The files that a name stands for, in the order in which they are read; None for a data set, here or on the hub. Raises
    InputError for a name that is not there, and a folder without data."""
    path = Path(name)
    saved = path.is_dir() and any((path / mark).is_file() for mark in _DATASET_MARKS)
    if saved or on_hub(name) or (name == EMBEDDED and not path.exists()):
        return None
    return _within(path) if path.is_dir() else expand((name,))


def on_hub(name: str) -> bool:
    """Whether it can only be the name of a data set on the hub."""
    path = Path(name)
    named = re.fullmatch(_HUB_NAME, name) and format_of(path) is None and path.suffix not in COMPRESSIONS
    return bool(named) and name != EMBEDDED and not path.exists()


def _within(folder: Path) -> list[Path]:
    """The files of known formats in a folder and the folders in it, but for hidden ones."""
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and format_of(path)]
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise InputError(
            f"{folder}: holds no data; expected files that end with {', '.join(FORMATS)}, or with .gz and the like after it"
        )
    return shown


def _known_format(path: Path) -> str:
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{path}: unknown format; expected a name that ends with {', '.join(FORMATS)}; or say --format")
    return kind


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _split_of(saved: Any, split: str | None, name: str) -> Any:
    """The split of what load_from_disk gives: one data set, or one for each split."""
    if not isinstance(saved, dict):
        if split is not None:
            raise InputError(f"--split: {name} is a single data set and has none: leave it out")
        return saved
    wanted = split or "train"
    if wanted not in saved:
        raise InputError(f"--split: {name} has no split {wanted!r}; there are: {', '.join(saved)}")
    return saved[wanted]
