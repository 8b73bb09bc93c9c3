"""The report of a sweep: one page (HTML, self-contained), the same as Markdown with PNGs, and its figures as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from muonlab.errors import InputError
from muonlab.lab import charts
from muonlab.lab.results import ArmResult, Results, compute, number, plain
from muonlab.lab.store import load_sweep
from muonlab.train.run_folder import write_atomically

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("muonlab.lab"),
    autoescape=lambda name: name is not None and name.endswith(".html.j2"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def _markdown(text: object) -> str:
    """Text as Markdown shows it letter by letter, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", str(text))


_TEMPLATES.filters["md"] = _markdown


def write_report(directory: str | Path, out: str | Path | None = None) -> tuple[Path, Results]:
    """Writes report.html, report.md, PNGs and results.json for a sweep's folder, finished or not, into `out` (default: the
    folder's `report`). Returns the HTML file and the figures. Raises InputError for a folder without a sweep, or one that cannot
    be written.
    """
    results = compute(load_sweep(directory))
    target = Path(out) if out is not None else Path(directory) / "report"
    drawn = charts.charts(results)
    content = {"results": results, "answer": answer(results), "notes": notes(results), "columns": table(results), "charts": drawn}
    content |= {"facts": facts(results), "number": number}
    page = _TEMPLATES.get_template("report.html.j2").render(
        **content,
        specs=[chart.spec("container") for chart in drawn],
        themes={mode: charts.theme(mode) for mode in ("light", "dark")},
        bundle=charts.bundle() if drawn else "",
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in charts.NAMES:  # an earlier report may have had charts that this one lacks
            (target / f"{name}.png").unlink(missing_ok=True)
        for chart in drawn:
            (target / f"{chart.name}.png").write_bytes(chart.png())
        write_atomically(target / "report.md", _TEMPLATES.get_template("report.md.j2").render(**content))
        write_atomically(target / "results.json", json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
        write_atomically(target / "report.html", page)
    except OSError as error:
        raise InputError(f"{target}: the report cannot be written: {error.strerror}; choose another folder with --out") from None
    return target / "report.html", results


def answer(results: Results) -> list[str]:
    """The answer to the experiment's question: a sentence for each arm, computed from the runs."""
    baseline = results.baseline
    sentences = []
    if results.is_grid:
        for best in results.best():
            where = ", ".join(f"{key} = {value}" for key, value in best.swept.items()) or "its one setting"
            sentences.append(f"{best.arm}: best {where} (mean {_mean(best)}, {best.finished} seeds)")
        sentences = sentences or ["No arm has all of its runs yet."]
    if baseline is None:
        return sentences or [f"{arm.name}: mean {_mean(arm)} over {arm.finished} of {arm.planned} runs" for arm in results.arms]
    words = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to", "undecided": "undecided against"}
    for arm in results.arms:
        if arm is baseline:
            continue
        if arm.verdict is None:
            sentences.append(f"{arm.name}: no finished run yet to compare with {baseline.name}.")
        else:
            sentences.append(f"{arm.name} is {words[arm.verdict.word]} {baseline.name}: {arm.verdict.reason}.")
    return sentences


def notes(results: Results) -> list[str]:
    """What a reader must know before trusting the figures: the audit, changes of mind, misses, edges of grids."""
    counts = Counter(run.status for run in results.runs)
    odd = [f"{counts[s]} {s}" for s in ("diverged", "unfinished", "missing", "damaged") if counts[s]]
    found = [f"{counts['finished']} of {len(results.runs)} runs finished{'; ' + ', '.join(odd) if odd else ''}."]
    found += _race(results)
    found += [_changed(change) for change in results.plan["changes"]]
    recipes = {cell["name"]: json.dumps(cell["recipe"]) for cell in results.plan["cells"]}
    same = [[name for name, recipe in recipes.items() if recipe == one] for one in dict.fromkeys(recipes.values())]
    found += [f"{' and '.join(names)} are the same recipe under different names." for names in same if len(names) > 1]
    if len({run.result["tokens"] for run in results.runs if run.status == "finished"}) > 1:
        found.append("Arms are trained on different numbers of tokens: a lower loss may be the longer training's.")
    found += _misses(results)
    edges = [best.arm for best in results.best() if results.on_edge(best)]
    found += [f"{arm}'s best value lies on the edge of its grid: the optimum may lie beyond." for arm in edges]
    if any(0 < arm.finished < 3 for arm in results.arms) and not results.is_grid:
        found.append("Arms with fewer than three runs: intervals are wide and rest on the assumption of normal scatter.")
    return found


def _changed(change: dict[str, Any]) -> str:
    """What was changed between two sweeps (or races) into the same folder."""
    if change["key"] != "race":
        return f"Changed after a sweep, on {change['date']}: {change['key']} from {change['before']} to {change['after']}."
    if change["after"]:
        return f"A sweep until {change['date']}, then a race: it looked at runs that were there already."
    return f"A race until {change['date']}, then a sweep: its tests take the number of runs as fixed before, which it was not."


def _race(results: Results) -> list[str]:
    """How a race came to its verdicts."""
    if not results.plan.get("race"):
        return []
    said = (
        "A race: seeds ran one after the other, with a look after each. Verdicts and differences are of the seeds that an arm "
        "shares with the baseline, by confidence sequences, which allow such looks; the intervals of single arms do not."
    )
    still = [arm.name for arm in results.arms if arm.open]
    return [said] + ([f"The race is not over: {', '.join(still)} still open; `muonlab race` goes on."] if still else [])


def _misses(results: Results) -> list[str]:
    """A sentence for each arm of which some runs did not reach the target."""
    found, target = [], results.plan["target"]
    for arm in results.arms if target is not None else []:
        ended = arm.finished + arm.diverged
        if arm.reached < ended:
            seen = [run.result["best_val_loss"] for run in results.runs if run.cell == arm.name and run.result]
            lowest = number(min((loss for loss in seen if loss is not None), default=None))
            how_many = f"by {arm.reached} of {ended} runs" if arm.reached else "by none of the runs"
            found.append(
                f"Target {target:g} was reached {how_many} of {arm.name} (lowest loss {lowest}); a miss counts as the latest."
            )
    return found


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of arms, as text."""
    plan = results.plan
    level = f"{100 * (1 - plan['alpha']):g} % CI"
    header = ["arm", "runs", f"mean ± {level}", "std"]
    with_target, with_verdict = plan["target"] is not None, results.baseline is not None
    header += [f"steps to {plan['target']:g}", f"seconds to {plan['target']:g}"] if with_target else []
    header.append("seconds")
    header += ["difference", "verdict"] if with_verdict else []
    rows = []
    for arm in results.arms:
        s = arm.summary
        runs = f"{arm.finished}/{arm.planned}" + (f" ({arm.diverged} diverged)" if arm.diverged else "")
        interval = f" ± {number(s.high - s.mean)}" if s is not None and s.n > 1 else ""
        row = [arm.name, runs, _mean(arm) + interval, number(s.std if s else None)]
        if with_target:
            row += [_to_target(arm, arm.steps_to_target, 0), _to_target(arm, arm.seconds_to_target, 1)]
        row.append(number(arm.seconds, 1))
        if with_verdict:
            difference = f"{arm.comparison.difference:+.4f}" if arm.comparison else "–"
            row += [difference, arm.verdict.word if arm.verdict else ("baseline" if arm is results.baseline else "–")]
        rows.append(row)
    return header, rows


def facts(results: Results) -> list[tuple[str, str]]:
    """Provenance: what all runs share, and where they do not, each variant."""
    runs = [run.run for run in results.runs if run.run]
    if not runs:
        return []
    code = [r["provenance"]["git"] for r in runs]
    commits = {
        f"{g['commit'][:12]}{' with uncommitted changes' if g['dirty'] else ''}" if g else "outside a repository" for g in code
    }
    versions = {", ".join(f"{name} {v}" for name, v in r["provenance"]["versions"].items()) for r in runs}
    cpus = {f"{r['provenance']['gpu'] or r['provenance']['cpu']}, {r['provenance']['cores']} cores" for r in runs}
    machines = {f"{r['machine']['device']}, {r['machine']['precision']}, {r['machine']['threads']} thread(s) a run" for r in runs}
    polar = {f"orthogonalizer products in {'bfloat16' if r['machine']['bf16_fast'] else 'float32'}" for r in runs}
    data = {f"{r['data']['source']}, SHA-256 {r['data']['sha256'][:16]}…, split {r['data']['split']}" for r in runs}
    models = {f"{r['model']['parameters']:,} parameters, {r['model']['flops_per_token'] / 1e6:.2f} MFLOP a token" for r in runs}
    tokens = {f"{run.result['tokens']:,} tokens a run" for run in results.runs if run.status == "finished"}
    days = {r["provenance"]["started"][:10] for r in runs}
    found = [("code", commits), ("versions", versions), ("hardware", cpus), ("computed on", machines | polar), ("data", data)]
    found += [("model", models), ("budget", tokens), ("seeds", {", ".join(map(str, results.plan["seeds"]))}), ("dates", days)]
    return [(name, "; ".join(sorted(values))) for name, values in found if values]


def as_json(results: Results) -> dict[str, Any]:
    """The figures as data: the plan, the arms, the runs. What has no value is None."""
    found = {
        "plan": results.plan,
        "answer": answer(results),
        "notes": notes(results),
        "arms": [asdict(arm) for arm in results.arms],
        "best": {best.arm: best.swept for best in results.best()} if results.is_grid else {},
        "runs": [
            {"cell": run.cell, "seed": run.seed, "status": run.status, "id": run.run.get("id"), **run.result}
            for run in results.runs
        ],
        "provenance": dict(facts(results)),
    }
    return plain(found)


def _mean(arm: ArmResult) -> str:
    return number(arm.summary.mean if arm.summary else None)


def _to_target(arm: ArmResult, value: float | None, digits: int) -> str:
    ended = arm.finished + arm.diverged
    if value is None:
        return f"not reached ({arm.reached}/{ended})" if ended else "–"
    return number(value, digits) + (f" ({arm.reached}/{ended})" if arm.reached < ended else "")
