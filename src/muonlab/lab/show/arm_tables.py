"""The tables of a report, as text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from muonlab.lab import stats
from muonlab.lab.judge.results import METRICS, ArmResult, Results, number
from muonlab.lab.judge.targets import ToTarget, targets_of
from muonlab.lab.show.findings import mean
from muonlab.train.settings import flat


@dataclass(frozen=True)
class Table:
    """title: "" for the first one, which needs none. note: what a reader must know of its columns."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of arms: what decides, and the verdict."""
    plan = results.plan
    target, with_verdict = plan["target"], results.baseline is not None
    header = ["arm", "runs", f"mean ± {_level(results)} CI", "std"]
    header += [f"steps to {target:g}", f"seconds to {target:g}"] if target is not None else []
    header += ["seconds", "difference", "verdict"] if with_verdict else ["seconds"]
    rows = []
    for arm in results.arms:
        s = arm.summary
        runs = f"{arm.finished}/{arm.planned}" + (f" ({arm.diverged} diverged)" if arm.diverged else "")
        interval = f" ± {number(s.high - s.mean)}" if s is not None and s.n > 1 else ""
        row = [arm.name, runs, mean(arm) + interval, number(s.std if s else None)]
        if target is not None:
            row += [_to_target(arm, arm.steps_to_target, 0), _to_target(arm, arm.seconds_to_target, 1)]
        row.append(number(arm.seconds, 1))
        if with_verdict:
            row += [_difference(arm), arm.verdict.word if arm.verdict else ("baseline" if arm is results.baseline else "–")]
        rows.append(row)
    return header, rows


def tables(results: Results) -> list[Table]:
    """All further tables, those that the figures allow."""
    found = [_spread(results), _targets(results), *_further(results), _effects(results), _interactions(results)]
    return [one for one in found if one is not None and one.rows]


def _level(results: Results) -> str:
    return f"{100 * (1 - results.plan['alpha']):g} %"


def _difference(arm: ArmResult) -> str:
    if arm.comparison is None:
        return "–"
    percent = f" ({arm.percent:+.2f} %)" if arm.percent is not None else ""
    return f"{arm.comparison.difference:+.4f}{percent}"


def _to_target(arm: ArmResult, value: float | None, digits: int) -> str:
    ended = arm.finished + arm.diverged
    if value is None:
        return f"not reached ({arm.reached}/{ended})" if ended and arm.reached < ended else "–"
    return number(value, digits) + (f" ({arm.reached}/{ended})" if arm.reached < ended else "")


def _spread(results: Results) -> Table:
    header = ["arm", "median", "lowest", "highest", f"{_level(results)} CI of the mean"]
    header += [f"{_level(results)} CI of the difference"] if results.baseline is not None else []
    rows = []
    for arm in results.arms:
        s, c = arm.summary, arm.comparison
        row = [arm.name, *([number(v) for v in (s.median, s.minimum, s.maximum)] if s else ["–"] * 3)]
        row.append(between(s.low, s.high) if s else "–")
        if results.baseline is not None:
            row.append(between(c.low, c.high, "+.4f") if c else "–")
        rows.append(row)
    return Table("Spread", header, rows)


def between(low: float | None, high: float | None, form: str = ".4f") -> str:
    """An interval. An end beyond the last run is a dash of its own."""
    ends = [None if end is None or math.isnan(end) else end for end in (low, high)]
    return "–" if ends == [None, None] else " to ".join("?" if end is None else f"{end:{form}}" for end in ends)


def _targets(results: Results) -> Table | None:
    targets = targets_of(results.plan)
    if not targets:
        return None
    with_ratio = results.baseline is not None
    clocks = ("steps", "tokens", "seconds")
    header = ["arm", *(["target"] if len(targets) > 1 else []), "reached", *clocks, f"{_level(results)} CI of the steps"]
    header += ["ratio of steps"] if with_ratio else []
    rows = []
    for i in range(len(targets)):
        for arm in results.arms:
            to = arm.targets[i]
            steps = to.steps
            row = [arm.name, *([f"{to.target:g}"] if len(targets) > 1 else []), f"{to.reached} of {to.ended}"]
            row += [_median(to, clock, 1 if clock == "seconds" else 0) for clock in clocks]
            row.append(between(steps.low, steps.high, ",.0f") if steps is not None and steps.n > 1 else "–")
            if with_ratio:
                row.append("baseline" if arm is results.baseline else _ratio(to.ratio))
            rows.append(row)
    note = (
        "Times to the first evaluation at or below the target: medians by Kaplan and Meier, runs that missed it censored at their "
        "end (diverged ones at the end of the longest run), never dropped; ? lies beyond the last run."
    )
    if with_ratio:
        methods = sorted({t.ratio.method.split(", up to")[0] for arm in results.arms for t in arm.targets if t.ratio is not None})
        note += f" The ratio is arm to baseline, 0.9 is ten per cent faster ({'; '.join(methods)})." if methods else ""
    return Table("Time to target", header, rows, note)


def _median(to: ToTarget, clock: str, digits: int) -> str:
    found: stats.TimeSummary | None = getattr(to, clock)
    if found is None or not found.n:
        return "–"
    median = to.median(clock)
    return f"{median:,.{digits}f}" if median is not None else "not reached"


def _ratio(ratio: stats.Ratio | None) -> str:
    if ratio is None or math.isnan(ratio.ratio):
        return "–"
    return f"{ratio.ratio:.3f}" + ("" if math.isnan(ratio.low) else f" ({ratio.low:.3f} to {ratio.high:.3f})")


def _further(results: Results) -> list[Table]:
    found = []
    for i, metric in enumerate(results.plan.get("metrics", [])):
        header = ["arm", f"mean ± {_level(results)} CI", "std", "median", "lowest", "highest"]
        header += ["difference", f"{_level(results)} CI of the difference"] if results.baseline is not None else []
        rows = []
        for arm in results.arms:
            s, c = arm.further[i].summary, arm.further[i].comparison
            spread = f" ± {number(s.high - s.mean)}" if s is not None and s.n > 1 else ""
            row = [arm.name, number(s.mean if s else None) + spread]
            row += [number(v) for v in (s.std, s.median, s.minimum, s.maximum)] if s else ["–"] * 4
            if results.baseline is not None:
                row += [f"{c.difference:+.4f}", between(c.low, c.high, "+.4f")] if c else ["–", "–"]
            rows.append(row)
        found.append(Table(METRICS[metric].capitalize(), header, rows, "Shown, not judged: the verdicts are on the metric above."))
    return found


def _effects(results: Results) -> Table | None:
    if results.effects is None:
        return None
    level = _level(results)
    header = ["factor", "level", "runs", "mean", f"{level} CI", "difference", f"{level} CI of the difference", "p"]
    rows, short = [], _short_names(results)
    for row in results.effects.rows:
        line = [short[row.factor], _plain(row.level), str(row.runs), number(row.mean), between(row.low, row.high)]
        if row.difference is None:
            line += ["reference", "–", "–"]
        else:
            line += [f"{row.difference:+.4f}", between(row.difference_low, row.difference_high, "+.4f"), _p(row.p)]
        rows.append(line)
    note = (
        f"Averages over all combinations of the other factors; chance is estimated from {results.effects.error}, p by t tests, "
        "adjusted by Holm."
    )
    return Table("Main effects", header, rows, note)


def _interactions(results: Results) -> Table | None:
    if results.effects is None:
        return None
    short = _short_names(results)
    rows = [[" × ".join(short[name] for name in one.factors), f"{one.f:.2f}", _p(one.p)] for one in results.effects.interactions]
    return Table(
        "Interactions", ["factors", "F", "p"], rows, "A small p: the effect of one depends on the other, and averages mislead."
    )


def _short_names(results: Results) -> dict[str, str]:
    """Factor -> the last part of its key, where that is enough to tell it from the others."""
    last = {factor.name: factor.name.rpartition(".")[2] for factor in results.factors}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}


def _p(p: float | None) -> str:
    return "–" if p is None or math.isnan(p) else f"{p:.3g}" if p >= 1e-4 else "< 0.0001"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_diff(results: Results) -> tuple[str, list[tuple[str, list[tuple[str, str, str]]]]]:
    """Whose recipe the others are compared with, and for each other arm: (key, there, here), "–" where there is no such key."""
    cells = results.plan["cells"]
    if not cells:
        return "", []
    reference = results.plan["baseline"] or cells[0]["name"]
    recipes = {cell["name"]: flat(cell["recipe"]) for cell in cells}
    base = recipes.get(reference, {})
    found = []
    for name, recipe in recipes.items():
        keys = [key for key in sorted({*base, *recipe}) if base.get(key, _NONE) != recipe.get(key, _NONE)]
        if keys:
            found.append((name, [(key, _value(base, key), _value(recipe, key)) for key in keys]))
    return reference, found


def change_matrix(results: Results) -> tuple[list[str], list[list[str]]] | None:
    """The same as one table, a row an arm and a column a key, for arms that change the same few keys."""
    _, changed = recipe_diff(results)
    keys = list(dict.fromkeys(key for _, rows in changed for key, _, _ in rows))
    if len(changed) < 2 or len(keys) > 4:
        return None
    recipes = {cell["name"]: flat(cell["recipe"]) for cell in results.plan["cells"]}
    return ["arm", *keys], [[name, *(_value(recipe, key) for key in keys)] for name, recipe in recipes.items()]


_NONE = object()


def _value(recipe: dict[str, Any], key: str) -> str:
    return json.dumps(recipe[key], ensure_ascii=False) if key in recipe else "–"
