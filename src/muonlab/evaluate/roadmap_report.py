"""The report of a roadmap: what each stage adds, with its interval. Markdown, a picture, and the figures as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
from statsmodels.stats.multitest import multipletests

from muonlab.evaluate.accuracy import Accuracy, PairedAccuracy, accuracy, compare
from muonlab.evaluate.roadmap import Stage, Travelled
from muonlab.files import write_atomically


@dataclass(frozen=True)
class Step:
    """A stage, and how it does against the one that it is compared with (None: it is the first).

    adjusted: p after Holm's correction over all stages; verdict: by it."""

    stage: Stage
    found: Accuracy
    before: Stage | None
    paired: PairedAccuracy | None
    adjusted: float | None
    verdict: str
    tokens: int  # generated for each problem
    levels: dict[int, Accuracy]


def steps(travelled: Travelled) -> list[Step]:
    """The stages in their order, judged."""
    config = travelled.roadmap.config
    right = {name: [result.correct for result in answers.results] for name, answers in travelled.stages.items()}
    before = {stage.name: config.before(stage) for stage in config.stages}
    paired = {
        stage.name: compare(right[earlier.name], right[stage.name], alpha=config.alpha, margin=config.margin)
        for stage in config.stages
        if (earlier := before[stage.name]) is not None
    }
    holm: Any = multipletests([found.p for found in paired.values()], method="holm")[1] if paired else []
    adjusted = dict(zip(paired, map(float, holm), strict=True))
    made = []
    for stage in config.stages:
        found, answers = paired.get(stage.name), travelled.stages[stage.name]
        made.append(
            Step(
                stage,
                accuracy(sum(right[stage.name]), len(right[stage.name]), alpha=config.alpha),
                before[stage.name],
                found,
                adjusted.get(stage.name),
                "baseline" if found is None else _verdict(found, adjusted[stage.name], config.alpha),
                round(answers.work["tokens"] / len(answers.results)),
                _levels(travelled, stage.name),
            )
        )
    return made


def _verdict(found: PairedAccuracy, adjusted: float, alpha: float) -> str:
    if adjusted < alpha:
        return "better" if found.difference > 0 else "worse"
    return "equivalent" if found.verdict == "equivalent" else "undecided"


def _levels(travelled: Travelled, stage: str) -> dict[int, Accuracy]:
    results = travelled.stages[stage].results
    levels = sorted({r.problem.level for r in results if r.problem.level is not None})
    parts = {level: [r.correct for r in results if r.problem.level == level] for level in levels}
    return {level: accuracy(sum(part), len(part), alpha=travelled.roadmap.config.alpha) for level, part in parts.items()}


def write_report(travelled: Travelled, folder: Path) -> list[Step]:
    """report.md, accuracy.png and results.json in `folder`."""
    judged = steps(travelled)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(_as_json(travelled, judged), indent=1) + "\n")
    chart(judged, travelled.roadmap.config.alpha).save(str(folder / "accuracy.png"), scale_factor=2)
    write_atomically(folder / "report.md", "\n".join(_lines(travelled, judged)) + "\n")
    return judged


def chart(judged: list[Step], alpha: float) -> Any:
    """The stages below one another, each with its accuracy and interval."""
    rows = [
        {"stage": s.stage.name, "right": 100 * s.found.value, "low": 100 * s.found.low, "high": 100 * s.found.high} for s in judged
    ]
    stage = alt.Y("stage:N", sort=[s.stage.name for s in judged], title=None, axis=alt.Axis(labelLimit=320))
    title = f"problems answered, per cent, with {100 * (1 - alpha):g} % intervals"
    base = alt.Chart(alt.Data(values=rows)).encode(y=stage)
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(x="right:Q")
    words = base.mark_text(dy=-12).encode(x="right:Q", text=alt.Text("right:Q", format=".1f"))
    return (lines + points + words).properties(width=520, height=44 * len(rows)).configure_view(stroke=None)


def _as_json(travelled: Travelled, judged: list[Step]) -> dict[str, Any]:
    config = travelled.roadmap.config
    return {
        "question": config.question,
        "problems": {**config.problems.model_dump(mode="json"), "asked": judged[0].found.n},
        "alpha": config.alpha,
        "margin": config.margin,
        "stages": [
            {
                "name": s.stage.name,
                "model": s.stage.model,
                "seeds": list(config.seeds_of(s.stage)),
                "average": s.stage.average,
                "samples": s.stage.samples,
                "temperature": s.stage.temperature,
                **asdict(s.found),
                "tokens_per_problem": s.tokens,
                "levels": {str(level): asdict(found) for level, found in s.levels.items()},
                "against": None if s.before is None else s.before.name,
                "paired": None if s.paired is None else asdict(s.paired),
                "p_holm": s.adjusted,
                "verdict": s.verdict,
            }
            for s in judged
        ],
        "runs": [
            {
                "model": model,
                "seed": seed,
                "id": about["id"],
                "parameters": about["model"]["parameters"],
                "val_loss": about["val_loss"],
                "seconds": about["seconds"],
                "correct": sum(result.correct for result in travelled.greedy[model, seed].results),
                "weights_sha256": about["weights_sha256"],
                "data_sha256": about["data"]["sha256"],
                "provenance": about["provenance"],
            }
            for (model, seed), about in travelled.runs.items()
        ],
    }


def sentence(step: Step, alpha: float) -> str:
    """What the stage adds, in words."""
    if step.paired is None or step.before is None:
        return f"{step.stage.name}: {100 * step.found.value:.1f} % of {step.found.n} problems are answered."
    word = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to"}.get(step.verdict, "undecided against")
    interval = f"{100 * (1 - alpha):g} % CI {_ends(step.paired)}"
    return (
        f"{step.stage.name}: {100 * step.found.value:.1f} %, {word} {step.before.name} "
        f"({100 * step.paired.difference:+.1f} points, {interval}; {step.paired.gained} problems gained, {step.paired.lost} lost; "
        f"p {_p(step.adjusted)} after Holm's correction)."
    )


def _p(p: float | None) -> str:
    return "–" if p is None else f"= {p:.4f}" if p >= 5e-5 else "< 0.0001"


def _ends(paired: PairedAccuracy) -> str:
    return f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}"


def _lines(travelled: Travelled, judged: list[Step]) -> list[str]:
    config = travelled.roadmap.config
    asked = ", ".join(filter(None, (*config.problems.data, config.problems.subset, config.problems.split)))
    lines = [f"# {config.question}", "", *(f"- {sentence(step, config.alpha)}" for step in judged), "", "![](accuracy.png)", ""]
    lines += [*_stages(travelled, judged), ""]
    lines += [
        f"The same {judged[0].found.n} problems for all ({asked}), answers read by the rule {config.problems.rule}. Intervals: "
        "Wilson's for a stage, Bonett and Price's for a difference; p is McNemar's exact test, adjusted for all stages by Holm. An "
        "interval says how far other problems would move a figure; how far other seeds would is to be seen below.",
        "",
    ]
    if levels := sorted({number for step in judged for number in step.levels}):
        lines += ["## By level", "", f"| stage |{''.join(f' level {n} |' for n in levels)}", f"|---|{'---|' * len(levels)}"]
        for step in judged:
            cells = (f"{100 * step.levels[n].value:.1f} % of {step.levels[n].n}" for n in levels)
            lines.append(f"| {step.stage.name} | {' | '.join(cells)} |")
        lines.append("")
    commits = sorted({str(about["provenance"].get("commit")) for about in travelled.runs.values()})
    ids = ", ".join(about["id"] for about in travelled.runs.values())
    return [*lines, *_runs(travelled), "", f"Runs {ids}, commit {', '.join(commits)}."]


def _stages(travelled: Travelled, judged: list[Step]) -> list[str]:
    level = f"{100 * (1 - travelled.roadmap.config.alpha):g} %"
    header = ["stage", "answers of", "tokens a problem", "right", f"{level} CI"]
    header += ["against", "difference", f"{level} CI", "p", "verdict"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for step in judged:
        stage, seeds = step.stage, travelled.roadmap.config.seeds_of(step.stage)
        who = f"{stage.model}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        who += ", logits averaged" if stage.average else ""
        who += f", {stage.samples} answers each at temperature {stage.temperature:g}" if stage.samples > 1 else ""
        interval = f"{100 * step.found.low:.1f} to {100 * step.found.high:.1f}"
        cells = [stage.name, who, str(step.tokens), f"{100 * step.found.value:.1f} %", interval]
        if step.paired is None or step.before is None:
            cells += ["–", "–", "–", "–"]
        else:
            difference = f"{100 * step.paired.difference:+.1f}"
            cells += [step.before.name, difference, _ends(step.paired), _p(step.adjusted).removeprefix("= ")]
        lines.append(f"| {' | '.join([*cells, step.verdict])} |")
    return lines


def _runs(travelled: Travelled) -> list[str]:
    lines = ["## Every run by itself, one answer, the likeliest token", ""]
    lines += ["| model | parameters | seed | validation loss | right | seconds of training |", "|---|---|---|---|---|---|"]
    for (model, seed), about in travelled.runs.items():
        results, size = travelled.greedy[model, seed].results, f"{about['model']['parameters']:,}"
        right = 100 * sum(result.correct for result in results) / len(results)
        lines.append(f"| {model} | {size} | {seed} | {about['val_loss']:.4f} | {right:.1f} % | {about['seconds']:.0f} |")
    return lines
