"""Part 5, sweep: the quickstart experiment with 1, 4 and 8 runs at once on one GPU: runs per hour, and which is fastest.

python benchmarks/gpu_parts/sweep.py --out FILE [--tiny] [--seconds N]

Each number of workers gets three runs a worker (three arms, as many seeds as workers), so that all workers have work to the end.
Timed is from the first run's first step to the last run's result: starting the workers is paid once a sweep and left out. Peak
memory is what the whole device has taken beyond what was taken before, looked at every 0.1 s.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from part import ROOT, Part, main

WORKERS, TINY_WORKERS = (1, 4, 8), (1, 2)
FIRST_SEED = 1000  # seeds that no experiment has used for tuning
STEPS = 150
SETTINGS = {"train.eval_every": 50, "train.checkpoint_every": 75}
TINY = {"train.steps": 4, "train.eval_every": 2, "train.eval_tokens": 512, "model.layers": 1, "model.width": 32, "train.batch": 2,
        "data.source": "text"}  # fmt: skip


def sweep(part: Part) -> None:
    for workers in TINY_WORKERS if part.tiny else WORKERS:
        part.case(f"{workers} at once", lambda workers=workers: measured(part, workers), needs_seconds=0 if part.tiny else 15)
        found = {name: row for name, row in part.figures["cases"].items() if row["status"] == "ok"}
        words = [f"{name}: {row['runs_per_hour']:,.0f} runs/h" for name, row in found.items()]
        if len(found) > 1:
            best = max(found, key=lambda name: found[name]["runs_per_hour"])
            part.figures["fastest"] = found[best]["workers"]
            words.append(f"fastest {best} (lab/plan/machine.py's GPU_RUNS)")
        part.say(", ".join(words))


def measured(part: Part, workers: int) -> dict[str, Any]:
    from muonlab.lab.plan.loading import load_experiment
    from muonlab.lab.run.runner import sweep as run_sweep

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (ROOT / "experiments/quickstart.toml").read_text()
        text = re.sub(r"^seeds = .*$", f"seeds = {list(range(FIRST_SEED, FIRST_SEED + workers))}", text, flags=re.M)
        text = re.sub(r"^tuned_by = .*$", "", text, flags=re.M)
        (folder / "experiments").mkdir()
        (folder / "recipes").mkdir()
        (folder / "experiments/quickstart.toml").write_text(text)
        (folder / "recipes/quickstart.toml").write_text((ROOT / "recipes/quickstart.toml").read_text())
        settings = TINY | {"data.files": f'["{_text(folder)}"]'} if part.tiny else {"train.steps": STEPS, **SETTINGS}
        experiment = load_experiment(folder / "experiments/quickstart.toml", [f"{key}={value}" for key, value in settings.items()])
        start = time.perf_counter()
        with Memory(part.device) as memory:
            run_sweep(experiment, folder / "out", workers=workers, device=part.device)
        wall = time.perf_counter() - start
        began = [path.stat().st_mtime for path in folder.glob("out/runs/*/run.json")]
        ended = [path.stat().st_mtime for path in folder.glob("out/runs/*/result.json")]
    if len(ended) != 3 * workers:
        raise RuntimeError(f"expected {3 * workers} runs, {len(ended)} ended")
    seconds = max(ended) - min(began)
    return {"workers": workers, "runs": len(ended), "run_seconds": seconds, "wall_seconds": wall,
            "runs_per_hour": 3600 * len(ended) / seconds, "peak_memory_gib": memory.peak}  # fmt: skip


def _text(folder: Path) -> Path:
    """A short text: reading the standard library takes longer than the tiny runs."""
    (folder / "text.txt").write_text("a small text for small models\n" * 1000)
    return folder / "text.txt"


class Memory:
    """The most GiB that the device has given away meanwhile; None on a CPU."""

    def __init__(self, device: str) -> None:
        self.device, self.peak, self._over = device, None if device == "cpu" else 0.0, threading.Event()

    def __enter__(self) -> Memory:
        if self.device == "cuda":
            self._before = self._free()
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.device == "cuda":
            self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak or 0.0, (self._before - self._free()) / 2**30)

    def _free(self) -> int:
        import torch

        return torch.cuda.mem_get_info()[0]


if __name__ == "__main__":
    main("sweep", sweep, needs=("numpy", "pydantic", "safetensors", "tomli_w", "scipy", "statsmodels"))
