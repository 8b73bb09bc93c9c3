"""Loss curves: means with bands, and every run's own in small charts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from muonlab.lab.judge.results import Results
from muonlab.lab.judge.targets import targets_of
from muonlab.lab.runs.curves import MEAN_POINTS, RUN_POINTS, loss_key, mean_curves, run_curves, strays, was_thinned
from muonlab.lab.show.charts.style import (
    COLORS,
    DASHES,
    GREY,
    HEIGHT,
    RED,
    WIDTH,
    Chart,
    by_value,
    color,
    data,
    in_halves,
    shown,
    tooltips,
    value_color,
)

_TITLES = {"step": "optimizer steps", "tokens": "training tokens", "seconds": "training time (seconds)"}
_LOSSES = {"val_loss": "validation loss", "train_loss": "training loss"}
_PANELS = 60


@dataclass(frozen=True)
class Losses:
    """What all charts of losses draw. key: of a run's rows; means: of the arms; own: each run's."""

    key: str
    means: list[dict[str, Any]]
    own: list[dict[str, Any]]


def losses_of(results: Results) -> Losses:
    key = loss_key(results.runs)
    return Losses(key, mean_curves([arm.name for arm in results.arms], results.runs, key), run_curves(results.runs, key))


def curves(results: Results, losses: Losses, clock: str) -> Chart | None:
    """Mean loss of each arm by steps, tokens or seconds; None where runs lack the clock, or tokens tell what steps tell."""
    key = losses.key
    rows = [row for row in losses.means if clock in row]
    if len({row[clock] for row in rows}) < 2 or (clock == "tokens" and _proportional(rows)):
        return None
    low, high, cut = _zoom(rows)
    rows = _below(rows, "mean", high, ("arm",))
    colors, numbers = shown(results), by_value(results)
    rows.sort(key=lambda row: colors[row["arm"]] != GREY)  # what stands first is drawn first, below the rest
    if numbers is not None:
        rows = [{**row, "swept": numbers[row["arm"]]} for row in rows]
    x = alt.X(f"{clock}:Q", title=_TITLES[clock], axis=alt.Axis(grid=False, tickCount=6))
    y_title = f"{_LOSSES[key]} (nats per token)"
    scale = alt.Scale(zero=False, domain=[low, high], nice=False)
    base = data(rows).encode(x=x, color=color(results, legend=True) if numbers is None else value_color(results))
    band = base.mark_area(opacity=0.22 if len(results.arms) <= 3 else 0.12).encode(
        y=alt.Y("low:Q", title=y_title, scale=scale), y2="high:Q", detail="part:N"
    )
    few = len({row[clock] for row in rows}) <= 30
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=22) if few else False)
    line = line.encode(
        y=alt.Y("mean:Q", title=y_title, scale=scale),
        tooltip=tooltips(
            ("arm:N", "arm", ""),
            (f"{clock}:Q", clock, ".4~g"),
            ("mean:Q", "mean loss", ".4f"),
            ("low:Q", "lowest seed", ".4f"),
            ("high:Q", "highest seed", ".4f"),
        ),
    )
    line = line.encode(**_dashes(results), detail=["arm:N", "part:N"])
    layers = [band, line] if len(results.arms) <= len(COLORS) else [line]
    apart = {(run.cell, run.seed) for run in strays(results.runs)}
    loose = [row for row in losses.own if clock in row and (row["arm"], row["seed"]) in apart]
    loose = _below(loose, "loss", high, ("arm", "seed"))
    if loose:
        thin = data([row | ({"swept": numbers[row["arm"]]} if numbers is not None else {}) for row in loose])
        layers.append(
            thin.mark_line(strokeWidth=0.9, opacity=0.7).encode(
                x=x,
                y=alt.Y("loss:Q", title=y_title, scale=scale),
                color=color(results, legend=True) if numbers is None else value_color(results),
                detail=["seed:N", "part:N"],
                tooltip=tooltips(
                    ("arm:N", "arm", ""), ("seed:N", "seed", ""), ("status:N", "status", ""), ("loss:Q", "loss", ".4f")
                ),
            )
        )
    if key == "val_loss":
        layers += _goals(results, low, high)
    by = {"step": "step", "tokens": "tokens", "seconds": "training time"}[clock]
    thin_lines = ["Thin lines: runs that diverged or have not ended, not in the mean."] if loose else []
    thin_lines += _out_of_view(apart, loose)
    caption = " ".join([_who(results, rows), *thin_lines, *_cuts(results, key, cut)])
    title = f"{_LOSSES[key].capitalize()} by {by}"
    return Chart(f"loss-by-{clock}", title, caption, alt.layer(*layers).properties(height=HEIGHT))


def _goals(results: Results, low: float, high: float) -> list[Any]:
    """A dashed line for each target that is in view."""
    layers = []
    for target in targets_of(results.plan):
        if low <= target <= high:
            goal = data([{"y": target, "label": f"target {target:g}"}])
            layers.append(goal.mark_rule(strokeDash=[4, 4], opacity=0.7).encode(y="y:Q"))
            text = goal.mark_text(align="left", baseline="bottom", dx=4, dy=-3)
            layers.append(text.encode(y="y:Q", text="label:N", x=alt.value(0)))
    return layers


def _proportional(rows: list[dict[str, Any]]) -> bool:
    ratios = [row["tokens"] / row["step"] for row in rows if row["step"]]
    return not ratios or max(ratios) - min(ratios) < 1e-3 * max(ratios)


def _zoom(rows: list[dict[str, Any]], shares: tuple[float, ...] = (0.1, 0.2, 0.35)) -> tuple[float, float, bool]:
    """Lowest and highest loss to draw, and whether something lies above: a run falls from far too high at first, and a diverged one
    may rise without end; both would press flat what is to be compared, the more so the closer the arms end together."""
    last = max(row["step"] for row in rows)
    top = max(row["mean"] for row in rows)
    bottom = min(row["low"] for row in rows)
    ends = _usual({row["arm"]: row["mean"] for row in rows if row["step"] >= 0.9 * last}, bottom)
    spread = max(ends, default=top) - bottom
    high = top
    for share in shares:
        late: dict[str, float] = {}
        for row in rows:
            if row["step"] >= share * last:
                late.setdefault(row["arm"], row["high"])
        high = max(_usual(late, bottom), default=top)
        if spread >= 0.15 * (high - bottom):
            break
    high = min(top, high + 0.05 * (high - bottom))
    return bottom, (high if high > bottom else bottom + 1e-3), top > high


def _usual(losses: dict[str, float], bottom: float) -> list[float]:
    """Without those that have gone astray."""
    middle = sorted(losses.values())[len(losses) // 2] if losses else 0.0
    return [loss for loss in losses.values() if loss - bottom <= 3 * (middle - bottom)]


def _dashes(results: Results) -> dict[str, Any]:
    """Dashes tell lines apart without colours; the grey ones need none, and more than eight arms only the colours."""
    names = [arm.name for arm in results.arms]
    if len(names) > len(COLORS) or len(names) < 2:
        return {}
    scale = alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in range(len(names))])
    return {"strokeDash": alt.StrokeDash("arm:N", scale=scale)}


def _who(results: Results, rows: list[dict[str, Any]]) -> str:
    fewest, most = (function(row["seeds"] for row in rows) for function in (min, max))
    count = str(most) if fewest == most else f"{fewest} to {most}"
    text = "One run an arm." if most == 1 else f"Mean over {count} seeds"
    if by_value(results) is not None:
        return f"{text.rstrip('.')}; the colour is the swept value."
    if len(results.arms) > len(COLORS):
        others = sum(own == GREY for own in shown(results).values())
        named = len(results.arms) - others
        best = f"the baseline and the best {named - 1}" if results.baseline else f"the best {named}"
        return f"{text.rstrip('.')}; coloured: {best}; the other {others} are grey."
    return text if most == 1 else f"{text}; the band reaches from the lowest to the highest seed."


def _out_of_view(runs: set[tuple[str, int]], rows: list[dict[str, Any]]) -> list[str]:
    """Runs of which nothing is drawn: no chart may drop one in silence."""
    lost = len(runs - {(row["arm"], row["seed"]) for row in rows})
    return [f"{lost} run{'s lie' if lost > 1 else ' lies'} wholly above the axis."] if lost else []


def _cuts(results: Results, key: str, cut: bool) -> list[str]:
    found = ["Losses above the axis are cut off: it begins where the curves come down to it."] if cut else []
    if was_thinned(results.runs, key, MEAN_POINTS):
        found.append(f"Drawn from {MEAN_POINTS} points an arm; the tables use all of them.")
    return found


def _below(rows: list[dict[str, Any]], key: str, top: float, line: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows up to `top`, with a point on it wherever a line crosses it, and the band no higher. Cutting lines here, and not by
    a mask over the drawing, makes pictures ten times faster; what comes down again after a rise is a part of its own."""
    found: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    part = 0
    for row in rows:
        same = before is not None and all(before[name] == row[name] for name in line)
        part = part if same else 0
        if same and before is not None and (before[key] > top) != (row[key] > top):
            share = (top - before[key]) / (row[key] - before[key])
            numbers = [name for name in ("step", "tokens", "seconds", "low", "high", key) if name in row and name in before]
            edge = {name: float(f"{before[name] + share * (row[name] - before[name]):.6g}") for name in numbers}
            found.append({**row, **edge, "part": part + (row[key] <= top)})
            part += row[key] <= top
        if row[key] <= top:
            found.append({**row, "part": part})
        before = row
    return [row | ({"low": min(row["low"], top), "high": min(row["high"], top)} if "high" in row else {}) for row in found]


def multiples(results: Results, losses: Losses) -> Chart | None:
    """One small chart an arm with each of its runs; the grey line is the baseline's mean (or the mean of all arms)."""
    key, means = losses.key, losses.means
    rows = [{k: v for k, v in row.items() if k not in ("tokens", "seconds")} for row in losses.own]
    names = [name for name in (arm.name for arm in results.arms) if any(row["arm"] == name for row in rows)]
    if len(names) < 2 or len({row["step"] for row in rows}) < 2:
        return None
    left_out = len(names) - _PANELS
    names = names[:_PANELS]
    low, high, cut = _zoom(means, shares=(0.1,))
    every_run = {(row["arm"], row["seed"]) for row in rows}
    rows = _below(rows, "loss", high, ("arm", "seed"))
    unseen = _out_of_view(every_run, rows)
    reference = [row for row in means if row["arm"] == results.plan["baseline"] and row["mean"] <= high]
    # Each panel needs the reference's rows as its own: a facet splits its data by arm.
    every = max(1, len(reference) // RUN_POINTS)
    shadow = [{"arm": n, "step": r["step"], "loss": r["mean"], "status": "baseline"} for n in names for r in reference[::every]]
    rows = [row for row in rows if row["arm"] in names]
    used = [s for s in ("finished", "diverged", "unfinished", "damaged") if any(row["status"] == s for row in rows)]
    palette = {"finished": COLORS[0], "diverged": RED, "unfinished": COLORS[4], "damaged": GREY}
    scale = alt.Scale(domain=used, range=[palette[s] for s in used])
    y = alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False, domain=[low, high], nice=False), axis=alt.Axis(tickCount=4))
    x = alt.X("step:Q", title=None, axis=alt.Axis(tickCount=3, grid=False, format="~s"))
    lines = alt.Chart().transform_filter("datum.status != 'baseline'").mark_line(strokeWidth=1.2, opacity=0.75)
    lines = lines.encode(
        x=x,
        y=y,
        detail=["seed:N", "part:N"],
        color=alt.Color("status:N", scale=scale, legend=alt.Legend() if len(used) > 1 else None),
        tooltip=tooltips(("arm:N", "arm", ""), ("seed:N", "seed", ""), ("step:Q", "step", ""), ("loss:Q", "loss", ".4f")),
    )
    layers: list[Any] = [lines]
    if reference:
        grey = alt.Chart().transform_filter("datum.status == 'baseline'").mark_line(strokeWidth=2.5, color=GREY, opacity=0.6)
        layers.insert(0, grey.encode(x=x, y=y))
    columns = min(4, len(names))
    one = (WIDTH - 14 * (columns - 1)) // columns
    small = alt.layer(*layers).properties(width=one, height=100 if columns > 2 else 160)
    halved = in_halves(names, one // 8)
    small_print: dict[str, Any] = {"labelExpr": halved, "labelLineHeight": 13, "labelFontSize": 10.5} if halved else {}
    header = alt.Header(title=None, labelLimit=one + 10, labelFontWeight=600, **small_print)
    facet = alt.Facet("arm:N", sort=names, header=header)
    chart = small.facet(facet=facet, columns=columns, data=alt.InlineData(values=[*shadow, *rows]), spacing=14)
    caption = f"{_LOSSES[key].capitalize()} by step, one line a run."
    caption += f" The thick grey line is the mean of {results.plan['baseline']}." if reference else ""
    caption += " ".join(["", *(["Losses above the axis are cut off."] if cut else []), *unseen])
    caption += f" Drawn from {RUN_POINTS} points a run." if was_thinned(results.runs, key, RUN_POINTS) else ""
    caption += f" The first {_PANELS} arms of {_PANELS + left_out}." if left_out > 0 else ""
    return Chart("all-curves", "Every run", caption, chart, panels=len(names))
