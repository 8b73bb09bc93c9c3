"""What arms of runs say about a question: the figures and verdicts of `muonlab stats`, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from muonlab.errors import InputError
from muonlab.lab import stats
from muonlab.lab.judge.arms import Arm
from muonlab.names import did_you_mean


@dataclass(frozen=True)
class Question:
    """windows: sizes of sliding windows. detect: a difference whose price in runs is asked. pairs: the verdict may use them."""

    target: float | None = None
    alpha: float = 0.01
    margin: float | None = None
    baseline: str | None = None
    windows: Sequence[int] | None = None  # None: 40 and 80, where there are twice as many runs
    detect: float | None = None
    power: float = 0.9
    pairs: bool = False


@dataclass(frozen=True)
class ArmAnswer:
    """test and anytime_p (which holds although one looked after every run): against the target. None: there is no target."""

    name: str
    diverged: int
    summary: stats.Summary | None
    minutes: stats.Summary | None
    test: stats.OneSample | None = None
    anytime_p: float | None = None
    reached: str | None = None  # yes, not shown
    windows: list[stats.Windows] = field(default_factory=list)
    times: stats.TimeSummary | None = None


@dataclass(frozen=True)
class Claim:
    """Of an arm against the baseline. dunnett: its p beside. times_p: log-rank."""

    arm: str
    verdict: stats.Verdict
    comparison: stats.Comparison | None = None
    dunnett: float | None = None
    pairing: stats.Pairing | None = None
    ratio: stats.Ratio | None = None
    times_p: float | None = None


@dataclass(frozen=True)
class Answers:
    arms: list[ArmAnswer]
    baseline: str | None
    claims: list[Claim]
    need: str | None = None
    rate: stats.Rate | None = None


def answer(arms: Sequence[Arm], question: Question, *, curves: bool = False) -> Answers:
    """curves: the runs come with their steps to the target. Raises InputError for too few runs and an unknown baseline."""
    if not any(arm.values for arm in arms):
        raise InputError(f"all {sum(len(arm.runs) for arm in arms)} runs diverged: there is no value to speak of")
    if len(arms) == 1 and len(arms[0].runs) == 1:
        raise InputError("expected at least two runs, got one: a single value says nothing about chance")
    baseline = _baseline(arms, question) if len(arms) > 1 else None
    return Answers(
        arms=[_arm(arm, arms, question, curves) for arm in arms],
        baseline=None if baseline is None else baseline.name,
        claims=[] if baseline is None else _claims(arms, baseline, question, curves),
        need=None if question.detect is None else _need(arms, question, question.detect),
        rate=_rate(arms, question.alpha) if curves else None,
    )


def _baseline(arms: Sequence[Arm], question: Question) -> Arm:
    if question.baseline is None:
        return arms[0]
    names = [arm.name for arm in arms]
    if question.baseline not in names:
        raise InputError(f"--baseline: no arm {question.baseline!r}; {did_you_mean(question.baseline, names)}")
    return arms[names.index(question.baseline)]


def _arm(arm: Arm, arms: Sequence[Arm], question: Question, curves: bool) -> ArmAnswer:
    values, alpha, target = arm.values, question.alpha, question.target
    answered = ArmAnswer(
        name=arm.name,
        diverged=arm.diverged,
        summary=stats.summarize(values, alpha) if values else None,
        minutes=stats.summarize(arm.minutes, alpha) if arm.minutes else None,
    )
    if target is None:
        return answered
    found = stats.one_sample(values, target, alpha=alpha) if values else None
    shown = found is not None and found.p_less < alpha and not arm.diverged
    return replace(
        answered,
        test=found,
        anytime_p=stats.target_p(values, target) if values else None,
        reached="yes" if shown else "not shown",
        windows=[] if len(arms) > 1 else _windows(values, target, question.windows),
        times=_times(arm, arms, alpha) if curves else None,
    )


def _times(arm: Arm, arms: Sequence[Arm], alpha: float) -> stats.TimeSummary:
    """With one horizon for all arms: as far as all of them are known."""
    last = _last(arms)
    followed = min(other.times(last).followed for other in arms)
    return stats.time_to_target(arm.times(last), alpha=alpha, horizon=min(last, followed))


def _windows(values: Sequence[float], target: float, asked: Sequence[int] | None) -> list[stats.Windows]:
    sizes = [size for size in (40, 80) if 2 * size <= len(values)] if asked is None else asked
    try:
        return [stats.windows(values, target, size) for size in sizes]
    except ValueError as error:
        if asked is None:  # nobody asked for windows, and there are none to be had
            return []
        raise InputError(f"--windows: {error}") from None


def _last(arms: Sequence[Arm]) -> float:
    """The last step of any run: a run that diverged is followed up to there, for it would never have reached the target."""
    return max((run.end for arm in arms for run in arm.runs if run.end is not None), default=math.nan)


def _claims(arms: Sequence[Arm], baseline: Arm, question: Question, curves: bool) -> list[Claim]:
    alpha, margin = question.alpha, question.margin
    others = [arm for arm in arms if arm is not baseline]
    comparable = [arm for arm in others if arm.values and baseline.values]
    pairings = {arm.name: _paired(arm, baseline, question) for arm in comparable}
    found: dict[str, stats.Comparison] = {}
    for arm in comparable:
        pairing = pairings[arm.name]
        if question.pairs and pairing is not None and pairing.helps:
            found[arm.name] = pairing
        else:
            found[arm.name] = stats.compare(arm.values, baseline.values, alpha=alpha, margin=margin)
    verdicts = stats.judge(found, alpha=alpha, margin=margin)
    whole = [arm for arm in comparable if _doubted(arm, baseline) is None]
    dunnett = stats.dunnett({arm.name: arm.values for arm in [baseline, *whole]}, baseline.name) if whole else {}
    timed = curves and question.target is not None
    times = {arm.name: arm.times(_last(arms)) for arm in arms} if timed else {}
    return [
        Claim(
            arm=arm.name,
            verdict=_doubted(arm, baseline) or verdicts[arm.name],
            comparison=found.get(arm.name),
            dunnett=dunnett.get(arm.name, math.nan),
            pairing=pairings.get(arm.name),
            ratio=stats.steps_ratio(times[arm.name], times[baseline.name], alpha=alpha) if timed else None,
            times_p=stats.log_rank(times[arm.name], times[baseline.name]) if timed else None,
        )
        for arm in others
    ]


def _doubted(arm: Arm, baseline: Arm) -> stats.Verdict | None:
    """Undecided where runs diverged: the mean of those that are left says too little."""
    for side in (arm, baseline):
        if side.diverged:
            which = "all" if not side.values else str(side.diverged)
            return stats.Verdict("undecided", f"{which} of the {len(side.runs)} runs of {side.name} diverged")
    return None


def _paired(arm: Arm, baseline: Arm, question: Question) -> stats.Pairing | None:
    """Over the pairs that finished on both sides; None for fewer than three, which show no correlation, and for repeated ones
    (an InputError if pairs were asked for)."""
    for side in (arm, baseline):
        if side.repeated is not None:
            if question.pairs:
                raise InputError(f"--pair: {side.name} has several runs with {side.repeated!r}; expected one run of each arm")
            return None
    ours, theirs = arm.by_pair(), baseline.by_pair()
    shared = [pair for pair in ours if pair in theirs]
    if len(shared) < 3:
        return None
    sides = [ours[pair] for pair in shared], [theirs[pair] for pair in shared]
    return stats.paired(*sides, alpha=question.alpha, margin=question.margin)


def _need(arms: Sequence[Arm], question: Question, difference: float) -> str:
    """With the standard deviation pooled over the arms, at this alpha; of one arm with a target: one-sided against it."""
    parts = [(len(arm.values) - 1, stats.summarize(arm.values).std) for arm in arms if len(arm.values) > 1]
    freedom = sum(n for n, _ in parts)
    std = math.sqrt(sum(n * s**2 for n, s in parts) / freedom) if freedom else math.nan
    if not std > 0:
        raise InputError("--detect: needs a spread between runs to say how many are needed; there is none")
    alone = len(arms) == 1 and question.target is not None
    try:
        sentence = stats.need(
            difference, std, alpha=question.alpha, power=question.power, arms=1 if alone else max(2, len(arms)), one_sided=alone
        )
    except ValueError as error:
        raise InputError(f"--detect: {error}") from None
    return f"{sentence} (std {std:.6f}, alpha {question.alpha:g}{', one-sided' if alone else ''})"


def _rate(arms: Sequence[Arm], alpha: float) -> stats.Rate | None:
    """None unless some arm has runs of two lengths."""
    points = [(arm.name, run.end, run.value) for arm in arms for run in arm.runs if run.end is not None and run.value is not None]
    try:
        return stats.exchange_rate([(end, value) for _, end, value in points], groups=[name for name, _, _ in points], alpha=alpha)
    except ValueError:
        return None
