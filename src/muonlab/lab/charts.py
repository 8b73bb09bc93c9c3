"""Charts: one Vega-Lite definition each, for PNG, SVG and the interactive page alike. Plain rows in, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from muonlab.lab.results import Results, plain

# Okabe & Ito's colours, told apart by (nearly) everybody, in an order that reads on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B79F00")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
NAMES = ("loss-by-step", "loss-by-seconds", "final-loss", "difference", "sweep")
_WIDTH, _HEIGHT = 680, 320
_INK = {"light": "#1b1f24", "dark": "#e6e8eb"}
_LINES = {"light": "#d5d9de", "dark": "#3a4048"}
_PAPER = {"light": "#ffffff", "dark": "#14171a"}
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


@dataclass(frozen=True)
class Chart:
    """name: of its files; title and caption: for the page; chart: the definition."""

    name: str
    title: str
    caption: str
    chart: Any

    def spec(self, width: int | str = _WIDTH) -> dict[str, Any]:
        """The Vega-Lite definition; width "container" follows the page."""
        return self.chart.properties(width=width).to_dict()

    def png(self) -> bytes:
        spec = self.spec()
        return vl_convert.vegalite_to_png(spec | {"config": theme("light")}, vl_version=_VEGA_LITE, scale=2)


def theme(mode: str) -> dict[str, Any]:
    """Vega-Lite's config for `light` or `dark` paper."""
    ink, line = _INK[mode], _LINES[mode]
    font = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    return {
        "background": _PAPER[mode],
        "font": font,
        "padding": 12,
        "view": {"stroke": None},
        "axis": {
            **dict.fromkeys(("labelColor", "titleColor"), ink),
            **dict.fromkeys(("gridColor", "domainColor", "tickColor"), line),
            **{"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500, "labelLimit": 220, "titlePadding": 8},
        },
        "legend": {
            **dict.fromkeys(("labelColor", "titleColor"), ink),
            **{"labelFontSize": 13, "labelLimit": 320, "orient": "top", "title": None, "columns": 3},
            **{"symbolType": "stroke", "symbolStrokeWidth": 3, "symbolSize": 400, "symbolOpacity": 1},
        },
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "tick": {"color": ink},
        "title": {"color": ink},
    }


def bundle() -> str:
    """The JavaScript that draws the charts, to be put into a page: it works without a network."""
    return vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # pyright: ignore[reportCallIssue] (its stub asks for more)


def charts(results: Results) -> list[Chart]:
    """The charts that a sweep's figures allow, the most telling first."""
    found = []
    if results.is_grid:
        if results.finals():
            found.append(_finals(results) if results.swept_key is None else _sweep_chart(results, results.swept_key))
    elif results.curves():
        found += [_curves(results, "step"), _curves(results, "seconds")]
        if results.finals():
            found.append(_finals(results))
        if any(arm.comparison for arm in results.arms):
            found.append(_differences(results))
    return found


def _color(results: Results, field: str, names: list[str]) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=[COLORS[i % len(COLORS)] for i in range(len(names))]))


def _names(results: Results) -> list[str]:
    return [arm.name for arm in results.arms]


def _curves(results: Results, x: str) -> Chart:
    names, rows = _names(results), results.curves()
    x_title = {"step": "optimizer steps", "seconds": "training time (seconds)"}[x]
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip(f"{x}:Q", title=x, format=".4~g"),
        alt.Tooltip("mean:Q", title="mean loss", format=".4f"),
        alt.Tooltip("low:Q", title="lowest seed", format=".4f"),
        alt.Tooltip("high:Q", title="highest seed", format=".4f"),
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(f"{x}:Q", title=x_title, axis=alt.Axis(grid=False, tickCount=8)), color=_color(results, "arm", names)
    )
    y_title = "validation loss (nats per token)"
    band = base.mark_area(opacity=0.22).encode(y=alt.Y("low:Q", title=y_title, scale=alt.Scale(zero=False)), y2="high:Q")
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in range(len(names))]))
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=22)).encode(y="mean:Q", strokeDash=dash, tooltip=tooltip)
    layers = [band, line]
    target = results.plan["target"]
    if target is not None:
        goal = alt.Chart(alt.InlineData(values=[{"y": target, "label": f"target {target:g}"}]))
        layers.append(goal.mark_rule(strokeDash=[4, 4], opacity=0.7).encode(y="y:Q"))
        layers.append(goal.mark_text(align="left", baseline="bottom", dx=4, dy=-3).encode(y="y:Q", text="label:N", x=alt.value(0)))
    fewest, most = (function(row["seeds"] for row in rows) for function in (min, max))
    count = str(most) if fewest == most else f"{fewest} to {most}"
    caption = f"Mean over {count} seeds; the band reaches from the lowest to the highest seed."
    title = "Validation loss by step" if x == "step" else "Validation loss by training time"
    return Chart(f"loss-by-{x}", title, caption, alt.layer(*layers).properties(height=_HEIGHT))


def _metric_title(results: Results) -> str:
    return {"val_loss": "final validation loss", "best_val_loss": "best validation loss"}[
        results.plan["metric"]
    ] + " (nats per token)"


def _finals(results: Results) -> Chart:
    names = _names(results)
    level = f"{100 * (1 - results.plan['alpha']):g} %"
    intervals = [
        {"arm": arm.name, "mean": arm.summary.mean, "low": arm.summary.low, "high": arm.summary.high}
        for arm in results.arms
        if arm.summary is not None and arm.summary.n > 1
    ]
    y = alt.Y("arm:N", title=None, sort=names)
    scale = alt.Scale(zero=False, nice=True)
    few = alt.Axis(tickCount=7)  # more would run into one another on a phone
    color = _color(results, "arm", names).legend(None)
    dots = (
        alt.Chart(alt.InlineData(values=results.finals()))
        .mark_circle(size=90, opacity=0.75)
        .encode(
            x=alt.X("value:Q", title=_metric_title(results), scale=scale, axis=few),
            y=y,
            color=color,
            tooltip=["arm:N", "seed:N", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    spread = alt.Chart(alt.InlineData(values=intervals)).encode(y=y)
    bars = spread.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", scale=scale, title=_metric_title(results), axis=few), x2="high:Q"
    )
    ticks = spread.mark_tick(thickness=2, size=18).encode(x="mean:Q")
    caption = f"One dot a seed; the stroke is the mean, the line its {level} confidence interval (Student t)."
    height = 56 * max(2, len(names))
    return Chart("final-loss", "Final loss of every run", caption, alt.layer(bars, ticks, dots).properties(height=height))


def _differences(results: Results) -> Chart:
    names = _names(results)
    rows = [
        {
            "arm": arm.name,
            "difference": arm.comparison.difference,
            "low": plain(arm.comparison.low),
            "high": plain(arm.comparison.high),
            "verdict": arm.verdict.word if arm.verdict else "",
        }
        for arm in results.arms
        if arm.comparison is not None
    ]
    order = [row["arm"] for row in rows]
    baseline, margin = results.plan["baseline"], results.plan["margin"]
    y = alt.Y("arm:N", title=None, sort=order)
    x_axis = {"title": f"difference from {baseline} (nats per token)", "axis": alt.Axis(tickCount=7)}
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=y, color=_color(results, "arm", names).legend(None))
    layers: list[Any] = []
    if margin is not None:
        zone = alt.Chart(alt.InlineData(values=[{"from": -margin, "to": margin}]))
        layers.append(zone.mark_rect(opacity=0.18, color="#7F7F7F").encode(x=alt.X("from:Q", **x_axis), x2="to:Q"))
    zero = alt.Chart(alt.InlineData(values=[{"x": 0}]))
    layers += [
        zero.mark_rule(strokeDash=[4, 4]).encode(x=alt.X("x:Q", **x_axis)),
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", **x_axis), x2="high:Q"),
        base.mark_point(filled=True, size=110).encode(
            x="difference:Q",
            tooltip=["arm:N", "verdict:N", *(alt.Tooltip(f"{k}:Q", format="+.4f") for k in ("difference", "low", "high"))],
        ),
        base.mark_text(dy=-14, fontSize=13).encode(x="difference:Q", text="verdict:N"),
    ]
    level = f"{100 * (1 - results.plan['alpha']):g} %"
    zone_text = f" The grey zone is the margin, ±{margin:g}: differences in it do not matter." if margin is not None else ""
    interval = f"{level} confidence interval (Welch)"
    if results.plan.get("race"):
        interval = f"confidence sequence, which holds at every look, over all arms at {level}"
    caption = f"Difference of means with its {interval}; left is better.{zone_text}"
    height = 64 * max(2, len(order))
    return Chart("difference", f"Difference from {baseline}", caption, alt.layer(*layers).properties(height=height))


def _sweep_chart(results: Results, key: str) -> Chart:
    families = list(dict.fromkeys(arm.arm for arm in results.arms))
    rows = [{**row, "x": row[key]} for row in results.finals() if key in row]
    numeric = all(isinstance(row["x"], int | float) and not isinstance(row["x"], bool) for row in rows)
    if not numeric:
        rows = [{**row, "x": str(row["x"])} for row in rows]
    if numeric:
        kind = "log" if all(row["x"] > 0 for row in rows) else "linear"
        axis = alt.Axis(values=sorted({row["x"] for row in rows}), format="~g", grid=False, labelAngle=-40, labelOverlap=False)
        scale = alt.Scale(type=kind, nice=False, padding=18)
        x = alt.X("x:Q", title=f"{key} (log scale)" if kind == "log" else key, scale=scale, axis=axis)
    else:
        x = alt.X("x:O", title=key)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=_color(results, "family", families))
    y = alt.Y("value:Q", title=_metric_title(results), scale=alt.Scale(zero=False))
    dots = base.mark_circle(size=60, opacity=0.6).encode(y=y, tooltip=["arm:N", "seed:N", alt.Tooltip("value:Q", format=".4f")])
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean(value):Q", title=_metric_title(results)))
    caption = "One dot a run; the line joins the means."
    return Chart("sweep", f"Final loss by {key}", caption, alt.layer(line, dots).properties(height=_HEIGHT))
