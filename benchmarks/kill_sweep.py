"""Kills workers and the runner of a sweep of 100 short runs at random moments (SIGKILL), and compares with a sweep left in peace.

    python benchmarks/kill_sweep.py [--workers-killed 30] [--runners-killed 5] [--runs 100] [--seed 0] [--out FILE]

Passed means: every planned run has finished, once (its result was never written again, its steps are there once each), no other
run is there, and all final weights have the SHA-256 of the undisturbed sweep's. A moment is a random delay after a random number
of finished runs. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from muonlab.lab.judge.audit import audit
from muonlab.lab.runs.store import load_sweep
from muonlab.train.provenance import cpu_name

STEPS = 12
RECIPE = f"""
[model]
layers = 1
width = 16
head_width = 8
context = 16
[data]
source = "text"
files = ["corpus.txt"]
[train]
steps = {STEPS}
batch = 2
precision = "float32"
eval_every = 6
eval_tokens = 64
log_every = 1
checkpoint_every = 3
"""
EXPERIMENT = """
question = "Does anything get lost?"
base = "recipe.toml"
seeds = {seeds}
[arms.muon]
grid.optimizer.lr = [0.005, 0.01, 0.02, 0.04, 0.08]
"""


@dataclass
class Tally:
    workers: int = 0  # killed
    runners: int = 0
    starts: int = 0  # of the runner
    first_seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # result.json: inode and time of writing

    def look(self, folder: Path) -> int:
        """Notes new results. Returns how many there are."""
        for path in folder.glob("runs/*/result.json"):
            if path.parent.name not in self.first_seen:
                self.first_seen[path.parent.name] = written(path)
        return len(self.first_seen)


def written(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "muonlab", "sweep", "exp.toml", "--out", out, "--workers", "2", "--device", "cpu"]
    with open(folder / f"{out}.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log)


def workers_of(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    except OSError:  # ended meanwhile
        return []


def disturbed(folder: Path, runs: int, kills: list[str], moments: random.Random) -> Tally:
    """Sweeps into folder/killed, with one kill ("worker" or "runner") after each of as many random numbers of finished runs."""
    tally, out = Tally(), folder / "killed"
    due = sorted(moments.randrange(max(1, int(0.95 * runs))) for _ in kills)
    plan = list(zip(due, kills, strict=True))
    while True:
        process = start(folder, "killed")
        tally.starts += 1
        while process.poll() is None:
            if not plan or tally.look(out) < plan[0][0]:
                time.sleep(0.01)
                continue
            victims = workers_of(process.pid) if plan[0][1] == "worker" else [process.pid]
            time.sleep(moments.uniform(0, 0.3))
            if not victims:
                continue
            try:
                os.kill(moments.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            if plan.pop(0)[1] == "worker":
                tally.workers += 1
            else:
                tally.runners += 1
                process.wait()
        tally.look(out)
        if process.returncode == 0:
            return tally
        if process.returncode not in (1, -signal.SIGKILL):
            raise SystemExit((folder / "killed.log").read_text()[-2000:])


def compare(folder: Path, tally: Tally) -> dict[str, int | bool]:
    whole, killed = load_sweep(folder / "whole"), load_sweep(folder / "killed")
    weights = {(run.cell, run.seed): run.result["weights_sha256"] for run in whole.runs}
    results = {path.parent.name: written(path) for path in (folder / "killed").glob("runs/*/result.json")}
    found = audit(folder / "killed", killed)
    return {
        "runs": len(killed.runs),
        "finished": len(found.finished),
        "foreign_or_double": len(found.foreign) + len(found.duplicates),
        "results_written_again": sum(tally.first_seen[name] != at for name, at in results.items()),
        "steps_missing_or_double": sum([row["step"] for row in run.rows] != [*range(1, STEPS + 1)] for run in killed.runs),
        "equal_weights": sum(run.result.get("weights_sha256") == weights[run.cell, run.seed] for run in killed.runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers-killed", type=int, default=30)
    parser.add_argument("--runners-killed", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100, help="a multiple of 5")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill_sweep.json"))
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    kills = ["worker"] * arguments.workers_killed + ["runner"] * arguments.runners_killed
    moments.shuffle(kills)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["muon", "weight", "gradient", "matrix", "the", "of", "polar", "factor", "step"]
        (folder / "corpus.txt").write_text(" ".join(moments.choice(words) for _ in range(2000)))
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "exp.toml").write_text(EXPERIMENT.format(seeds=arguments.runs // 5))
        began = time.monotonic()
        if start(folder, "whole").wait():
            raise SystemExit((folder / "whole.log").read_text()[-2000:])
        whole = time.monotonic() - began
        tally = disturbed(folder, arguments.runs, kills, moments)
        figures = compare(folder, tally)
        seconds = time.monotonic() - began - whole
    n = figures["runs"]
    passed = figures == {"runs": n, "finished": n, "foreign_or_double": 0, "results_written_again": 0,
                         "steps_missing_or_double": 0, "equal_weights": n}  # fmt: skip
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "workers_killed": tally.workers,
        "runners_killed": tally.runners,
        "runner_starts": tally.starts,
        **figures,
        "passed": passed,
        "seconds_undisturbed": round(whole, 1),
        "seconds_disturbed": round(seconds, 1),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
