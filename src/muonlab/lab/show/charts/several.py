"""One picture of several sweeps: a row for each arm, a dot for each run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from muonlab.lab.judge.results import ArmResult, Results
from muonlab.lab.show.charts.style import COLORS, GREY, WIDTH, Chart, data, few_ticks, halves_of, in_halves, metric_title, tooltips

STANDINGS = {  # of an arm: colour and shape
    "baseline": (GREY, "diamond"),
    "better": (COLORS[2], "circle"),
    "worse": (COLORS[1], "circle"),
    "equivalent": (COLORS[0], "circle"),
    "undecided": (COLORS[4], "circle"),
    "not compared": (COLORS[5], "circle"),
}
_LEAST = 1 / 8  # of a shared axis that each sweep's losses must take up, else each sweep has its own


@dataclass(frozen=True)
class _Panel:
    """One sweep. low and high: the range of its losses, None without any."""

    results: Results
    rows: list[dict[str, Any]]
    low: float | None
    high: float | None


def standing(results: Results, arm: ArmResult) -> str:
    """How an arm stands to its sweep's baseline: one of STANDINGS."""
    if arm is results.baseline:
        return "baseline"
    return arm.verdict.word if arm.verdict is not None else "not compared"


def every_final(several: list[Results]) -> Chart | None:
    """The final losses of all runs of all sweeps, one small chart a sweep; None if no run has ended."""
    panels = [_panel(results) for results in several]
    if all(panel.low is None for panel in panels):
        return None
    shared = _shared(panels)
    used = [word for word in STANDINGS if any(row["standing"] == word for panel in panels for row in panel.rows)]
    longest = max(len(part) for results in several for arm in results.arms for part in halves_of(arm.name) or [arm.name])
    titles = {results.plan["metric"]: metric_title(results) for results in several}
    with debug_mode(False):  # as for the other charts
        drawn = [_draw(panel, shared, used, len(titles) > 1) for panel in panels]
        chart = alt.vconcat(*drawn, spacing=22)
    return Chart("every-final", _title(several), _caption(several, shared, titles), chart, len(panels), 7 * longest + 16)


def _panel(results: Results) -> _Panel:
    standings = {arm.name: standing(results, arm) for arm in results.arms}
    finals = results.finals()
    rows = [{key: run[key] for key in ("arm", "seed", "value")} | {"standing": standings[run["arm"]]} for run in finals]
    values = [run["value"] for run in finals]
    return _Panel(results, rows, min(values, default=None), max(values, default=None))


def _shared(panels: list[_Panel]) -> tuple[float, float] | None:
    """The ends of an axis for all sweeps; None where metrics differ, or one sweep's losses would all stand in one spot."""
    if len({panel.results.plan["metric"] for panel in panels}) > 1:
        return None
    ranges = [(panel.low, panel.high) for panel in panels if panel.low is not None and panel.high is not None]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if any(a < b and b - a < _LEAST * (high - low) for a, b in ranges):
        return None
    return (low, high) if low < high else None


def _draw(panel: _Panel, shared: tuple[float, float] | None, used: list[str], with_metric: bool) -> Any:
    results = panel.results
    names = [arm.name for arm in results.arms]
    halved = in_halves(names)
    label: dict[str, Any] = {"labelExpr": halved, "labelLineHeight": 13} if halved else {}
    y = alt.Y("arm:N", title=None, sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(grid=True, **label))
    scale = alt.Scale(zero=False, nice=False, domain=_padded(*shared)) if shared else alt.Scale(zero=False)
    x: dict[str, Any] = {"title": None, "axis": few_ticks(), "scale": scale}
    layers: list[Any] = []
    baseline = results.baseline
    if baseline is not None and baseline.summary is not None:
        line = data([{"mean": baseline.summary.mean}]).mark_rule(strokeDash=[4, 4], color=GREY)
        layers.append(line.encode(x=alt.X("mean:Q", **x)))
    if panel.rows:  # else Vega complains of an axis without ends
        layers.append(_dots(panel, x, y, used))
        means = [{"arm": arm.name, "mean": arm.summary.mean} for arm in results.arms if arm.summary is not None]
        layers.append(data(means).mark_tick(thickness=2, size=16).encode(x=alt.X("mean:Q", **x), y=y))
    if without := [{"arm": arm.name, "said": _without(arm)} for arm in results.arms if arm.summary is None]:
        text = data(without).mark_text(align="left", baseline="bottom", dy=-1, fontSize=11, fontStyle="italic")
        layers.append(text.encode(x=alt.value(6), y=y, text="said:N"))
    heading = results.plan["name"] + (f": {metric_title(results)}" if with_metric else "")
    title = alt.TitleParams(text=heading, anchor="start", frame="group", fontSize=14, offset=6)
    height = len(names) * (32 if halved else 24)
    return alt.layer(*layers).properties(width=WIDTH, height=max(40, height), title=title)


def _dots(panel: _Panel, x: dict[str, Any], y: alt.Y, used: list[str]) -> Any:
    colors, shapes = ([STANDINGS[word][i] for word in used] for i in (0, 1))
    legend = alt.Legend(symbolType="circle", columns=6, symbolSize=90, symbolStrokeWidth=0)
    metric = metric_title(panel.results)
    tooltip = tooltips(("arm:N", "arm", ""), ("seed:N", "seed", ""), ("value:Q", metric, ".4f"), ("standing:N", "verdict", ""))
    dots = data(panel.rows).mark_point(filled=True, size=90, opacity=0.8)
    return dots.encode(
        x=alt.X("value:Q", **x),
        y=y,
        color=alt.Color("standing:N", scale=alt.Scale(domain=used, range=colors), legend=legend),
        shape=alt.Shape("standing:N", scale=alt.Scale(domain=used, range=shapes), legend=legend),
        tooltip=tooltip,
    )


def _padded(low: float, high: float) -> list[float]:
    room = 0.03 * (high - low)
    return [low - room, high + room]


def _without(arm: ArmResult) -> str:
    """Why an arm has no dots."""
    if arm.diverged:
        return f"{arm.diverged} of {arm.planned} runs diverged"
    return "no finished run yet"


def _title(several: list[Results]) -> str:
    return "Final losses of all runs" if all(r.plan["metric"] == "val_loss" for r in several) else "All runs"


def _caption(several: list[Results], shared: tuple[float, float] | None, titles: dict[str, str]) -> str:
    metric = f"{next(iter(titles.values())).capitalize()}. " if len(titles) == 1 else ""
    caption = f"{metric}One dot a seed, in the colour of its arm's verdict; the stroke is the mean"
    if any(results.baseline is not None for results in several):
        caption += ", diamonds and the dashed line are the baseline"
    why = "they are judged by different metrics" if len(titles) > 1 else "one for all would squeeze some into a spot"
    caption += ". One axis for all sweeps." if shared else f". Each sweep has its own axis: {why}."
    diverged = [(sum(arm.diverged for arm in results.arms), results.plan["name"]) for results in several]
    told = ", ".join(f"{count} of {name}" for count, name in diverged if count)
    return caption + (f" Runs that diverged have no dot: {told}." if told else "")
