"""The report of a sweep: one page (HTML, self-contained), the same as Markdown with pictures, and its figures as data."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from muonlab.errors import InputError
from muonlab.files import write_atomically
from muonlab.lab.judge.audit import audit
from muonlab.lab.judge.results import METRICS, Results, compute, plain
from muonlab.lab.runs.store import Sweep, load_sweep
from muonlab.lab.show import charts, export, render
from muonlab.lab.show.arm_tables import change_matrix, recipe_diff, table, tables
from muonlab.lab.show.charts.packing import packed
from muonlab.lab.show.facts import cost, facts
from muonlab.lab.show.findings import answer, notes, verdicts

__all__ = ["answer", "as_json", "notes", "table", "write_report"]

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("muonlab.lab.show"),
    autoescape=lambda name: name is not None and name.endswith(".html.j2"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def _markdown(text: object) -> str:
    """Text as Markdown shows it letter by letter, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", str(text))


TEMPLATES.filters["md"] = _markdown


def write_report(
    directory: str | Path,
    out: str | Path | None = None,
    *,
    sweep: Sweep | None = None,
    svg: bool = False,
    parquet: bool = False,
    curves: bool = False,
) -> tuple[Path, Results]:
    """Writes report.html, report.md, PNGs, results.json and runs.csv for a sweep's folder, finished or not, into `out` (default:
    the folder's `report`). svg: each chart as SVG too. curves: every logged row as curves.csv. parquet: the tables as Parquet too.
    sweep: what was read from the folder, where that is no sweep's. Returns the HTML file and the figures. Raises InputError for a
    folder without a sweep, or one that cannot be written.
    """
    sweep = load_sweep(directory) if sweep is None else sweep
    target = Path(out) if out is not None else Path(directory) / "report"
    try:
        with render.Bundle(charts.VEGA_LITE) as bundle:
            results = compute(sweep, audit(Path(directory), sweep).sentences())
            drawn = charts.charts(results)
            target.mkdir(parents=True, exist_ok=True)
            _pictures(drawn, target, svg)
            _tables(results, target, parquet, curves)
            content = _content(results, drawn)
            interactive = page_charts(drawn, bundle)
        page = TEMPLATES.get_template("report.html.j2").render(**content, **interactive)
        write_atomically(target / "report.md", TEMPLATES.get_template("report.md.j2").render(**content))
        write_atomically(target / "results.json", json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
        write_atomically(target / "report.html", page)
    except OSError as error:
        raise InputError(f"{target}: the report cannot be written: {error.strerror}; choose another folder with --out") from None
    return target / "report.html", results


def page_charts(drawn: list[charts.Chart], bundle: render.Bundle) -> dict[str, Any]:
    """What page.html.j2 needs to draw charts in a browser."""
    specs, numbers = packed([chart.spec("container") for chart in drawn])
    themes = {mode: charts.theme(mode) for mode in ("light", "dark")}
    return {"specs": specs, "numbers": numbers, "themes": themes, "bundle": bundle.text() if drawn else ""}


def _pictures(drawn: list[charts.Chart], target: Path, svg: bool) -> None:
    for name in charts.NAMES:  # an earlier report may have had charts that this one lacks
        for kind in ("png", "svg"):
            (target / f"{name}.{kind}").unlink(missing_ok=True)
    light = {"config": charts.theme("light")}
    pictures = [
        render.Picture(chart.spec() | light, str(target / f"{chart.name}.png"), str(target / f"{chart.name}.svg") if svg else None)
        for chart in drawn
    ]
    render.render(pictures, charts.VEGA_LITE)


def _content(results: Results, drawn: list[charts.Chart]) -> dict[str, Any]:
    """What both pages show."""
    reference, changed = recipe_diff(results)
    metric = results.plan["metric"]
    unit = "in seconds" if metric == "seconds" else "in nats per token"
    meaning = {"val_loss": "validation loss after the last step", "train_loss": "training loss that was logged last"}
    return {
        "results": results,
        "answer": answer(results),
        "notes": notes(results),
        "verdicts": verdicts(results) if len(answer(results)) < len(verdicts(results)) else [],
        "columns": table(results),
        "metric": f"The metric is the {meaning.get(metric, METRICS[metric])}, {unit}; lower is better.",
        "tables": tables(results),
        "charts": drawn,
        "reference": reference,
        "changed": changed,
        "matrix": change_matrix(results),
        "facts": facts(results),
        "cost": cost(results),
    }


def _tables(results: Results, target: Path, parquet: bool, curves: bool) -> None:
    wanted = {"runs": export.runs_table(results)} | ({"curves": export.curves_table(results)} if curves else {})
    for name in ("runs", "curves"):
        for kind in ("csv", "parquet"):
            (target / f"{name}.{kind}").unlink(missing_ok=True)
    for name, columns in wanted.items():
        export.write_csv(target / f"{name}.csv", columns)
        if parquet:
            export.write_parquet(target / f"{name}.parquet", columns)


def as_json(results: Results) -> dict[str, Any]:
    """The figures as data: the plan, the arms, the runs. What is no number (nan) is null."""
    figures = {
        "plan": results.plan,
        "answer": answer(results),
        "verdicts": verdicts(results),
        "audit": list(results.audit),
        "notes": notes(results),
        "arms": [asdict(arm) for arm in results.arms],
        "effects": results.effects,
        "best": {best.arm: best.swept for best in results.best()} if results.is_grid else {},
        "runs": [
            {"cell": run.cell, "seed": run.seed, "status": run.status, "id": run.run.get("id"), **run.result}
            for run in results.runs
        ],
        "provenance": dict(facts(results)),
        "cost": dict(cost(results)),
    }
    return plain(figures)
