"""How all charts look: colours, theme, and the pieces that they share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import altair as alt

from muonlab.lab.judge.results import METRICS, Results

# Okabe & Ito's colours, told apart by (nearly) everybody, in an order that reads on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B79F00")
_BRIGHT = tuple(one for one in COLORS if one != "#7F7F7F")  # beside grey lines
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
GREY = "#8A9199"
RED = "#D1242F"
RAMP = ("#5c01a6", "#8305a7", "#aa2395", "#cc4778", "#e66c5c", "#f89540", "#fdb42f")  # "plasma" without its ends
WIDTH, HEIGHT = 680, 320
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])

_INK = {"light": "#1b1f24", "dark": "#e6e8eb"}
_LINES = {"light": "#d5d9de", "dark": "#3a4048"}
_PAPER = {"light": "#ffffff", "dark": "#14171a"}


@dataclass(frozen=True)
class Chart:
    """name: of its files; title and caption: for the page; chart: the definition. panels: how many small charts it is made of
    (0: it is one chart, as wide as the page). labels: pixels for the names at the left of charts below one another."""

    name: str
    title: str
    caption: str
    chart: Any
    panels: int = 0
    labels: int = 0

    def spec(self, width: int | str = WIDTH) -> dict[str, Any]:
        """The Vega-Lite definition; width "container" follows the page. Small charts are laid out by the page itself."""
        if self.panels:
            room = {"labels": self.labels} if self.labels else {}
            return self.chart.to_dict() | ({"panels": self.panels, **room} if width == "container" else {})
        return self.chart.properties(width=width).to_dict()


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
            **{
                "labelFontSize": 12,
                "titleFontSize": 13,
                "titleFontWeight": 500,
                "labelLimit": 220,
                "titlePadding": 8,
                "labelOverlap": "greedy",
                "labelSeparation": 3,
            },
        },
        "legend": {
            **dict.fromkeys(("labelColor", "titleColor"), ink),
            **{"labelFontSize": 13, "labelLimit": 200, "orient": "top", "title": None, "columns": 3},
            **{"symbolType": "stroke", "symbolStrokeWidth": 3, "symbolSize": 400, "symbolOpacity": 1},
            **{"gradientLength": 200, "gradientThickness": 10, "titleFontSize": 13, "titleFontWeight": 500},
        },
        "header": {"labelColor": ink, "labelFontSize": 12, "labelPadding": 4, "title": None},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "tick": {"color": ink},
        "title": {"color": ink},
    }


def data(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def metric_title(results: Results, metric: str | None = None) -> str:
    metric = metric or str(results.plan["metric"])
    return f"{METRICS[metric]} ({'seconds' if metric == 'seconds' else 'nats per token'})"


def level(results: Results) -> str:
    return f"{100 * (1 - results.plan['alpha']):g} %"


def shown(results: Results) -> dict[str, str]:
    """The colour of each arm: all of them up to eight; of more, the baseline and the best six, the others grey, or in a sweep over
    one number all on one scale."""
    names = [arm.name for arm in results.arms]
    if (numbers := by_value(results)) is not None:
        at = {name: _place(value, *spacing(numbers.values())) for name, value in numbers.items()}
        low, high = min(at.values()), max(at.values())
        return {name: _on_ramp((value - low) / (high - low)) for name, value in at.items()}
    if len(names) > len(COLORS):
        ranked = sorted((arm for arm in results.arms if arm.summary is not None), key=lambda arm: arm.summary.mean)  # pyright: ignore
        first = [results.baseline.name] if results.baseline is not None else []
        chosen = [*first, *(arm.name for arm in ranked if arm.name not in first)][: len(_BRIGHT)]
        palette = iter(_BRIGHT)
        return {name: next(palette) if name in chosen else GREY for name in names}
    return dict(zip(names, COLORS, strict=False))


def by_value(results: Results) -> dict[str, float] | None:
    """The swept number of each arm, if there are too many arms for colours of their own: a scale then tells them apart."""
    key = results.swept_key
    if key is None or len(results.arms) <= len(COLORS) or (len({arm.arm for arm in results.arms}) > 1 and results.is_grid):
        return None
    points = {arm.name: results.point(arm).get(key) for arm in results.arms}
    numbers = {name: float(v) for name, v in points.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return numbers if len(numbers) == len(points) and len({*numbers.values()}) > 1 else None


def value_color(results: Results) -> alt.Color:
    """Of a row's `swept` number."""
    numbers = by_value(results) or {}
    kind, least = spacing(numbers.values())
    ends = sorted(
        {min(numbers.values()), max(numbers.values()), *([0.0] if kind == "symlog" and min(numbers.values()) < 0 else [])}
    )
    ticks: dict[str, Any] = {"tickCount": 3} if kind == "linear" else {"values": ends}
    legend = alt.Legend(title=results.swept_key, format=".4~g", **ticks)
    return alt.Color("swept:Q", scale=alt.Scale(range=list(RAMP), interpolate="rgb", **scale_of(kind, least)), legend=legend)


def spacing(values: Iterable[float]) -> tuple[str, float]:
    """How an axis (or a scale of colours) spreads swept numbers: "linear", "log", or "symlog" for many around or from zero; and the
    size from which on symlog goes by factors."""
    found = sorted({*values})
    sizes = [abs(value) for value in found if value]
    if len(found) < 3 or max(sizes) < 8 * min(sizes):
        return "linear", 1.0
    return ("log" if found[0] > 0 else "symlog"), min(sizes)


def scale_of(kind: str, least: float) -> dict[str, Any]:
    """What `spacing` found, as a Vega-Lite scale's properties."""
    return {"type": kind} | ({"constant": least} if kind == "symlog" else {})


def _place(value: float, kind: str, least: float) -> float:
    if kind == "symlog":
        return math.copysign(math.log1p(abs(value) / least), value)
    return math.log(value) if kind == "log" else value


def _on_ramp(share: float) -> str:
    """The ramp's colour at a share of its length."""
    i = min(int(share * (len(RAMP) - 1)), len(RAMP) - 2)
    rest = share * (len(RAMP) - 1) - i
    ends = [[int(one[k : k + 2], 16) for k in (1, 3, 5)] for one in RAMP[i : i + 2]]
    return "#" + "".join(f"{round(a + rest * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def color(results: Results, *, legend: bool) -> alt.Color:
    """Arms in their colours. The legend names those that have one of their own."""
    colors = shown(results)
    named = [name for name, own in colors.items() if own != GREY]
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    shows = legend_of(named)
    if len(named) < len(colors):
        shows.values = named
    return alt.Color("arm:N", scale=scale, legend=shows if legend and len(colors) > 1 else None)


def legend_of(names: list[str]) -> alt.Legend:
    """In as many columns as the longest name leaves room for: what tells names apart often stands at their end."""
    longest = max(map(len, names), default=0)
    columns = 3 if longest <= 18 else 2 if longest <= 34 else 1
    return alt.Legend(columns=columns, labelLimit=(WIDTH - 60) / columns - 50)


def few_ticks() -> alt.Axis:
    """More would run into one another on a phone."""
    return alt.Axis(tickCount=6)


def row_height(names: list[str], roomy: int = 56) -> int:
    """Of a chart with a row for each arm: many arms stand closer, those with names in two lines not as close."""
    count = len(names)
    return max(2, count) * (roomy if count <= 6 else 36 if count <= 10 else 34 if any(map(halves_of, names)) else 24)


def arm_rows(names: list[str]) -> alt.Y:
    """An axis with a row for each arm, long names in two lines: what tells them apart often stands at their end."""
    halved = in_halves(names)
    axis = alt.Axis(labelExpr=halved, labelLimit=260, labelLineHeight=13) if halved else alt.Undefined
    return alt.Y("arm:N", title=None, sort=names, axis=axis)


def in_halves(names: list[str], longest: int = 28) -> str | None:
    """An expression that puts labels longer than this in two lines; None if there are none."""
    halves = {name: found for name in names if (found := halves_of(name, longest))}
    return f"{json.dumps(halves)}[datum.label] || (datum.label)" if halves else None


def halves_of(name: str, longest: int = 28) -> list[str] | None:
    """A long name, cut at the space that is nearest to its middle."""
    spaces = [i for i, letter in enumerate(name) if letter == " "]
    if len(name) <= longest or not spaces:
        return None
    cut = min(spaces, key=lambda i: abs(i - len(name) / 2))
    return [name[:cut], name[cut + 1 :]]


def tooltips(*fields: tuple[str, str, str]) -> list[alt.Tooltip]:
    """(field with type, title, format) each."""
    return [
        alt.Tooltip(field, title=title, format=form) if form else alt.Tooltip(field, title=title) for field, title, form in fields
    ]
