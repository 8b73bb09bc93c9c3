"""What a sweep's folder should hold against what it holds: said before any figure. Reads only; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.lab.plan import disguise
from muonlab.lab.runs.store import RunRecord, Sweep, failures, read_plan
from muonlab.train.run_folder import RunFolder
from muonlab.train.settings import flat

_SHOWN = 6  # names in a sentence; the others are counted


@dataclass(frozen=True)
class Audit:
    """Counts, and names of run folders (finished … failed, duplicates) or sentences (foreign, disguised, off_budget)."""

    expected: int
    found: int
    finished: list[str]
    diverged: list[str]
    unfinished: list[str]
    missing: list[str]
    damaged: list[str]
    duplicates: list[list[str]]  # folders that hold the same run
    foreign: list[str]  # what lies under runs/ and is no planned run, each with a reason
    disguised: list[str]
    failed: list[str] = field(default_factory=list)  # unfinished or missing, and known why
    off_budget: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # folder -> why it is damaged, or failed
    labels: dict[str, str] = field(default_factory=dict)  # folder -> "muon, seed 3"

    @property
    def complete(self) -> bool:
        """True if every expected run is there, once, with an end of its own."""
        return len(self.finished) + len(self.diverged) == self.expected and not self.duplicates

    def sentences(self) -> list[str]:
        """The audit in words, the counts first."""
        counts = [(len(getattr(self, kind)), kind) for kind in ("finished", "diverged", "unfinished", "missing", "damaged")]
        parts = ", ".join(f"{n} {kind}" for n, kind in counts if n)
        runs = "run" if self.expected == 1 else "runs"
        said = [f"{self.expected} {runs} expected, {self.found} found: {parts}." if parts else f"{self.expected} {runs} expected."]
        for kind in ("diverged", "unfinished", "missing"):
            others = [self.labels[folder] for folder in getattr(self, kind) if folder not in self.failed]
            if others and len(others) < self.expected:
                said.append(f"{kind.capitalize()}: {_listed(others)}.")
        said += [f"Failed: {self.labels[folder]}: {self.reasons[folder]}" for folder in self.failed]
        said += [f"Damaged, and not counted: {self.labels[folder]}: {self.reasons[folder]}" for folder in self.damaged]
        said += [f"The same run more than once: {_listed(folders)}. It is evidence once." for folders in self.duplicates]
        strangers: dict[str, list[str]] = {}  # many folders are often there for one reason
        for sentence in self.foreign:
            name, _, reason = sentence.partition(": ")
            strangers.setdefault(reason, []).append(name)
        said += [f"Not of this experiment: {_listed(folders)}: {reason}" for reason, folders in strangers.items()]
        return said + [f"{sentence}." for sentence in self.disguised] + self.off_budget


def audit(directory: Path, sweep: Sweep) -> Audit:
    """Compares the plan of a sweep with what lies in its folder."""
    by_status = {
        s: [r.folder for r in sweep.runs if r.status == s] for s in ("finished", "diverged", "unfinished", "missing", "damaged")
    }
    known = failures(directory)
    failed = [run.folder for run in sweep.runs if run.status in ("unfinished", "missing") and run.folder in known]
    strangers = _strangers(directory, sweep)
    reasons = {run.folder: run.problem for run in sweep.runs if run.status == "damaged"}
    return Audit(
        expected=len(sweep.runs),
        found=len(sweep.runs) - len(by_status["missing"]),
        **by_status,
        duplicates=_duplicates(sweep.runs, strangers),
        foreign=[f"{name}: {_reason(run, sweep)}" for name, run in strangers.items()],
        disguised=_disguised(directory, sweep),
        failed=failed,
        off_budget=_off_budget(sweep),
        reasons={folder: _inside(directory, why) for folder, why in {**reasons, **{f: known[f] for f in failed}}.items()},
        labels={run.folder: f"{run.cell}, seed {run.seed}" for run in sweep.runs},
    )


def _disguised(directory: Path, sweep: Sweep) -> list[str]:
    if read_plan(directory) is None:
        return []  # settings of other people's programs: "optimizer" may be a name there, and equal ones are not equal programs
    return [found.because for found in disguise.find([(c["name"], c["recipe"]) for c in sweep.plan["cells"] if c["recipe"]])]


def _strangers(directory: Path, sweep: Sweep) -> dict[str, dict[str, Any] | str]:
    """Name -> run.json of what lies under runs/ without being planned, or why there is none."""
    if read_plan(directory) is None or not (directory / "runs").is_dir():
        return {}  # runs that were collected: the plan was made from what is there
    planned = {run.folder for run in sweep.runs}
    found: dict[str, dict[str, Any] | str] = {}
    for path in sorted((directory / "runs").iterdir()):
        if path.name in planned:
            continue
        try:
            run = RunFolder(path).run()
            found[path.name] = run if run is not None and "id" in run else "holds no run"
        except InputError as error:
            found[path.name] = "a file, not a run's folder" if path.is_file() else _inside(directory, str(error))
    return found


def _inside(directory: Path, said: str) -> str:
    """Without the way to the sweep's folder: reports are published."""
    for before in dict.fromkeys((str(directory.absolute()), str(directory.resolve()), str(directory))):
        said = said.replace(f"{before}/", "")
    return said


def _reason(run: dict[str, Any] | str, sweep: Sweep) -> str:
    """Why a run is none of the plan's."""
    if isinstance(run, str):
        return f"{run}."
    if any(known.run.get("id") == run["id"] for known in sweep.runs):
        return "a copy of a planned run."
    recipe = flat(run.get("recipe", {}))
    differ = {cell["name"]: _differing(recipe, flat(cell["recipe"])) for cell in sweep.plan["cells"]}
    name, keys = min(differ.items(), key=lambda item: len(item[1]))
    if not keys:
        return f"{name} with seed {run.get('seed')}, which the experiment does not name."
    return f"a recipe of none of the arms; it differs from {name} in {_listed(keys)}."


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key))


def _duplicates(runs: list[RunRecord], strangers: dict[str, dict[str, Any] | str]) -> list[list[str]]:
    """Folders with equal run ids, and folders of one cell and seed."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        if "id" in run.run:
            groups.setdefault(("id", run.run["id"]), []).append(run.folder)
        if run.status != "missing":
            groups.setdefault((run.cell, run.seed), []).append(run.folder)
    for name, content in strangers.items():
        if not isinstance(content, str):
            groups.setdefault(("id", content["id"]), []).append(name)
    unique = {tuple(sorted({*folders})) for folders in groups.values()}
    return [list(folders) for folders in sorted(unique) if len(folders) > 1]


def _off_budget(sweep: Sweep) -> list[str]:
    """Runs that were given something else than the experiment declares. Seconds count as equal within 5 %."""
    budget = sweep.plan.get("budget")
    if not budget:
        return []
    ((kind, amount),) = budget.items()
    within = 0.05 * amount if kind == "seconds" else 0
    off = [r for r in sweep.runs if r.status == "finished" and r.result.get(kind) is not None]
    off = [r for r in off if abs(r.result[kind] - amount) > within]
    if not off:
        return []
    names = _listed(f"{run.cell}, seed {run.seed} ({run.result[kind]:,.6g})" for run in off)
    return [f"Not at the declared budget of {amount:,} {kind}: {names}."]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return "; ".join(names) if rest <= 1 else "; ".join(names[:_SHOWN]) + f"; and {rest} more"
