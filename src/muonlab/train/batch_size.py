"""train.accumulate = "auto": the largest micro-batch that fits into memory, found by trying.

A batch is split into as few parts as memory allows, all but equal ones; what an optimizer step sees is the same batch, however it
is split. Each size is tried in a process of its own, which trains a little as the run will: what did not fit leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from muonlab.data import corpus
from muonlab.errors import InputError, RunError
from muonlab.train.memory import available_memory, in_words, keep_freed_memory, status
from muonlab.train.recipe import Recipe
from muonlab.train.trainer import Machine, Trainer

SHARE = 0.95  # of the limit: a run's memory grows a little with its gaps, and the libraries' own is not all counted


@dataclass(frozen=True)
class Trial:
    """How a micro-batch fared."""

    fits: bool
    peak: int = 0  # bytes, where it fits
    reason: str = ""  # where it does not


def fitted(
    machine: Machine,
    recipe: Recipe,
    seed: int,
    *,
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    attempt: Callable[[Recipe, int, Machine, int], Trial] | None = None,
) -> Machine:
    """The machine with `accumulate` found, where the recipe leaves it open and it is not known yet.

    memory_limit: bytes; default: what is free on the device, or for a CPU on this machine and in its control groups. attempt: for
    tests. Raises InputError if not even one sequence fits.
    """
    if recipe.train.accumulate != "auto" or machine.accumulate is not None:
        return machine
    corpus.load(recipe.data)  # what has to be prepared is prepared here and once, and bad data is said before anything is tried
    if memory_limit is None and machine.device == "cpu":
        memory_limit = available_memory()
    room = int(SHARE * memory_limit) if memory_limit is not None else 0  # 0: what is free on the device, which it says itself
    batch, trials = recipe.train.batch, {}
    say(f"looking for the largest micro-batch that fits{f' into {in_words(memory_limit)}' if memory_limit else ''}")

    def fits(size: int) -> bool:
        chosen = replace(machine, accumulate=-(-batch // size))
        trials[size] = trial = (attempt or _in_a_process)(recipe, seed, chosen, room)
        how = f"fits, {in_words(trial.peak)} at most" if trial.fits else f"does not fit: {trial.reason}"
        say(f"micro-batch of {size}: {how}")
        return trial.fits

    size = largest(sizes(batch), fits)
    if size is None:
        limit = in_words(memory_limit) if memory_limit else f"what is free on {machine.device}"
        raise InputError(
            f"train.accumulate: not even one sequence of {recipe.model.context} tokens fits into {limit} ({trials[1].reason}): "
            "choose a smaller model or model.context, another optimizer, or more memory (--memory-limit)"
        )
    parts = -(-batch // size)
    most = "" if batch % size == 0 else "at most "
    say(f"a batch of {batch} sequences in {parts} {'part' if parts == 1 else 'parts'} of {most}{size}")
    return replace(machine, accumulate=parts)


def shared_memory_limit(recipes: Iterable[Recipe], device: str, processes: int) -> dict[str, int]:
    """The argument of `fitted` for each of several processes that train at once; nothing where none of them needs it."""
    if processes == 1 or all(recipe.train.accumulate != "auto" for recipe in recipes):
        return {}
    cpu = torch.device(device).type == "cpu"
    return {"memory_limit": (available_memory() if cpu else torch.cuda.get_device_properties(device).total_memory) // processes}


def sizes(batch: int) -> list[int]:
    """The largest parts that a batch can be split into, for every number of parts: 10 -> 1, 2, 3, 4, 5, 10."""
    return sorted({-(-batch // parts) for parts in range(1, batch + 1)})


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of the rising candidates that fits, None if none does. The last one first, for it often fits; then doubling until
    one does not fit; then bisection."""
    if fits(candidates[-1]):
        return candidates[-1]
    good, bad = -1, len(candidates) - 1
    doubled = 1
    while (at := max(i for i, size in enumerate(candidates) if size <= doubled)) < bad:
        if not fits(candidates[at]):
            bad = at
            break
        good, doubled = at, 2 * doubled
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(candidates[middle]):
            good = middle
        else:
            bad = middle
    return candidates[good] if good >= 0 else None


def _in_a_process(recipe: Recipe, seed: int, machine: Machine, room: int) -> Trial:
    task = {"recipe": recipe.canonical(), "seed": seed, "machine": asdict(machine), "room": room}
    command = [sys.executable, "-m", "muonlab.train.batch_size"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            errors: list[str] = []
            reader = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
            reader.start()
            child.stdin.write(json.dumps(task) + "\n")  # and stays open: when it ends, this process has ended
            child.stdin.flush()
            lines = child.stdout.read().splitlines()
            child.wait()
            reader.join()
        finally:
            child.kill()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):  # the system has ended it, for memory as a rule
        last = f": {errors[-1].strip()}" if errors else ""
        return Trial(False, reason=f"its process ended with exit code {child.returncode}{last}")
    if answer.get("problems"):
        raise InputError(*answer["problems"])
    if answer.get("error"):
        raise RunError(f"train.accumulate: a micro-batch could not be tried: {answer['error']}")
    return Trial(**answer)


def main() -> None:
    """One trial: the task comes as a line, the answer goes as one."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    recipe, machine = Recipe.model_validate(task["recipe"]), Machine(**task["machine"])
    try:
        answer = asdict(trial(recipe, task["seed"], machine, task["room"]))
    except InputError as error:
        answer = {"problems": error.problems}
    except Exception as error:  # said by the parent, in words
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # nothing to clean up, and what is left of memory may not suffice for it


def trial(recipe: Recipe, seed: int, machine: Machine, room: int) -> Trial:
    """Trains a little in this process, which from now on may take no more than `room` bytes (0: what is free on the device)."""
    cuda = torch.device(machine.device).type == "cuda"
    if cuda:
        free, total = torch.cuda.mem_get_info(machine.device)
        room = room or int(SHARE * free)
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), machine.device)
    elif not _bounded(room):
        return Trial(False, reason="Python and torch alone take more")
    else:
        keep_freed_memory()  # as the run will
    try:
        Trainer(recipe, seed, machine).rehearse()
    except Exception as error:
        if not out_of_memory(error) and not isinstance(error, SystemError):  # Python's, where an extension missed a failed malloc
            raise
        return Trial(False, reason="out of memory")
    peak = torch.cuda.max_memory_reserved(machine.device) if cuda else _peak()
    return Trial(True, peak) if peak <= room else Trial(False, reason=f"it takes {in_words(peak)}")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was too little: torch says so in several ways."""
    words = r"out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED|cannot allocate|unable to allocate"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or re.search(words, str(error), re.IGNORECASE) is not None


def _bounded(room: int) -> bool:
    """Lets allocations of this process fail where its resident memory would grow beyond `room`. False: it is larger already.

    Linux counts private memory that may be written, touched or not; elsewhere the peak is looked at afterwards.
    """
    data, resident = status("VmData"), status("VmRSS")
    if data is None or resident is None:
        return _peak() <= room
    if resident < room:
        most = data + room - resident
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return resident < room


def _peak() -> int:
    """The most bytes that were resident in this process. (getrusage's figure begins with the parent's on Linux.)"""
    unit = 1 if sys.platform == "darwin" else 1024
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _leave_with_the_parent() -> Any:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
