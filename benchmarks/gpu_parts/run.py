"""Part 4, run: `muonlab train` of a 28M GPT on the text of Python's standard library: whole, and killed half-way and resumed.

python benchmarks/gpu_parts/run.py --out FILE [--tiny] [--seconds N]

Both runs' losses are compared row by row: on a CPU they are equal to the last bit, on CUDA the largest difference is a figure. Time
lost is what kill and resume cost beside the run that nobody killed: a start-up, and the steps after the last checkpoint. Then the
batch search, --vram-auto, within a limit that it has to split the batch for, and within all that is free.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from part import NotRun, Part, main

RECIPE = """
[model]
layers = 9
width = 512
head_width = 64
context = 512
[optimizer]
name = "muon"
lr = 0.01
aux_lr = 0.003
[train]
batch = 64
log_every = 5
eval_tokens = 65536
"""
TINY = {"model.layers": 1, "model.width": 32, "model.head_width": 16, "model.context": 32, "train.batch": 2, "train.log_every": 1,
        "train.eval_tokens": 64, "train.precision": "float32", "data.source": "text", "data.files": '["text.txt"]'}  # fmt: skip
PACE_STEPS, TINY_STEPS, LONGEST = 60, 300, 60.0  # steps, steps, seconds of training
LARGEST_DIFFERENCE = 0.1  # nats on CUDA: sums in another order drift apart, but it is the same run
SEARCHES = {"within 4 GB": (8, 4096, "4GB"), "in all that is free": (256, 512, None)}  # sequences, context, limit


class Runs:
    """Calls muonlab in one folder."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.part, self.folder, self.settings = part, folder, dict(TINY) if part.tiny else {}
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "text.txt").write_text("a small text for small models\n" * 1000)

    def start(self, out: str, settings: dict[str, Any], *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "muonlab", "train", "recipe.toml", "--out", out, "--device", self.part.device, *flags]
        if self.part.tiny:
            command += ["--threads", "1"]
        for key, value in {**self.settings, **settings}.items():
            command += ["--set", f"{key}={value}"]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def done(self, out: str, settings: dict[str, Any], *flags: str) -> tuple[float, str]:
        """Wall seconds and what it said. Raises RuntimeError if it failed."""
        start = time.perf_counter()
        return _end(self.start(out, settings, *flags), out, start)

    def rows(self, out: str) -> list[dict[str, Any]]:
        from muonlab.train.run_folder import RunFolder

        return RunFolder(self.folder / out).rows()

    def step(self, out: str) -> int:
        """The last one that was logged."""
        from muonlab.train.run_folder import RunFolder

        return max((row["step"] for row in RunFolder(self.folder / out).recent_rows()), default=0)


def _end(process: subprocess.Popen[str], name: str, start: float) -> tuple[float, str]:
    said, _ = process.communicate()
    print(said, flush=True)
    if process.returncode:
        last = (said.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"muonlab train ({name}) ended with exit code {process.returncode}: {last}")
    return time.perf_counter() - start, said


def run(part: Part) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, settings = Runs(part, Path(folder)), {}

        def pace() -> dict[str, Any]:
            nonlocal settings
            found = _pace(runs)
            settings = _length(found["steps"])
            return found

        def resumed() -> dict[str, Any]:
            if not settings:
                raise NotRun("the pace is not known")
            return _killed_and_resumed(runs, settings)

        part.case("pace", pace)
        row = part.case("killed and resumed", resumed)
        words = []
        if row:
            same = "equal losses" if row["equal"] else f"losses within {row['largest_difference']:.2g}"
            words = [
                f"killed at step {row['killed_after_step']} of {row['steps']}, resumed: {same}, {row['seconds_lost']:.1f} s lost"
            ]
            words += [f"{row['tokens_per_second']:,.0f} tokens/s"]
        part.say(", ".join(words))
        searches = list(SEARCHES.items())[: 1 if part.tiny else None]
        for name, (batch, context, limit) in searches:
            row = part.case(f"batch search {name}", lambda case=(batch, context, limit): _search(runs, *case), needs_seconds=15)
            words += [f"batch search {name}: {row['micro_batch']} of {row['batch']}"] if row else []
            part.say(", ".join(words))


def _pace(runs: Runs) -> dict[str, Any]:
    """How many steps fill the time: two runs and a bit have to fit, and eight starts: three of them, five of the search."""
    if runs.part.tiny:
        return {"steps": TINY_STEPS}
    wall, _ = runs.done("pace", {**_length(PACE_STEPS), "train.checkpoint_every": PACE_STEPS})
    rows = runs.rows("pace")
    first, last = next(row for row in rows if row["step"] >= PACE_STEPS // 3), rows[-1]
    step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    start_up = max(1.0, wall - last["seconds"])
    seconds = min(LONGEST, max(4.0, (runs.part.left() - 8 * start_up) / 2.3))
    return {"steps": max(50, int(seconds / step)), "step_seconds": step, "start_up_seconds": start_up}


def _length(steps: int) -> dict[str, Any]:
    every = max(1, steps // 5)  # not at the half, where it is killed: there has to be something to do again
    return {"train.steps": steps, "train.checkpoint_every": every, "train.eval_every": every}


def _killed_and_resumed(runs: Runs, settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings["train.steps"]
    if runs.part.tiny:  # both at once: nothing is timed
        beside = runs.start("whole", settings)
    else:
        whole_wall, _ = runs.done("whole", settings)
    start = time.perf_counter()
    process = runs.start("killed", settings)
    try:
        while process.poll() is None and runs.step("killed") < steps // 2:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    killed_wall, at = time.perf_counter() - start, runs.step("killed")
    if process.returncode == 0 or not at:
        raise NotRun(f"it ended by itself (exit code {process.returncode}) before it could be killed")
    if runs.part.tiny:
        whole_wall, _ = _end(beside, "whole", start)
    saved = [int(path.name[5:]) for path in (runs.folder / "killed/checkpoints").glob("step-*")]
    resume_wall, _ = runs.done("killed", settings, "--resume")
    whole, killed = ({row["step"]: row for row in runs.rows(name)} for name in ("whole", "killed"))
    if whole.keys() != killed.keys():
        raise RuntimeError(f"the resumed run has {len(killed)} rows, the whole one {len(whole)}")
    pairs = [(whole[n].get(key), killed[n].get(key)) for n in whole for key in ("train_loss", "val_loss")]
    largest = max(abs(a - b) for a, b in pairs if a is not None)
    if largest > (0.0 if runs.part.device == "cpu" else LARGEST_DIFFERENCE):
        raise RuntimeError(f"losses of the resumed run differ by up to {largest:.3g} from the whole run's")
    first, last = (list(whole.values())[i] for i in (len(whole) // 3, -1))
    return {
        "steps": steps, "rows": len(whole), "killed_after_step": at, "checkpoint_at_step": max(saved, default=0),
        "equal": largest == 0, "largest_difference": largest, "final_losses": [pairs[-1][0], pairs[-1][1]],
        "tokens_per_second": (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]),
        "wall_seconds": {"whole": whole_wall, "killed": killed_wall, "resumed": resume_wall},
        "seconds_lost": killed_wall + resume_wall - whole_wall, "curve": _curve(whole, killed),
    }  # fmt: skip


def _curve(whole: dict[int, dict[str, Any]], killed: dict[int, dict[str, Any]]) -> list[list[float]]:
    """Step, training loss of the whole run and of the resumed one: about fifty of the rows."""
    steps = sorted(whole)
    found = [[n, whole[n].get("train_loss"), killed[n].get("train_loss")] for n in steps[:: max(1, len(steps) // 50)]]
    return [row for row in found if row[1] is not None]


def _search(runs: Runs, batch: int, context: int, limit: str | None) -> dict[str, Any]:
    name, settings = f"search-{batch}", {**_length(2), "train.batch": batch, "model.context": context}
    if runs.part.tiny:
        settings |= {"train.batch": 4, "model.context": 32}
        limit = "4GB"
    elif limit is None and runs.part.device == "cpu":
        raise NotRun("on a CPU this would take all its memory")
    settings |= {"train.eval_tokens": settings["model.context"]}
    wall, said = runs.done(name, settings, "--vram-auto", *(["--memory-limit", limit] if limit else []))
    parts = json.loads((runs.folder / name / "run.json").read_text())["machine"]["accumulate"]
    trials = re.findall(r"micro-batch of (\d+): (fits|does not fit)[,:] (.*)", said)
    size = -(-settings["train.batch"] // parts)
    return {"batch": settings["train.batch"], "parts": parts, "micro_batch": size, "wall_seconds": wall, "trials": trials}


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    main("run", run, needs=("numpy", "pydantic", "safetensors", "tomli_w", "cyclopts", "rich"))
