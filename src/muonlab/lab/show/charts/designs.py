"""Charts of designs: the metric against a swept value, and the main effects of crossed factors."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from muonlab.lab.judge.results import ArmResult, Results
from muonlab.lab.show.charts.style import (
    COLORS,
    HEIGHT,
    Chart,
    data,
    few_ticks,
    in_halves,
    legend_of,
    level,
    metric_title,
    scale_of,
    spacing,
    tooltips,
)

_DENSE = 8  # from so many values on, means with error bars


def sweep(results: Results) -> Chart | None:
    """The metric against the swept value, the winner marked; of several swept keys, the one with most values is the axis and the
    others are lines of their own."""
    key = _axis_key(results)
    rows = [{**row, "x": row[key]} for row in results.finals() if key in row] if key is not None else []
    if key is None or not rows:
        return None
    numeric = all(isinstance(row["x"], int | float) and not isinstance(row["x"], bool) for row in rows)
    families = _families(results, key)
    rows = [
        {k: v for k, v in row.items() if k in ("arm", "seed", "value")}
        | {"x": row["x"] if numeric else str(row["x"]), "series": families[row["arm"]]}
        for row in rows
    ]
    x, values = _x_axis(key, [row["x"] for row in rows], numeric)
    names = list(dict.fromkeys(families[row["arm"]] for row in rows))
    scale = alt.Scale(domain=names, range=[COLORS[i % len(COLORS)] for i in range(len(names))])
    color = alt.Color("series:N", scale=scale, legend=legend_of(names) if len(names) > 1 else None)
    y = {"title": metric_title(results), "scale": alt.Scale(zero=False)}
    means = _means(results, rows)
    dense = len(values) >= _DENSE
    dots = data(rows).mark_circle(size=26 if dense else 60, opacity=0.45 if dense else 0.6)
    dots = dots.encode(
        x=x,
        color=color,
        y=alt.Y("value:Q", **y),
        tooltip=tooltips(("arm:N", "arm", ""), ("seed:N", "seed", ""), ("value:Q", "value", ".4f")),
    )
    base = data(means).encode(x=x, color=color)
    layers: list[Any] = []
    if results.baseline is not None and results.baseline.summary is not None:
        layers += _reference(results.baseline, y)
    layers += [
        base.mark_line(strokeWidth=2).encode(y=alt.Y("mean:Q", **y)),
        base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        dots,
    ]
    best = min(means, key=lambda row: row["mean"])
    ring = data([best]).mark_point(size=260, filled=False, strokeWidth=2.5, color=COLORS[1])
    layers.append(ring.encode(x=x, y=alt.Y("mean:Q", **y)))
    caption = f"One dot a run; the line joins the means, with their {level(results)} confidence intervals (Student t). "
    caption += f"The ring marks the lowest mean, {best['arm']}."
    caption += f" The dashed line is the mean of {results.baseline.name}." if len(layers) > 4 and results.baseline else ""
    return Chart("sweep", f"Loss by {key}", caption, alt.layer(*layers).properties(height=HEIGHT))


def _axis_key(results: Results) -> str | None:
    if results.swept_key is not None:
        return results.swept_key
    keys = {key: [arm.swept[key] for arm in results.arms if key in arm.swept] for arm in results.arms for key in arm.swept}
    numbers = {k: len({*v}) for k, v in keys.items() if all(isinstance(x, int | float) and not isinstance(x, bool) for x in v)}
    longest = max(numbers, key=lambda key: numbers[key], default=None)
    return longest if longest is not None and numbers[longest] >= 3 else None


def _families(results: Results, key: str) -> dict[str, str]:
    """Of each arm, the line that it is a point of: the arm's name and what else is swept."""
    alone = len({arm.arm for arm in results.arms}) == 1 or not results.is_grid
    found = {}
    for arm in results.arms:
        others = [f"{other.rpartition('.')[2]}={value}" for other, value in results.point(arm).items() if other != key]
        named = [] if alone and (others or not results.is_grid) else [arm.arm]
        found[arm.name] = " ".join([*named, *others])
    return found


def _x_axis(key: str, found: list[Any], numeric: bool) -> tuple[alt.X, list[Any]]:
    values = sorted({*found}) if numeric else list(dict.fromkeys(found))
    if not numeric:
        return alt.X("x:O", title=key, sort=None, axis=alt.Axis(labelAngle=-30, labelLimit=140)), values
    kind, least = spacing(values)
    turned: dict[str, Any] = {"labelAngle": -40} if len(values) > 5 else {}
    axis = alt.Axis(values=values, format=".6~g", grid=False, labelOverlap="greedy", **turned)
    zero: dict[str, Any] = {"zero": False} if kind == "linear" else {}
    scale = alt.Scale(nice=False, padding=18, **scale_of(kind, least), **zero)
    told = {
        "linear": "",
        "log": " (log scale)",
        "symlog": " (log scale to both sides of 0)" if values[0] < 0 else " (log scale from 0)",
    }
    return alt.X("x:Q", title=key + told[kind], scale=scale, axis=axis), values


def _means(results: Results, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    points = {row["arm"]: row for row in rows}
    found = []
    for arm in results.arms:
        if arm.summary is not None and arm.name in points:
            s, point = arm.summary, points[arm.name]
            low, high = (s.mean, s.mean) if math.isnan(s.low) else (s.low, s.high)
            found.append({"arm": arm.name, "series": point["series"], "x": point["x"], "mean": s.mean, "low": low, "high": high})
    return sorted(found, key=lambda row: (row["series"], row["x"])) if found else found


def _reference(baseline: ArmResult, y: dict[str, Any]) -> list[Any]:
    assert baseline.summary is not None
    line = data([{"y": baseline.summary.mean}]).mark_rule(strokeDash=[4, 4], opacity=0.7)
    return [line.encode(y=alt.Y("y:Q", **y))]


def effects(results: Results) -> Chart | None:
    """The mean at each level of each factor, with its interval: main effects, on one scale."""
    if results.effects is None:
        return None
    rows = [
        {
            "factor": row.factor,
            "level": f"{_name(row.factor)} = {_level(row.level)}",
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
        }
        for row in results.effects.rows
    ]
    order = [row["level"] for row in rows]
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    halved = in_halves(order, 20)
    axis = alt.Axis(labelExpr=halved, labelLineHeight=13) if halved else alt.Undefined
    y = alt.Y("level:N", title=None, sort=order, axis=axis)
    x: dict[str, Any] = {"title": metric_title(results), "scale": alt.Scale(zero=False), "axis": few_ticks()}
    color = alt.Color(
        "factor:N", scale=alt.Scale(domain=factors, range=[COLORS[i % len(COLORS)] for i in range(len(factors))]), legend=None
    )
    base = data(rows).encode(y=y, color=color)
    tooltip = tooltips(("level:N", "level", ""), *((f"{key}:Q", key, ".4f") for key in ("mean", "low", "high")))
    layers = [
        base.mark_line(strokeWidth=1.2, opacity=0.6, strokeDash=[3, 3]).encode(x=alt.X("mean:Q", **x), order="row:Q"),
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", **x), x2="high:Q"),
        base.mark_point(filled=True, size=110).encode(x=alt.X("mean:Q", **x), tooltip=tooltip),
    ]
    for i, row in enumerate(rows):
        row["row"] = i
    caption = (
        f"Mean at each level, over all combinations of the other factors, with its {level(results)} confidence interval "
        f"(t; chance estimated from {results.effects.error}). Left is better."
    )
    chart = alt.layer(*layers).properties(height=34 * max(3, len(rows)))
    return Chart("effects", "Main effects", caption, chart)


def _name(factor: str) -> str:
    return factor.rpartition(".")[2]


def _level(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
