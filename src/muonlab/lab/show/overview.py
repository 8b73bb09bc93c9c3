"""One page over several sweeps: how far each is, its best arm with the verdict of its own report, and every final loss."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from muonlab.errors import InputError
from muonlab.files import write_atomically
from muonlab.lab.judge.audit import Audit, audit
from muonlab.lab.judge.results import ArmResult, Results, compute, plain
from muonlab.lab.runs.collection import collect, is_collection
from muonlab.lab.runs.store import Sweep, load_sweep
from muonlab.lab.show import charts, render
from muonlab.lab.show.arm_tables import between, table
from muonlab.lab.show.charts.several import every_final, standing
from muonlab.lab.show.charts.style import level
from muonlab.lab.show.findings import answer, verdicts
from muonlab.lab.show.report import TEMPLATES, page_charts, write_report

PAGE, FIGURES = "index.html", "results.json"


@dataclass(frozen=True)
class Entry:
    """One sweep, or collection, of the page."""

    directory: Path
    sweep: Sweep
    audit: Audit
    results: Results

    @property
    def name(self) -> str:
        return str(self.results.plan["name"])

    @property
    def report(self) -> Path:
        return self.directory / "report" / "report.html"

    @property
    def complete(self) -> bool:
        return self.audit.complete and not any(arm.open for arm in self.results.arms)

    @property
    def ended(self) -> int:
        return len(self.audit.finished) + len(self.audit.diverged)

    @cached_property
    def best(self) -> ArmResult | None:
        """The lowest mean of the arms that have all of their runs; else of those that have any. Diverged runs rule an arm out."""
        arms = self.results.best() or [arm for arm in self.results.arms if not arm.diverged]
        ranked = [(arm.summary.mean, arm) for arm in arms if arm.summary is not None]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None

    def progress(self) -> str:
        """Such as "12 of 30 (1 diverged, 2 failed)"."""
        counts = [(len(self.audit.diverged), "diverged"), (len(self.audit.failed), "failed"), (len(self.audit.damaged), "damaged")]
        more = [f"{count} {what}" for count, what in counts if count]
        more += ["race not over"] if any(arm.open for arm in self.results.arms) else []
        return f"{self.ended} of {self.audit.expected}" + (f" ({', '.join(more)})" if more else "")


def read(directories: list[Path]) -> list[Entry]:
    """The sweeps as their folders are now. Raises InputError, a line for each folder that is none, is named twice, or has the
    name of another."""
    problems: list[str] = []
    entries: list[Entry] = []
    seen: set[Path] = set()
    for directory in directories:
        if directory.resolve() in seen:
            problems.append(f"{directory}: named twice: each sweep once")
            continue
        seen.add(directory.resolve())
        try:
            sweep = collect(directory) if is_collection(directory) else load_sweep(directory)
        except InputError as error:
            problems += error.problems
            continue
        audited = audit(directory, sweep)
        entry = Entry(directory, sweep, audited, compute(sweep, audited.sentences()))
        twin = next((other for other in entries if other.name == entry.name), None)
        if twin is not None:
            problems.append(f"{directory}: is called {entry.name!r}, as {twin.directory} is: expected sweeps with different names")
        entries.append(entry)
    if problems:
        raise InputError(*problems)
    return entries


def write_overview(directories: list[Path], out: Path) -> tuple[Path, list[Entry], dict[str, Any]]:
    """Writes index.html (self-contained) and results.json into `out`, and the report of each sweep that has none.

    Returns the page, what was read, and the figures. Raises InputError, with nothing written, for what `read` refuses, and where
    `out` holds something else or cannot be written.
    """
    entries = read(directories)
    _refuse(out, entries)
    drawn = [chart for chart in [every_final([entry.results for entry in entries])] if chart is not None]
    try:
        with render.Bundle(charts.VEGA_LITE) as bundle:
            out.mkdir(parents=True, exist_ok=True)
            notes = [_report(entry) for entry in entries]
            figures = {"format": 1, "sweeps": [_figures(entry, out, said) for entry, said in zip(entries, notes, strict=True)]}
            page = _page(entries, figures["sweeps"], drawn, page_charts(drawn, bundle))
        write_atomically(out / FIGURES, json.dumps(figures, indent=1, allow_nan=False) + "\n")
        write_atomically(out / PAGE, page)
    except OSError as error:
        raise InputError(f"{out}: the page cannot be written: {error.strerror}; choose another folder with --out") from None
    return out / PAGE, entries, figures


def _refuse(out: Path, entries: list[Entry]) -> None:
    """A file, somebody else's folder, and the inside of a sweep are no place for the page."""
    for entry in entries:
        if out.resolve().is_relative_to(entry.directory.resolve()):
            raise InputError(f"{out}: lies in the folder of a sweep ({entry.directory}); choose another folder with --out")
    try:
        there = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{out}: expected a folder, got a file; choose another with --out") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be read: {error.strerror}; choose another folder with --out") from None
    own = {PAGE, FIGURES, f"{PAGE}.tmp", f"{FIGURES}.tmp"}
    if there - own or (FIGURES in there and not _is_ours(out / FIGURES)) or (PAGE in there and FIGURES not in there):
        raise InputError(f"{out}: holds something else than a page over several sweeps; choose another folder with --out")


def _is_ours(file: Path) -> bool:
    try:
        return "sweeps" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _report(entry: Entry) -> list[str]:
    """Makes sure that there is a report to link to; what a reader must know of it."""
    again = f"`muonlab report {entry.directory}` writes it"
    if not entry.report.exists():
        try:
            write_report(entry.directory, sweep=entry.sweep)
        except InputError as error:
            return [f"There is no report of {entry.name} yet: {error}"]
        return []
    try:
        known = json.loads((entry.report.parent / FIGURES).read_text(encoding="utf-8"))
        now = {"answer": answer(entry.results), "verdicts": verdicts(entry.results), "audit": list(entry.results.audit)}
        same = all(known.get(key) == value for key, value in now.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        same = False
    return [] if same else [f"The report of {entry.name} is older than its runs, or was made with other options: {again} anew."]


def _figures(entry: Entry, out: Path, notes: list[str]) -> dict[str, Any]:
    """What the page says of a sweep, as data. Arms are as in the results.json of its own report."""
    results, best = entry.results, entry.best
    counts = {
        kind: len(getattr(entry.audit, kind)) for kind in ("finished", "diverged", "unfinished", "missing", "damaged", "failed")
    }
    link = quote(Path(os.path.relpath(entry.report.resolve(), out.resolve())).as_posix()) if entry.report.exists() else None
    figures = {
        "name": entry.name,
        "question": results.plan["question"],
        "report": link,
        "complete": entry.complete,
        "expected": entry.audit.expected,
        "found": entry.audit.found,
        **counts,
        "metric": results.plan["metric"],
        "baseline": results.plan["baseline"],
        "alpha": results.plan["alpha"],
        "best": None if best is None else asdict(best),
        "standing": None if best is None else standing(results, best),
        "arms": [{"arm": arm.name, "standing": standing(results, arm), "summary": arm.summary} for arm in results.arms],
        "finals": [{key: run[key] for key in ("arm", "seed", "value")} for run in results.finals()],
        "answer": answer(results),
        "audit": list(results.audit),
        "notes": notes,
    }
    return plain(figures)


def overview(entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of sweeps; the figures of an arm are those of its own report's table."""
    levels = list(dict.fromkeys(level(entry.results) for entry in entries))
    each = f"{levels[0]} CI" if len(levels) == 1 else "CI"
    header = ["sweep", "runs", "best arm", "baseline", f"mean ± {each}", "difference", f"{each} of the difference", "verdict"]
    return header, [_cells(entry, None if len(levels) == 1 else level(entry.results)) for entry in entries]


def _cells(entry: Entry, at: str | None) -> list[str]:
    best = entry.best
    if best is None:
        return [entry.name, entry.progress(), *["–"] * 6]
    header, rows = table(entry.results)
    cells = dict(zip(header, rows[entry.results.arms.index(best)], strict=True))
    c = best.comparison
    return [
        entry.name,
        entry.progress(),
        best.name + ("" if entry.complete else " (so far)"),
        str(entry.results.plan["baseline"] or "–"),
        next(cell for name, cell in cells.items() if name.startswith("mean")),
        cells.get("difference", "–"),
        (between(c.low, c.high, "+.4f") + (f" ({at})" if at else "")) if c is not None else "–",
        cells.get("verdict", "–"),
    ]


def remarks(entries: list[Entry]) -> list[str]:
    """What a reader of the table must know."""
    found = []
    behind = [entry for entry in entries if not entry.complete]
    if behind:
        found.append(f"Not complete: {', '.join(entry.name for entry in behind)}. What is said of them may change.")
    found.append(
        "The best arm has the lowest mean; the difference is from its sweep's baseline. Verdicts are those of each sweep's "
        "own report: adjusted for the arms of that sweep, not for the number of sweeps."
    )
    if any(entry.results.baseline is None for entry in entries):
        found.append("A sweep without a baseline has no verdicts.")
    if any(entry.results.plan.get("race") for entry in entries):
        found.append("Of a race, intervals of the difference are confidence sequences, which hold at every look.")
    return found


def _page(entries: list[Entry], figures: list[dict[str, Any]], drawn: list[charts.Chart], interactive: dict[str, Any]) -> str:
    header, rows = overview(entries)
    done = sum(entry.complete for entry in entries)
    return TEMPLATES.get_template("sweeps.html.j2").render(
        title=f"{len(entries)} sweeps, {'all' if done == len(entries) else done or 'none'} of them complete",
        names=", ".join(entry.name for entry in entries),
        header=header,
        sweeps=[one | {"cells": cells} for one, cells in zip(figures, rows, strict=True)],
        notes=remarks(entries),
        charts=drawn,
        **interactive,
    )
