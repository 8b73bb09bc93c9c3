"""How long a report of 200 runs × 1,000 evaluations takes, and how large its page is: 20 arms × 10 seeds, and 4 × 50.

    python benchmarks/report.py            writes benchmarks/results/report.json

Each report is made by `muonlab report` in a process of its own, as a user makes it: imports, reading and drawing count.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from muonlab.files import write_atomically
from muonlab.train.run_folder import RunFolder, format_row, write_json

RESULTS = Path(__file__).parent / "results" / "report.json"
POINTS = 1000
REPEATS = 3


def sweep(folder: Path, arms: int, seeds: int) -> Path:
    """A finished sweep in the very files that training writes."""
    cells = [
        {"name": f"arm {i}", "arm": f"arm {i}", "swept": {}, "recipe": {"optimizer": {"lr": 0.001 * (i + 1), "odd": i % 3}}}
        for i in range(arms)
    ]
    runs = [
        {"cell": f"arm {i}", "seed": s, "id": f"{i}x{s}", "folder": f"arm{i}-seed{s}"} for s in range(seeds) for i in range(arms)
    ]
    plan = {
        **{"format": 1, "name": folder.name, "question": "Which arm is best?", "seeds": list(range(seeds)), "metric": "val_loss"},
        **{"target": 2.45, "margin": 0.005, "alpha": 0.05, "tuned_by": None, "baseline": "arm 0", "changes": []},
        **{"machine": {"device": "cpu", "threads": 1, "bf16_fast": False}, "cells": cells, "runs": runs},
    }
    folder.mkdir(parents=True)
    write_json(folder / "experiment.json", plan)
    for run in runs:
        _write(RunFolder(folder / "runs" / run["folder"]), run)
    return folder


def _write(folder: RunFolder, run: dict) -> None:
    noise = random.Random(run["id"])
    final = 2.4 + 0.005 * int(run["cell"].split()[1]) + noise.gauss(0, 0.01)
    rows = []
    for i in range(1, POINTS + 1):
        loss = final + 3.5 * math.exp(-6 * i / POINTS) + noise.gauss(0, 0.005)
        rows.append({"step": 10 * i, "tokens": 10240 * i, "seconds": 0.5 * i, "train_loss": loss, "lr": 0.02, "val_loss": loss})
    folder.path.mkdir(parents=True)
    write_json(folder.run_file, {"format": 1, "id": run["id"], "seed": run["seed"], "recipe": {}})
    write_atomically(folder.metrics_file, "".join(map(format_row, rows)))
    losses = [row["val_loss"] for row in rows]
    ended = {"id": run["id"], "status": "finished", "rows": POINTS, "val_loss": losses[-1], "best_val_loss": min(losses)}
    write_json(folder.result_file, ended | {"steps": 10 * POINTS, "tokens": 10240 * POINTS, "seconds": 0.5 * POINTS})


def measure(folder: Path) -> dict:
    seconds, cpu = [], []
    for _ in range(REPEATS):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "muonlab", "report", str(folder)], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    files = {path.name: path.stat().st_size for path in sorted((folder / "report").iterdir())}
    return {"seconds": min(seconds), "cpu_seconds": min(cpu), "page_bytes": files["report.html"], "files": files}


def main() -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            f"{arms} arms x {seeds} seeds": measure(sweep(Path(folder) / f"s{arms}", arms, seeds))
            for arms, seeds in ((20, 10), (4, 50))
        }
    cores = len(os.sched_getaffinity(0))
    about = {"cores": cores, "load_before": load, "python": platform.python_version(), "points_a_run": POINTS, "repeats": REPEATS}
    RESULTS.write_text(json.dumps({"about": about, "reports": found}, indent=1) + "\n")
    for name, figures in found.items():
        print(f"{name}: {figures['seconds']:.1f} s ({figures['cpu_seconds']:.1f} s of CPU), {figures['page_bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
