"""`muonlab stats`: figures and verdicts on anybody's runs. Heavy imports wait until the command needs them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from muonlab.cli.app import QUESTIONS, app, say, show
from muonlab.cli.flags import Json
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.lab.judge.answers import Answers, ArmAnswer, Claim, Question
    from muonlab.lab.stats import Summary


_Files = Annotated[
    list[Path], Parameter(help="CSV, JSONL, a JSON list, or a folder of runs; several are several arms", negative=())
]


@app.command(group=QUESTIONS)
def stats(
    files: _Files,
    *,
    column: Annotated[str, Parameter(help="the value of a run")] = "val_loss",
    target: Annotated[float | None, Parameter(help="did the mean get below it?")] = None,
    alpha: Annotated[float, Parameter(help="level of tests, 1 − alpha of intervals; the default is the speed-run rule's")] = 0.01,
    by: Annotated[str | None, Parameter(help="column that names the arm of a row; default: arm, if there is one")] = None,
    baseline: Annotated[str | None, Parameter(help="arm that the others are compared with; default: the first")] = None,
    margin: Annotated[float | None, Parameter(help="differences below it do not matter: equivalent")] = None,
    pair: Annotated[
        str | None, Parameter(help="column that pairs runs of different arms; default: seed, shown beside only")
    ] = None,
    detect: Annotated[float | None, Parameter(help="say how many runs a difference of this size needs")] = None,
    power: Annotated[float, Parameter(help="the chance of finding it")] = 0.9,
    windows: Annotated[str | None, Parameter(help="sizes of sliding windows, such as 40,80; default: these, if runs allow")] = None,
    steps: Annotated[str | None, Parameter(help="column of steps (tokens, seconds): rows are points of curves, not runs")] = None,
    run: Annotated[str, Parameter(help="with --steps: column that names the run")] = "run",
    json: Json = False,
) -> None:
    """Say what runs show: their figures, a test against a target, verdicts on arms. Lower is better.

    A row is a run (with `--steps`, an evaluation). A row without a number is a diverged run.
    docs/how-to/losses.md explains the figures.
    """
    from muonlab.lab.judge.answers import Question, answer
    from muonlab.lab.judge.arms import Columns, gather, time_column
    from muonlab.lab.judge.results import plain
    from muonlab.lab.runs.tables import read_table

    _check_numbers(alpha=alpha, power=power, margin=margin, detect=detect, target=target)
    if len({path.resolve() for path in files}) < len(files):
        raise InputError("a file is given twice: its runs would count twice")
    tables = [read_table(path, curves=steps is not None) for path in files]
    in_all = {name for name in tables[0].columns if all(name in table.columns for table in tables)}
    by = by or ("arm" if len(files) == 1 and "arm" in in_all else None)
    arms = gather(tables, Columns(column, by, pair or ("seed" if "seed" in in_all else None), steps, run), target)
    for flag, value in (("--baseline", baseline), ("--margin", margin), ("--pair", pair)):
        if value is not None and len(arms) == 1:
            raise InputError(f"{flag}: needs several arms, got one; name a column with --by, or give several files")
    question = Question(target, alpha, margin, baseline, _sizes(windows), detect, power, pair is not None)
    found = answer(arms, question, curves=steps is not None)
    for note in (note for table in tables for note in table.notes):
        say(note)
    for arm in arms:
        if arm.repeated is not None:
            which = f"{arm.name}: several runs with {pair or 'seed'} {arm.repeated}"
            say(f"{which}: they count as independent, which a run done twice is not")
    time = time_column(tables, column)
    asked = {"column": column, "target": target, "alpha": alpha, "margin": margin, "minutes_from": time, "steps": steps}
    show({**asked, **plain(found)}, json, lambda: "\n".join(_text(found, question, column, time, steps)))


def _check_numbers(*, alpha: float, power: float, **others: float | None) -> None:
    problems = []
    if not 0 < alpha < 0.5:
        hint = f"; did you mean {alpha / 100:g}?" if 0.5 <= alpha < 50 else ""
        problems.append(f"--alpha: expected a level between 0 and 0.5, such as 0.05, got {alpha:g}{hint}")
    elif not alpha < power < 1:
        problems.append(f"--power: expected a chance between alpha and 1, such as 0.9, got {power:g}")
    for name, value in others.items():
        if value is not None and not math.isfinite(value):
            problems.append(f"--{name}: expected a finite number, got {value}")
        elif value is not None and name != "target" and value <= 0:
            problems.append(f"--{name}: expected a number above 0, got {value:g}")
    if problems:
        raise InputError(*problems)


def _sizes(windows: str | None) -> list[int] | None:
    if windows is None:
        return None
    try:
        return [int(size) for size in windows.split(",")]
    except ValueError:
        raise InputError(f"--windows: expected sizes such as 40,80, got {windows!r}") from None


def _text(found: Answers, question: Question, column: str, time: str | None, steps: str | None) -> list[str]:
    lines = []
    for arm in found.arms:
        lines += [*_arm_lines(arm, question, column, time), *_time_lines(arm, question, steps), ""]
    for claim in found.claims:
        lines += _claim_lines(claim, found.baseline or "", question, steps)
    if found.rate is not None:
        rate = found.rate
        ci = "too few for an interval" if math.isnan(rate.low) else f"{_level(question)} CI {rate.low:.6f} to {rate.high:.6f}"
        lines.append(f"loss falls by {rate.per_100_steps:.6f} with 100 more {steps} ({rate.n} runs, {ci})")
    if found.need is not None:
        lines.append(found.need)
    return lines if lines[-1] else lines[:-1]


def _level(question: Question) -> str:
    return f"{100 * (1 - question.alpha):g} %"


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.000001" if p < 5e-7 else f"= {p:.6f}"


def _digits(found: Summary) -> int:
    """Decimals: six, or more where the spread is smaller still."""
    return 6 if math.isnan(found.low) or found.std == 0 else max(6, 2 - math.floor(math.log10(found.std)))


def _arm_lines(arm: ArmAnswer, question: Question, column: str, time: str | None) -> list[str]:
    diverged = "" if not arm.diverged else f", {arm.diverged} diverged (no number): the figures are of the others"
    found = arm.summary
    if found is None:
        return [f"{arm.name}: {column}, all {arm.diverged} runs diverged"]
    d, level = _digits(found), _level(question)
    lines = [f"{arm.name}: {column}, n = {found.n}{diverged}"]
    one = found.n == 1
    ci = f"   {level} CI {found.low:.{d}f} to {found.high:.{d}f}"
    if math.isnan(found.low):
        ci = "" if one else "   all runs are equal: no interval"
    lines.append(f"  mean    {found.mean:.{d}f}{ci}")
    lines += [] if one else [f"  std     {found.std:.{d}f}"]
    lines.append(f"  median  {found.median:.10g}   min {found.minimum:.10g}   max {found.maximum:.10g}")
    if arm.test is not None and question.target is not None:
        lines += _target_lines(arm, question, d)
    if arm.minutes is not None:
        m = arm.minutes
        ci = "" if math.isnan(m.low) else f", std={m.std:.4f}   {level} CI {m.low:.4f} to {m.high:.4f}"
        lines.append(f"  train time (minutes, from {time}): mean={m.mean:.4f}{ci}")
    return lines


def _target_lines(arm: ArmAnswer, question: Question, d: int) -> list[str]:
    test, p = arm.test, arm.anytime_p
    if test is None or p is None:
        return []
    why = f"t-test p {_p(test.p_less)}, alpha {question.alpha:g}"
    if arm.diverged:
        why = f"{arm.diverged} of the {arm.diverged + test.n} runs diverged; of the others {why}"
    elif math.isnan(test.p_less):
        why = "too few runs, or no spread between them"
    word = "reached" if arm.reached == "yes" else "not shown to be reached"
    lines = [f"  target {question.target:g}: {word} ({why})"]
    if not math.isnan(test.p_less):
        lines.append(f"    if you looked after every run, use instead: anytime-valid p {_p(p)}")
    if not math.isnan(test.bootstrap_low):
        lines.append(f"    check: bootstrap {_level(question)} CI {test.bootstrap_low:.{d}f} to {test.bootstrap_high:.{d}f}")
    return lines + [
        f"    windows of {w.size} runs ({w.count}, overlapping: a description, not evidence): "
        f"p mean {w.p_mean:.6f}, std {w.p_std:.6f}, fraction p < {w.level:g}: {w.fraction_below:.4f}"
        for w in arm.windows
    ]


def _time_lines(arm: ArmAnswer, question: Question, steps: str | None) -> list[str]:
    t = arm.times
    if t is None:
        return []
    median = "beyond the last run"
    if t.median is not None:
        median = f"{t.median:g} ({_level(question)} CI {_edge(t.low)} to {_edge(t.high)})"
    mean = f"; mean up to {t.horizon:g}: {t.restricted_mean:.6g}" if t.restricted_mean < t.horizon else ""
    return [f"  {steps} to {question.target:g}: {t.reached} of {t.n} runs got there; Kaplan-Meier median {median}{mean}"]


def _edge(value: float | None) -> str:
    return "open" if value is None else f"{value:g}"


def _claim_lines(claim: Claim, baseline: str, question: Question, steps: str | None) -> list[str]:
    lines = [f"{claim.arm} against {baseline}: {claim.verdict.word} ({claim.verdict.reason})"]
    beside = []
    if claim.dunnett is not None:
        none = math.isnan(claim.dunnett)
        beside.append("no Dunnett p: there is no estimate of chance" if none else f"Dunnett p {_p(claim.dunnett)}")
    if claim.pairing is not None and not math.isnan(claim.pairing.correlation):
        pairing = claim.pairing
        helps = "pairs help" if pairing.helps else "pairs are not shown to help"
        used = ", the verdict uses them" if claim.comparison == pairing else ""
        beside.append(
            f"correlation over {pairing.n} pairs {pairing.correlation:+.2f}: {helps}{used} ({pairing.test} p {_p(pairing.p)})"
        )
    if claim.ratio is not None and claim.times_p is not None:
        r = claim.ratio
        ratio = "open" if math.isnan(r.ratio) else f"{r.ratio:.4f}"
        ci = "" if math.isnan(r.low) else f", {_level(question)} CI {r.low:.4f} to {r.high:.4f}"
        p = "" if math.isnan(claim.times_p) else f"; log-rank p {_p(claim.times_p)}"
        beside.append(f"{steps} to {question.target:g}: ratio {ratio}{ci} ({r.method}){p}")
    return [*lines, *(f"  {text}" for text in beside)]
