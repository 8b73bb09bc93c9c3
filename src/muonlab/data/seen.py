"""Which hashes came before: 8 bytes each in memory, and as much on disk for a preparation that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


class Seen:
    """A growing set of 64-bit hashes: sorted arrays of ever larger sizes, two of like size merged into one.

    Among n different rows about n²/2⁶⁵ are taken for another's double: of a million rows with a chance of 1 in 37 million one,
    of a billion 0.03.
    """

    def __init__(self, path: Path, count: int) -> None:
        """Begins with the first `count` hashes of the file, and forgets those after them."""
        self._path, self._new = path, [np.empty(0, np.uint64)]
        self._runs: list[Hashes] = []
        self.count = count
        if path.exists():
            os.truncate(path, 8 * count)
        if count:
            self._runs = [np.sort(np.fromfile(path, dtype="<u8", count=count))]

    def first(self, hashes: Hashes) -> NDArray[np.bool_]:
        """For each hash (N,) whether it has not come before, here or earlier; and remembers them."""
        values, positions = np.unique(hashes, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, values), len(run) - 1)
            known |= run[at] == values
        fresh = np.zeros(len(hashes), dtype=bool)
        fresh[positions[~known]] = True
        if not known.all():
            self._runs.append(values[~known])
            self._new.append(values[~known])
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) > len(self._runs[-2]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort()
            self._runs.append(merged)
        return fresh

    def save(self) -> int:
        """Writes what is new to the file. Returns how many there are."""
        new = np.concatenate(self._new)
        if len(new):
            with open(self._path, "ab") as file:
                file.write(new.astype("<u8").tobytes())
                file.flush()
                os.fsync(file.fileno())
        self._new = [np.empty(0, np.uint64)]
        self.count += len(new)
        return self.count
