"""Runs what is missing of a sweep, in worker processes. Finished runs stay, interrupted ones go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from muonlab.errors import InputError
from muonlab.lab.judge.standings import Standing, standings
from muonlab.lab.plan.experiment import Experiment, plan_of
from muonlab.lab.plan.machine import check_data, workers_and_machine
from muonlab.lab.run.pool import Event, Pool, Task
from muonlab.lab.run.race import check, next_runs
from muonlab.lab.runs.store import RunRecord, Sweep, merged, note_failure, read_plan, read_runs, write_plan
from muonlab.train.batch_size import shared_memory_limit
from muonlab.train.run_folder import ENDED, RunFolder


def sweep(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> None:
    """Brings every run of the experiment to its end, in the folder `out`.

    workers: processes that train at once; default: one for each core (CPU), or up to four where the GPU's memory allows (CUDA). The
    first sweep decides device, threads and precision of the runs, later ones keep them: a run done again computes what it computed
    before. Raises InputError for bad input, Interrupted after SIGINT or SIGTERM (all runs saved), RunError if runs failed.
    """
    _run(experiment, out, workers, device, on_event, lambda state, _: [run for run in state.runs if run.status not in ENDED])


def race(
    experiment: Experiment,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    on_look: Callable[[dict[str, Standing]], None] = lambda _: None,
) -> None:
    """Runs one seed after the other, of the baseline and of every arm whose verdict is open, in the folder `out`.

    The experiment's seeds are the most that it may use. on_look: told where the arms stand, after every seed. Everything else is
    as for `sweep`; a race that was broken off goes on.
    """

    def needed(state: Sweep, count: int) -> list[RunRecord]:
        on_look(standings(state))
        return next_runs(state, count)

    check(plan_of(experiment, {}), experiment.name)
    _run(experiment, out, workers, device, on_event, needed, race=True)


def _run(
    experiment: Experiment,
    out: Path,
    workers: int | None,
    device: str | None,
    on_event: Callable[[Event], None],
    needed: Callable[[Sweep, int], list[RunRecord]],
    race: bool = False,
) -> None:
    """needed: the runs that are to be done now, of those planned, with so many workers; a race asks again after each round."""
    count, machine = workers_and_machine(experiment, workers, device)
    known = read_plan(out)
    if known is None:
        check_data(experiment, None)  # nothing is written for what cannot run
    elif device is not None and device != known["machine"]["device"]:
        raise InputError(f"{out}: its runs are computed on {known['machine']['device']}: choose another folder with --out")
    with RunFolder(out).lock():
        plan = plan_of(experiment, machine) | ({"race": True} if race else {})
        state = read_runs(out, merged(out, read_plan(out), plan))
        if damaged := [run.problem for run in state.runs if run.status == "damaged"]:
            raise InputError(*damaged)
        if known is not None and any(run.status not in ENDED for run in state.runs):
            check_data(experiment, state)
        write_plan(out, plan)
        for run in state.runs:
            if run.status in ENDED:
                on_event(Event(run.cell, run.seed, run.status))
        recipes = {cell.name: cell.recipe.canonical() for cell in experiment.cells}
        settings = state.plan["machine"]
        settings = settings | shared_memory_limit((cell.recipe for cell in experiment.cells), settings["device"], count)

        def tasks(state: Sweep) -> list[Task]:
            runs = needed(state, count)
            return [Task(run.cell, run.seed, str(out / "runs" / run.folder), recipes[run.cell], settings) for run in runs]

        def failed(task: Task, why: str) -> None:
            note_failure(out, Path(task.folder).name, why)

        if first := tasks(state):
            more = (lambda: tasks(read_runs(out, state.plan))) if race else None
            Pool(first, count, on_event, failed, more).run()
