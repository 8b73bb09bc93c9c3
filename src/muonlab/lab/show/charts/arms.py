"""Charts with a row for each arm: every run, differences from the baseline, ranks, training times."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from muonlab.lab import stats
from muonlab.lab.judge.results import ArmResult, Results
from muonlab.lab.show.charts.style import Chart, arm_rows, color, data, few_ticks, level, metric_title, row_height, tooltips
from muonlab.lab.show.findings import seen


def finals(results: Results) -> Chart | None:
    """The metric of every run; for a sweep over one number the sweep's own chart tells it."""
    if results.swept_key is not None and len(results.arms) > 6:
        return None
    rows = results.finals()
    if not rows:
        return None
    caption = f"One dot a seed; the stroke is the mean, the line its {level(results)} confidence interval (Student t)."
    caption = " ".join([caption, *seen(results)])
    title = {"val_loss": "Final loss of every run", "best_val_loss": "Lowest loss of every run"}
    intervals = [_interval(arm.name, arm.summary) for arm in results.arms if arm.summary is not None and arm.summary.n > 1]
    chart = _dots(results, rows, intervals, metric_title(results), ".4f")
    return Chart("final-loss", title.get(results.plan["metric"], "Every run"), caption, chart)


def train_times(results: Results) -> Chart | None:
    """Training seconds of every run; None for one arm, or where times are not known or are the metric itself."""
    rows = results.finals("seconds")
    if len({row["arm"] for row in rows}) < 2 or results.plan["metric"] == "seconds":
        return None
    by_arm: dict[str, list[float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row["value"])
    found = {name: stats.summarize(values, results.plan["alpha"]) for name, values in by_arm.items() if len(values) > 1}
    intervals = [_interval(name, summary) for name, summary in found.items()]
    intervals = [row | {"low": max(row["low"], 0.0)} for row in intervals]  # no run takes less than no time
    caption = (
        f"Seconds of training, evaluation not counted; the stroke is the mean, the line its {level(results)} confidence interval. "
        "Runs that shared a machine slowed one another."
    )
    return Chart("train-time", "Training time of every run", caption, _dots(results, rows, intervals, "seconds", ".1f"))


def _interval(name: str, summary: stats.Summary) -> dict[str, Any]:
    """Runs that are all equal, or one alone, have no interval: its line is the mean's stroke."""
    low, high = (summary.mean, summary.mean) if math.isnan(summary.low) else (summary.low, summary.high)
    return {"arm": name, "mean": summary.mean, "low": low, "high": high}


def _dots(results: Results, rows: list[dict[str, Any]], intervals: list[dict[str, Any]], title: str, digits: str) -> Any:
    names = [arm.name for arm in results.arms if any(row["arm"] == arm.name for row in rows)]
    rows = [{key: row[key] for key in ("arm", "seed", "value")} for row in rows]
    y = arm_rows(names)
    x: dict[str, Any] = {"scale": alt.Scale(zero=False, nice=True), "title": title, "axis": few_ticks()}
    many = len(names) > 10
    dots = data(rows).mark_circle(size=40 if many else 90, opacity=0.7)
    dots = dots.encode(
        x=alt.X("value:Q", **x),
        y=y,
        color=color(results, legend=False),
        tooltip=tooltips(("arm:N", "arm", ""), ("seed:N", "seed", ""), ("value:Q", title, digits)),
    )
    spread = data(intervals).encode(y=y)
    bars = spread.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", **x), x2="high:Q")
    ticks = spread.mark_tick(thickness=2, size=12 if many else 18).encode(x=alt.X("mean:Q", **x))
    return alt.layer(bars, dots, ticks).properties(height=row_height(names))


def differences(results: Results) -> Chart | None:
    """Each arm's difference from the baseline with its interval, the margin as a zone."""
    rows = [
        {
            "arm": arm.name,
            "difference": arm.comparison.difference,
            "low": _finite(arm.comparison.low, arm.comparison.difference),
            "high": _finite(arm.comparison.high, arm.comparison.difference),
            "verdict": arm.verdict.word if arm.verdict else "",
        }
        for arm in results.arms
        if arm.comparison is not None
    ]
    if not rows:
        return None
    order = [row["arm"] for row in rows]
    baseline, margin = results.plan["baseline"], results.plan["margin"]
    y = arm_rows(order)
    unit = "seconds" if results.plan["metric"] == "seconds" else "nats per token"
    x: dict[str, Any] = {"title": f"difference from {baseline} ({unit})", "axis": few_ticks()}
    base = data(rows).encode(y=y, color=color(results, legend=False))
    layers: list[Any] = []
    if margin is not None:
        zone = data([{"from": -margin, "to": margin}])
        layers.append(zone.mark_rect(opacity=0.18, color="#7F7F7F").encode(x=alt.X("from:Q", **x), x2="to:Q"))
    layers += [
        data([{"x": 0}]).mark_rule(strokeDash=[4, 4]).encode(x=alt.X("x:Q", **x)),
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", **x), x2="high:Q"),
        base.mark_point(filled=True, size=110 if len(rows) <= 10 else 60).encode(
            x=alt.X("difference:Q", **x),
            tooltip=tooltips(
                ("arm:N", "arm", ""),
                ("verdict:N", "verdict", ""),
                *((f"{key}:Q", key, "+.4f") for key in ("difference", "low", "high")),
            ),
        ),
    ]
    if len(rows) <= 10:
        layers.append(base.mark_text(dy=-14, fontSize=13).encode(x=alt.X("difference:Q", **x), text="verdict:N"))
    zone_text = f" The grey zone is the margin, ±{margin:g}: differences in it do not matter." if margin is not None else ""
    pairs = sum(arm.comparison is arm.pairing for arm in results.arms if arm.comparison is not None)
    method = (
        "Welch"
        if not pairs
        else "of pairs"
        if pairs == len(rows)
        else "of pairs where seeds are shown to make them worth it, else Welch"
    )
    interval = f"{level(results)} confidence interval ({method})"
    if results.plan.get("race"):
        interval = f"confidence sequence, which holds at every look, over all arms at {level(results)}"
    caption = f"Difference of means with its {interval}; left is better.{zone_text}"
    height = row_height(order, 64)
    return Chart("difference", f"Difference from {baseline}", caption, alt.layer(*layers).properties(height=height))


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise  # one run has no interval, and a race's first looks none yet


def ranked(results: Results) -> Chart | None:
    """Bars from the best arm's mean: a loss has no zero to start from."""
    arms: list[ArmResult] = sorted((arm for arm in results.arms if arm.summary is not None), key=_mean)
    if len(arms) < 3:
        return None
    best = _mean(arms[0])
    rows = [
        {
            "arm": arm.name,
            "above": _mean(arm) - best,
            "mean": _mean(arm),
            "label": f"{_mean(arm):.4f}" + (f" ({arm.diverged} diverged)" if arm.diverged else ""),
        }
        for arm in arms
    ]
    names = [arm.name for arm in arms]
    y = arm_rows(names)
    widest = max(row["above"] for row in rows) or 1.0
    x = alt.X("above:Q", title="above the lowest mean", axis=few_ticks(), scale=alt.Scale(domain=[0, 1.28 * widest], nice=False))
    base = data(rows).encode(x=x, y=y)
    tooltip = tooltips(("arm:N", "arm", ""), ("mean:Q", "mean", ".4f"), ("above:Q", "above the best", ".4f"))
    bars = base.mark_bar(opacity=0.85).encode(color=color(results, legend=False), tooltip=tooltip)
    labels = base.mark_text(align="left", dx=5).encode(text="label:N")
    unseen = [arm.name for arm in results.arms if arm.summary is None]
    caption = f"Mean of each arm's finished runs: {metric_title(results)}. The lowest first; a bar is how far an arm lies above it."
    caption += f" Without a finished run: {', '.join(unseen)}." if unseen else ""
    chart = alt.layer(bars, labels).properties(height=min(34 * max(2, len(names)), row_height(names)))
    return Chart("ranked", "Arms by rank", caption, chart)


def _mean(arm: ArmResult) -> float:
    assert arm.summary is not None
    return arm.summary.mean
