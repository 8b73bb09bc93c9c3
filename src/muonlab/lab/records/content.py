"""What a record's folder holds beside its runs: every file is a function of the runs and of what was declared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muonlab.lab.records.figures import copies_among, figures, run_rows
from muonlab.lab.records.rules import PAIRWISE, RULES
from muonlab.lab.runs.collection import common_recipe
from muonlab.lab.runs.store import RunRecord

FORMAT = 1  # of record.json and README.md: a record is verified by the text that this version writes
RUNS, SUMS, AGAINST = "runs", "SHA256SUMS", "against.json"


@dataclass(frozen=True)
class Declared:
    """What cannot be computed from the runs: what they are called and what they are held against."""

    name: str
    arm: str
    rule: str
    target: float
    steps: int | None  # whose evaluation counts; None: the last one
    against_sha256: str | None = None  # of the earlier record's SHA256SUMS


def derived(declared: Declared, runs: list[RunRecord], against: dict[str, Any] | None) -> dict[str, str]:
    """File name -> text, for all files of a record that are computed."""
    rows = run_rows(runs, declared.steps)
    found = figures(declared.rule, declared.target, rows, copies_among(runs), against)
    record = {"format": FORMAT, **asdict(declared), "figures": found, "runs": rows}
    sources = {run.folder: run.run["provenance"].get("source_sha256") for run in runs}
    recipes = {
        "arm": declared.arm,
        "recipe": common_recipe([run.run.get("recipe") or {} for run in runs]),
        "source_sha256": {k: v for k, v in sources.items() if v is not None},
    }
    provenance = {run.folder: run.run["provenance"] for run in runs}
    return {
        "record.json": _json(record),
        "recipe.json": _json(recipes),
        "provenance.json": _json(provenance),
        "README.md": readme(record),
    } | ({} if against is None else {AGAINST: _json(against)})


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def sums(directory: Path) -> str:
    """The content of SHA256SUMS, as `sha256sum -c` reads it: every file but itself."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file() and p != directory / SUMS)
    return "".join(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def readme(record: dict[str, Any]) -> str:
    """The record as a page: what was declared, the figures, what is missing, the runs."""
    found = record["figures"]
    at = "at the last evaluation" if record["steps"] is None else f"at step {record['steps']} (declared)"
    lines = [
        f"# {_cell(record['name'])}",
        "",
        f"**The rule is {'met' if found['met'] else 'not met'}**: {found['n']} runs of {_cell(record['arm'])}, validation loss "
        f"{at} against the target {record['target']}.",
        "",
        f"Rule `{record['rule']}`: {RULES[record['rule']]}.",
        *([f"Against an earlier record: {PAIRWISE}."] if found["against"] else []),
        "",
        *([*(f"- Missing: {_cell(sentence)}." for sentence in found["missing"]), ""] if found["missing"] else []),
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figure_rows(record)),
        "",
        "A diverged, unfinished or cut run is a failure: it is listed, it counts, and no rule is met with one among the runs.",
        "",
        "| run | seed | status | step | validation loss | seconds | counts |",
        "|---|---|---|---|---|---|---|",
        *(_run_line(row) for row in record["runs"]),
        "",
        "`runs/` holds the runs (metrics with a checksum a line, the program where it is known), `originals/` the logs as they "
        f"came, `recipe.json` and `provenance.json` what is known of settings, code and machines, `{SUMS}` the hash of every file. "
        "`muonlab verify FOLDER` computes all of this again from the files and fails on any difference.",
    ]
    return "\n".join(lines) + "\n"


def figure_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each figure, as text."""
    found = record["figures"]
    loss, seconds = found["val_loss"], found["seconds"]
    rows = [("runs", str(found["runs"])), ("of these failures", str(found["failures"])), ("steps", _number(found["steps"], 0))]
    if loss is not None:
        rows += [("validation loss: mean", f"{loss['mean']:.6f} ({loss['mean_4']})"), ("std", _number(loss["std"]))]
        rows += [(name, str(loss[key])) for name, key in (("median", "median"), ("smallest", "min"), ("largest", "max"))]
        rows.append(("99 % CI of the mean", _interval(loss, 1, 6)))
        rows.append((f"p (t-test, mean < {record['target']})", _number(found["p"], 6)))
    if record["rule"] != "speedrun":
        rows.append(("(target - mean) * sqrt(n)", _number(found["statistic"])))
    if seconds is not None:
        some = "" if seconds["n"] == found["n"] else f" ({seconds['n']} of {found['n']} runs)"
        minutes = {key: None if seconds[key] is None else seconds[key] / 60 for key in ("mean", "std", "low", "high")}
        rows += [(f"training time, seconds: mean{some}", _number(seconds["mean"], 3)), ("std", _number(seconds["std"], 3))]
        rows += [("99 % CI", _interval(seconds, 1, 3)), ("minutes: mean", _number(minutes["mean"], 4))]
        rows += [("std", _number(minutes["std"], 4)), ("99 % CI", _interval(seconds, 60, 4))]
    if found["against"] is not None:
        earlier = found["against"]
        rows.append(
            ("earlier record", f"{_cell(earlier['name'])}: {earlier['mean']:.6f}, {earlier['n']} runs of {earlier['steps']} steps")
        )
        rows.append(("pairwise", _number(earlier["statistic"])))
    return rows


def _run_line(row: dict[str, Any]) -> str:
    cells = [row["run"], row["seed"], row["status"], _number(row["step"], 0), _plain(row["val_loss"]), _plain(row["seconds"])]
    cells.append("yes" if row["failure"] is None else f"failure: {row['failure']}")
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _interval(summary: dict[str, Any], unit: float, digits: int) -> str:
    if summary["low"] is None:
        return "–"
    return f"{summary['low'] / unit:.{digits}f} – {summary['high'] / unit:.{digits}f}"


def _number(value: float | None, digits: int = 6) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)


def _cell(value: Any) -> str:
    """Text that stays inside of its table cell and means nothing to Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in str(value))
