"""Expected against found runs: what a reader must know before any figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from muonlab.lab.store import Sweep


@dataclass(frozen=True)
class Audit:
    expected: int
    found: int
    finished: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    disguised: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        counts = {s: len(getattr(self, s)) for s in ("diverged", "unfinished", "missing", "damaged")}
        odd = [f"{n} {s}" for s, n in counts.items() if n]
        return [f"{len(self.finished)} of {self.expected} runs finished{'; ' + ', '.join(odd) if odd else ''}.", *self.disguised]


def audit(directory: Path, sweep: Sweep) -> Audit:
    by_status: dict[str, list[str]] = {}
    for run in sweep.runs:
        by_status.setdefault(run.status, []).append(run.folder)
    counts = Counter(run.status for run in sweep.runs)
    return Audit(len(sweep.runs), len(sweep.runs) - counts["missing"], **by_status)
