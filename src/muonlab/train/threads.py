"""How many threads compute a run where nobody says, and how they wait for one another. Needs no torch."""

from __future__ import annotations

import os
import time
from functools import cache

_MOST = 1024  # threads: a number beyond is a slip, and torch dies of it
_LOOK = 0.2  # seconds: twenty of the kernel's ticks


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set; else the cores of this process that others leave idle now, at least one.

    On a core that is busy a thread makes all the others wait for it in every product.
    """
    return told_threads() or _idle_cores()


@cache
def _idle_cores() -> int:
    """Looked at once a process: runs that are asked together get the same number, and wait for one look."""
    cores = own_cores()
    return max(1, round(len(cores) - _busy(cores)))


def own_cores() -> set[int]:
    """The numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def told_threads() -> int | None:
    """OMP_NUM_THREADS, the first number where it is a list; None where it says nothing."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(told), _MOST) if told.isascii() and told.isdecimal() and int(told) > 0 else None


def wait_passively() -> None:
    """Lets OpenMP's threads sleep while they wait, as long as the environment says nothing else. Before torch is imported.

    By default they spin, and two runs that share a core then spend most of it waiting for each other.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _busy(cores: set[int]) -> float:
    """How many of these cores are kept busy at the moment; 0 where the system does not tell."""
    before = _ticks(cores)
    time.sleep(_LOOK)
    after = _ticks(cores)
    passed = [(idle - before[core][0], total - before[core][1]) for core, (idle, total) in after.items() if core in before]
    return sum(min(1.0, max(0.0, 1 - idle / total)) for idle, total in passed if total > 0)  # what a core waits may be counted back


def _ticks(cores: set[int]) -> dict[int, tuple[int, int]]:
    """Core -> ticks in which it was idle, and all (Linux)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return {}
    counts = {int(name[3:]): [int(n) for n in ticks] for name, *ticks in lines if name[3:].isdigit()}
    return {core: (ticks[3] + ticks[4], sum(ticks[:8])) for core, ticks in counts.items() if core in cores}
