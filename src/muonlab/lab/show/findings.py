"""The report in sentences: the answer to the question, and what a reader must know before trusting the figures."""

from __future__ import annotations

import json
from typing import Any

from muonlab.data.overlap import in_words
from muonlab.lab import stats
from muonlab.lab.judge.effects import Effects
from muonlab.lab.judge.results import ArmResult, Results, number, value_of
from muonlab.lab.judge.targets import targets_of
from muonlab.lab.runs.store import RunRecord
from muonlab.train.run_folder import ENDED
from muonlab.train.settings import flat

_LISTED = 7  # arms whose verdicts are the answer; of more, the answer names groups
_WORDS = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to", "undecided": "undecided against"}


def answer(results: Results) -> list[str]:
    """The answer to the experiment's question: a sentence for each arm, computed from the runs."""
    baseline = results.baseline
    sentences = []
    if results.effects is not None and baseline is None:
        sentences += _effects(results.effects, results.plan["alpha"])
    if results.is_grid:
        for best in results.best():
            where = ", ".join(f"{key} = {value}" for key, value in best.swept.items()) or "its one setting"
            sentences.append(f"{best.arm}: best {where} (mean {mean(best)}, {best.finished} seeds)")
        sentences = sentences or ["No arm has all of its runs yet."]
    if baseline is None:
        return sentences or [f"{arm.name}: mean {mean(arm)} over {arm.finished} of {arm.planned} runs" for arm in results.arms]
    sentences += verdicts(results) if len(results.arms) <= _LISTED else _grouped(results, baseline)
    return sentences or [f"{baseline.name}: mean {mean(baseline)} over {baseline.finished} of {baseline.planned} runs"]


def _effects(effects: Effects, alpha: float) -> list[str]:
    """A sentence for each factor of a design: what its levels do on average over the others."""
    found = []
    for factor in dict.fromkeys(row.factor for row in effects.rows):
        rows = [row for row in effects.rows if row.factor == factor]
        reference = next(row.level for row in rows if row.difference is None)
        told = [
            f"{row.level} {row.difference:+.4f} ({'lower' if row.difference < 0 else 'higher'}, p {stats.p_text(row.p)})"
            if row.p < alpha
            else f"{row.level} {row.difference:+.4f} (not shown, p {stats.p_text(row.p)})"
            for row in rows
            if row.difference is not None and row.p is not None
        ]
        found.append(f"{factor}, against {reference}, on average over the rest: {'; '.join(told)}.")
    adjusted = stats.holm([one.p for one in effects.interactions])
    entangled = [one for one, p in zip(effects.interactions, adjusted, strict=True) if p < alpha]
    found += [
        f"The effect of {a} depends on {b} (F test, p {stats.p_text(one.p)}): averages over the other do not hold everywhere."
        for one in entangled
        for a, b in [one.factors]
    ]
    return found


def verdicts(results: Results) -> list[str]:
    """A sentence for each arm but the baseline, with its evidence."""
    baseline = results.baseline
    return [
        f"{arm.name}: no finished run yet to compare with {baseline.name}."
        if arm.verdict is None
        else f"{arm.name} is {_WORDS[arm.verdict.word]} {baseline.name}: {arm.verdict.reason}."
        for arm in results.arms
        if baseline is not None and arm is not baseline
    ]


def _grouped(results: Results, baseline: ArmResult) -> list[str]:
    """A sentence for each verdict: many arms would bury the answer."""
    found = []
    for word, than in _WORDS.items():
        arms = [arm for arm in results.arms if arm.verdict is not None and arm.verdict.word == word]
        ranked = sorted((arm for arm in arms if arm.comparison is not None), key=_difference)
        told = [f"{arm.name} ({_difference(arm):+.4f})" for arm in ranked] + [arm.name for arm in arms if arm.comparison is None]
        if told:
            count = "1 arm is" if len(told) == 1 else f"{len(told)} arms are"
            found.append(f"{count} {than} {baseline.name}: {', '.join(told)}.")
    unseen = [arm.name for arm in results.arms if arm.verdict is None and arm is not baseline]
    return found + ([f"No finished run yet of {', '.join(unseen)}."] if unseen else [])


def _difference(arm: ArmResult) -> float:
    assert arm.comparison is not None
    return arm.comparison.difference


def notes(results: Results) -> list[str]:
    """Changes of mind, unequal budgets, misses, edges of grids, steps left out, whether seeds are pairs."""
    found = _race(results) + [_changed(change) for change in results.plan["changes"]]
    found += seen(results)
    found += _budgets(results)
    found += _exchange(results)
    found += _misses(results)
    found += _edges(results)
    found += _without_metric(results)
    found += _skipped(results)
    found += _pairs(results)
    if any(0 < arm.finished < 3 for arm in results.arms) and not results.is_grid:
        found.append("Arms with fewer than three runs: intervals are wide and rest on the assumption of normal scatter.")
    return found


def seen(results: Results) -> list[str]:
    """Validation rows that are training rows, where runs say so."""
    words = {in_words((run.run.get("data") or {}).get("seen")) for run in results.runs if run.run} - {""}
    return [f"Not a loss on unseen text: {'; '.join(sorted(words))}."] if words else []


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


def mean(arm: ArmResult) -> str:
    return number(arm.summary.mean if arm.summary else None)


def _budgets(results: Results) -> list[str]:
    """Whether arms had the same training. What breaks a declared budget is the audit's."""
    used = {run.result.get("tokens") for run in results.runs if run.status == "finished"} - {None}
    if len(used) > 1 and not results.plan.get("budget"):
        return ["Arms are trained on different numbers of tokens: a lower loss may be the longer training's."]
    return []


def _exchange(results: Results) -> list[str]:
    """What a step is worth, where arms differ in nothing but train.steps: by how much the final loss falls with more of them."""
    by_rest: dict[str, list[str]] = {}
    for cell in results.plan["cells"]:
        rest = {key: value for key, value in flat(cell["recipe"]).items() if key != "train.steps"}
        by_rest.setdefault(json.dumps(rest, sort_keys=True), []).append(cell["name"])
    if results.plan["metric"] == "seconds" or not any(len(names) > 1 for names in by_rest.values()):
        return []
    family = {name: names[0] for names in by_rest.values() if len(names) > 1 for name in names}
    runs = [(run, value_of(run, results.plan["metric"])) for run in results.runs if run.status == "finished"]
    points = [(run, value) for run, value in runs if value is not None and run.cell in family and run.result.get("steps")]
    try:  # within a family and a seed, which arms share
        rate = stats.exchange_rate(
            [(run.result["steps"], value) for run, value in points],
            groups=[(family[run.cell], run.seed) for run, _ in points],
            alpha=results.plan["alpha"],
        )
    except ValueError:
        return []  # no two lengths with a finished run of the same seed
    if not rate.per_100_steps > 0:
        return []
    level = f"{100 * (1 - results.plan['alpha']):g} % CI {rate.low:.4f} to {rate.high:.4f}"
    said = f"100 more steps are worth {rate.per_100_steps:.4f} of loss here ({level}, from {', '.join(family)})."
    worth = [
        f"{arm.name} {100 * arm.comparison.difference / rate.per_100_steps:+.1f}"
        for arm in results.arms
        if arm.comparison is not None
    ]
    return [f"{said} At this rate the differences cost (+) or save (-) so many steps: {', '.join(worth)}." if worth else said]


def _misses(results: Results) -> list[str]:
    """Which arms have runs that did not reach the first target."""
    found = []
    for target in targets_of(results.plan)[:1]:
        for arm in results.arms:
            ended = arm.finished + arm.diverged
            if arm.reached < ended:
                lowest = number(min((loss for run in results.runs if (loss := _lowest(run, arm.name)) is not None), default=None))
                how_many = f"{arm.reached} of {ended} runs" if arm.reached else "none of the runs"
                found.append(f"{how_many} of {arm.name} (lowest loss {lowest})")
        if len(found) > 6:
            return [f"Target {target:g}: {len(found)} arms have runs that missed it."]
        if found:
            return [f"Target {target:g} was reached by {'; '.join(found)}. A miss counts as the latest."]
    return []


def _lowest(run: RunRecord, cell: str) -> float | None:
    return value_of(run, "best_val_loss") if run.cell == cell else None


def _edges(results: Results) -> list[str]:
    """A sentence for each set of keys whose best values are the first or last that were tried, with the arms."""
    found: dict[str, list[str]] = {}
    for best in results.best():
        if keys := results.edges(best):
            found.setdefault(" and ".join(keys), []).append(best.arm)
    return [
        f"The best {keys} of {', '.join(arms)} stands on the edge of what was tried: the optimum may lie beyond."
        for keys, arms in found.items()
    ]


def _without_metric(results: Results) -> list[str]:
    metric = results.plan["metric"]
    lacking = [run for run in results.runs if run.status == "finished" and value_of(run, metric) is None]
    if not lacking:
        return []
    which = ", ".join(dict.fromkeys(run.cell for run in lacking))
    return [f"{len(lacking)} finished runs have no finite {metric} and count for nothing in the means: {which}."]


def _skipped(results: Results) -> list[str]:
    """Steps that the optimizer left out, because a gradient was not finite."""
    found = []
    for arm in results.arms:
        counts = [
            run.result["skipped"]
            for run in results.runs
            if run.cell == arm.name and run.status in ENDED and run.result.get("skipped")
        ]
        if counts:
            found.append(
                f"{arm.name}: {sum(counts)} steps were left out in {len(counts)} runs, for gradients that were not finite."
            )
    return found


def _pairs(results: Results) -> list[str]:
    """The measured correlation of runs that share a seed, and whether it is of use."""
    paired = [arm for arm in results.arms if arm.pairing is not None and arm.pairing.correlation == arm.pairing.correlation]
    if not paired or results.baseline is None:
        return []
    told = [f"{arm.name} r = {arm.pairing.correlation:.2f} ({arm.pairing.n} pairs)" for arm in paired if arm.pairing]
    shared = f"Runs share seeds with {results.baseline.name}'s"
    helps = [arm.name for arm in paired if arm.comparison is arm.pairing]
    if not helps and max(arm.pairing.n for arm in paired if arm.pairing) < 5:
        return [f"{shared}, too few to measure a correlation: they are compared as independent (Welch)."]
    listed = ", ".join(told) if len(told) <= 4 else _range(paired)
    if not helps:
        verdict = "it does not help, so that runs are compared as independent (Welch)."
    else:
        others = len([arm for arm in results.arms if arm.comparison is not None]) - len(helps)
        which, rest = (", ".join(helps), "; Welch for the others") if others else ("all arms" if len(helps) > 1 else helps[0], "")
        verdict = f"it makes the interval shorter for {which}, compared in pairs (paired t){rest}."
    return [f"{shared}. Measured correlation of the metric: {listed}; {verdict}"]


def _range(paired: list[ArmResult]) -> str:
    found = sorted(arm.pairing.correlation for arm in paired if arm.pairing)
    return f"r from {found[0]:.2f} to {found[-1]:.2f} (median {found[len(found) // 2]:.2f}, {len(found)} arms)"
