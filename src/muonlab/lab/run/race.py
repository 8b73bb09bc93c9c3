"""A race: seeds one at a time, for as long as the answer is open (judge.standings).

Every arm runs the first seed, then the second, and so on; an arm that is decided runs no more, the baseline runs while any is left.
"""

from __future__ import annotations

from typing import Any

from muonlab.errors import InputError
from muonlab.lab.judge.standings import ended, names_of, standings
from muonlab.lab.runs.store import RunRecord, Sweep
from muonlab.train.run_folder import ENDED


def next_runs(sweep: Sweep, at_once: int = 1) -> list[RunRecord]:
    """The runs that the race needs now: the next seed of every open arm and of the baseline; several seeds where these runs are
    fewer than `at_once`. Empty when all is decided or no seed is left. sweep: all planned runs, those that are missing included."""
    open_arms = {name for name, standing in standings(sweep).items() if standing.open}
    if not open_arms:
        return []
    live = [name for name in names_of(sweep.plan) if name == sweep.plan["baseline"] or name in open_arms]
    done = min(len(ended(sweep, name)) for name in live)
    seeds = sweep.plan["seeds"][done : done + max(1, at_once // len(live))]
    planned = {(run.cell, run.seed): run for run in sweep.runs}
    needed = [planned[name, seed] for seed in seeds for name in live]
    return [run for run in needed if run.status not in ENDED]


def check(plan: dict[str, Any], source: str) -> None:
    """Raises InputError unless the experiment can be raced."""
    if plan["baseline"] is None or len(plan["cells"]) < 2:
        raise InputError(f"{source}: a race needs a baseline and an arm to compare with it: set `baseline`")
    if len(plan["seeds"]) < 3:
        raise InputError(f"{source}: a race needs at least three seeds, got {len(plan['seeds'])}; give the most that it may use")
