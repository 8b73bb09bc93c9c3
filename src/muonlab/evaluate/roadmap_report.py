"""The report of a roadmap: what each stage adds, with its interval. Markdown, a picture, and the figures as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from statsmodels.stats.multitest import multipletests

from muonlab.evaluate.roadmap import Answers, RoadmapConfig, Stage, Travelled
from muonlab.evaluate.seen import in_words
from muonlab.evaluate.stages import Gain, Right, Standing, gain, standing
from muonlab.files import write_atomically

_HOW = (
    "Where several runs answer, each by itself, the figure is their mean and its interval Student's over seeds; of a single "
    "answerer it is Wilson's over problems. What another model adds is judged over seeds (Welch): would other seeds show it, too? "
    "What the same runs add together, or by more answers, is judged over problems, for these runs, against the mean of all of them "
    "(a paired t-test; McNemar's exact test where one answerer stands against one). p is adjusted for all stages by Holm."
)


@dataclass(frozen=True)
class Step:
    """A stage, and how it does against the one that it is compared with (None: it is the first).

    each: the share of right answers of each member. adjusted: p after Holm's correction over all stages; verdict: by it. tokens:
    written for each problem by one member. levels: the share at each level."""

    stage: Stage
    found: Standing
    each: list[float]
    before: Stage | None
    gain: Gain | None
    adjusted: float | None
    verdict: str
    tokens: int
    levels: dict[str, float]


def steps(travelled: Travelled) -> list[Step]:
    """The stages in their order, judged."""
    config = travelled.roadmap.config
    right = {name: right_of(members) for name, members in travelled.stages.items()}
    gains = {}
    for stage in config.stages:
        if (earlier := config.before(stage)) is not None:
            same = stage.model == earlier.model and set(config.seeds_of(stage)) == set(config.seeds_of(earlier))
            found = gain(right[earlier.name], right[stage.name], same_runs=same, alpha=config.alpha, margin=config.margin)
            gains[stage.name] = found
    holm: Any = multipletests([found.p for found in gains.values()], method="holm")[1] if gains else []
    adjusted = dict(zip(gains, map(float, holm), strict=True))
    return [_step(travelled, stage, right[stage.name], gains.get(stage.name), adjusted.get(stage.name)) for stage in config.stages]


def right_of(members: list[Answers]) -> Right:
    """(M, N): which member is right where."""
    return np.array([[result.correct for result in member.results] for member in members])


def _step(travelled: Travelled, stage: Stage, right: Right, found: Gain | None, adjusted: float | None) -> Step:
    config, members = travelled.roadmap.config, travelled.stages[stage.name]
    of_each = [result.problem.level for result in members[0].results]
    levels = sorted({level for level in of_each if level is not None}, key=lambda level: (isinstance(level, str), level))
    verdict = "baseline"
    if found is not None and adjusted is not None:
        word = "better" if found.difference > 0 else "worse"
        verdict = word if adjusted < config.alpha else "equivalent" if found.equivalent else "undecided"
    return Step(
        stage,
        standing(right, alpha=config.alpha),
        right.mean(1).tolist(),
        config.before(stage),
        found,
        adjusted,
        verdict,
        round(float(np.mean([member.work["tokens"] / len(member.results) for member in members]))),
        {str(level): float(right[:, [other == level for other in of_each]].mean()) for level in levels},
    )


def write_report(travelled: Travelled, folder: Path) -> list[Step]:
    """report.md, accuracy.png and results.json in `folder`."""
    judged = steps(travelled)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(_as_json(travelled, judged), indent=1) + "\n")
    chart(judged, travelled.roadmap.config.alpha).save(str(folder / "accuracy.png"), scale_factor=2)
    write_atomically(folder / "report.md", "\n".join(_lines(travelled, judged)) + "\n")
    return judged


def chart(judged: list[Step], alpha: float) -> Any:
    """The stages below one another: each member, their mean, and its interval."""
    rows = [
        {"stage": s.stage.name, "right": 100 * s.found.value, "low": 100 * s.found.low, "high": 100 * s.found.high} for s in judged
    ]
    members = [{"stage": s.stage.name, "run": 100 * value} for s in judged for value in s.each if len(s.each) > 1]
    stage = alt.Y("stage:N", sort=[s.stage.name for s in judged], title=None, axis=alt.Axis(labelLimit=320))
    title = f"problems answered, per cent, with {100 * (1 - alpha):g} % intervals; small: each run"
    base = alt.Chart(alt.Data(values=rows)).encode(y=stage)
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q")
    ticks = alt.Chart(alt.Data(values=members)).mark_point(shape="stroke", angle=90, size=120, color="#888")
    runs = ticks.encode(x="run:Q", y=stage)
    points = base.mark_point(filled=True, size=90, opacity=1).encode(x="right:Q")
    words = base.mark_text(dy=-12).encode(x="right:Q", text=alt.Text("right:Q", format=".1f"))
    return (lines + runs + points + words).properties(width=520, height=44 * len(rows)).configure_view(stroke=None)


def _as_json(travelled: Travelled, judged: list[Step]) -> dict[str, Any]:
    config = travelled.roadmap.config
    keys = ("id", "val_loss", "seconds", "weights_sha256", "provenance")
    return {
        "question": config.question,
        "seen": travelled.seen,
        "problems": {**config.problems.model_dump(mode="json"), "asked": len(next(iter(travelled.stages.values()))[0].results)},
        "alpha": config.alpha,
        "margin": config.margin,
        "stages": [
            {
                **step.stage.model_dump(mode="json", exclude={"against"}),
                "seeds": list(config.seeds_of(step.stage)),
                **asdict(step.found),
                "each": step.each,
                "tokens_per_problem": step.tokens,
                "levels": step.levels,
                "against": None if step.before is None else step.before.name,
                "gain": None if step.gain is None else asdict(step.gain),
                "p_holm": step.adjusted,
                "verdict": step.verdict,
            }
            for step in judged
        ],
        "runs": [
            {
                "model": model,
                "seed": seed,
                "parameters": about["model"]["parameters"],
                "data_sha256": about["data"]["sha256"],
                **{key: about[key] for key in keys},
            }
            for (model, seed), about in travelled.runs.items()
        ],
    }


def sentence(step: Step, alpha: float) -> str:
    """What the stage adds, in words."""
    if step.gain is None or step.before is None:
        return f"{step.stage.name}: {100 * step.found.value:.1f} % of the problems are answered."
    word = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to"}.get(step.verdict, "undecided against")
    means = "for other seeds" if step.gain.over == "seeds" else "for these runs"
    return (
        f"{step.stage.name}: {100 * step.found.value:.1f} %, {word} {step.before.name} ({100 * step.gain.difference:+.1f} points, "
        f"{100 * (1 - alpha):g} % CI {_ends(step.gain)}, {means}; p {_p(step.adjusted)} after Holm's correction)."
    )


def _p(p: float | None) -> str:
    return "–" if p is None else f"= {p:.4f}" if p >= 5e-5 else "< 0.0001"


def _ends(found: Gain) -> str:
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _lines(travelled: Travelled, judged: list[Step]) -> list[str]:
    config, asked = travelled.roadmap.config, travelled.roadmap.config.problems
    count = len(next(iter(travelled.stages.values()))[0].results)
    named = ", ".join(filter(None, (*asked.data, asked.subset, asked.split)))
    lines = [f"# {config.question}", "", *(f"- {sentence(step, config.alpha)}" for step in judged), "", "![](accuracy.png)", ""]
    lines += [*_stages(config, judged), ""]
    if warning := in_words(travelled.seen, count, "the models"):
        lines += [f"**{warning}.**", ""]
    lines += [f"The same {count} problems for all ({named}), answers read by the rule {asked.rule}. {_HOW}", ""]
    if levels := list(judged[0].levels):
        lines += ["## By level", "", f"| stage |{''.join(f' level {n} |' for n in levels)}", f"|---|{'---|' * len(levels)}"]
        for step in judged:
            cells = (f"{100 * step.levels[n]:.1f} %" for n in levels)
            lines.append(f"| {step.stage.name} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## The runs", ""]
    lines += ["| model | parameters | seed | id | validation loss | seconds of training |", "|---|---|---|---|---|---|"]
    for (model, seed), about in travelled.runs.items():
        size = f"{about['model']['parameters']:,}"
        lines.append(f"| {model} | {size} | {seed} | {about['id']} | {about['val_loss']:.4f} | {about['seconds']:.0f} |")
    commits = sorted({str((about["provenance"].get("git") or {}).get("commit", "unknown")) for about in travelled.runs.values()})
    return [*lines, "", f"Trained by commit {', '.join(commits)}."]


def _stages(config: RoadmapConfig, judged: list[Step]) -> list[str]:
    level = f"{100 * (1 - config.alpha):g} %"
    header = ["stage", "answers", "each", "tokens", "right", f"{level} CI", "against", "difference", f"{level} CI", "p", "verdict"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for step in judged:
        stage, seeds = step.stage, config.seeds_of(step.stage)
        how = {"each": "each of seeds", "vote": "vote of seeds", "average": "averaged logits of seeds"}[stage.together]
        who = f"{stage.model}, {how} {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"{stage.model}, seed {min(seeds)}"
        who += f", {stage.samples} answers at temperature {stage.temperature:g}" if stage.samples > 1 else ""
        each = ", ".join(f"{100 * value:.1f}" for value in step.each) if len(step.each) > 1 else ""
        interval = f"{100 * step.found.low:.1f} to {100 * step.found.high:.1f} ({step.found.over})"
        cells = [stage.name, who, each, str(step.tokens), f"{100 * step.found.value:.1f} %", interval]
        if step.gain is None or step.before is None:
            cells += ["–", "–", "–", "–"]
        else:
            difference = f"{100 * step.gain.difference:+.1f}"
            cells += [step.before.name, difference, f"{_ends(step.gain)} ({step.gain.over})", _p(step.adjusted).removeprefix("= ")]
        lines.append(f"| {' | '.join([*cells, step.verdict])} |")
    return lines
