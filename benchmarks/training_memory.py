"""Is `muonlab presets` right about memory? Its estimate beside the peak of resident memory of real training steps on a CPU.

Each case in a process of its own, twice: where the C library gives every block back to the system when it is freed, which is what
the tensors take and what is estimated (`measured`), and as `muonlab train` runs, which keeps freed memory (`as trained`): quicker,
and larger by what the C library's heap then loses to gaps. Linux only.

python benchmarks/training_memory.py [--out benchmarks/results/training_memory_cpu.json] [--only gpt]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from muonlab.train.footprint import footprints
from muonlab.train.memory import keep_freed_memory
from muonlab.train.recipe import Recipe
from muonlab.train.trainer import Machine, Trainer

# name -> [model] table, sequences, precision. Large enough that the libraries' own memory is small beside it.
CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "gpt": ({"layers": 3, "width": 384, "head_width": 64, "context": 256}, 8, "float32"),
    "gpt bf16": ({"layers": 3, "width": 384, "head_width": 64, "context": 256}, 6, "bf16"),
    "gpt wide": ({"layers": 2, "width": 1024, "head_width": 64, "context": 128}, 2, "float32"),
    "gpt windows": ({"layers": 2, "width": 384, "head_width": 64, "context": 512, "window_pattern": "LS"}, 4, "float32"),
    "ngpt": ({"family": "ngpt", "layers": 3, "width": 384, "head_width": 64, "context": 256}, 8, "float32"),
    "mamba": ({"preset": "mamba-small", "vocab_size": 512, "context": 256}, 2, "float32"),
    "hybrid": ({"preset": "hybrid-small", "vocab_size": 512, "context": 256}, 2, "float32"),
}
OPTIMIZERS = ("adamw", "muon")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # larger blocks come from the system one by one


def status(key: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def recipe(model: dict[str, Any], optimizer: str, batch: int, corpus: Path) -> Recipe:
    train = {"batch": batch, "eval_tokens": 1024}
    data = {"source": "text", "files": [str(corpus)]}
    return Recipe.model_validate({"model": model, "data": data, "optimizer": {"name": optimizer}, "train": train})


def measure(case: str, optimizer: str, corpus: Path) -> dict[str, float]:
    model, batch, precision = CASES[case]
    corpus.write_text("".join(random.Random(0).choices("abcdefgh ", k=500_000)))
    machine = Machine("cpu", "bf16" if precision == "bf16" else "float32", len(os.sched_getaffinity(0)), bf16_fast=False)
    kept = "MALLOC_MMAP_THRESHOLD_" not in os.environ
    if kept:
        keep_freed_memory()
    small = {"layers": 1, "width": 64, "head_width": 32, "context": 32}
    warm = Trainer(recipe(small, optimizer, 2, corpus), 0, machine)  # the libraries' own memory comes with the first steps
    for _ in range(2):
        warm.train_step()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = recipe(model, optimizer, batch, corpus)
    trainer = Trainer(loaded, 0, machine)
    for _ in range(2):  # the first makes the state that the second finds
        trainer.train_step()
    measured = status("VmHWM") - before
    config = {optimizer: loaded.optimizer}
    (found,) = footprints(loaded.model, config, batch=batch, vocab_size=257, precision=precision).values()
    return {"measured_mib": measured / 2**20, **{f"{k}_mib": v / 2**20 for k, v in vars(found).items()},
            "estimated_mib": found.total / 2**20, "ratio": found.total / measured}  # fmt: skip


def one(case: str, optimizer: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", case, optimizer]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="cases whose name begins so")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "OPTIMIZER"), help="used by the script itself")
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(*arguments.one, Path(folder) / "corpus.txt")))
        return
    rows = {}
    for case in CASES:
        if not case.startswith(arguments.only or ""):
            continue
        for optimizer in OPTIMIZERS:
            found = one(case, optimizer, GIVE_BACK)
            found["as_trained_mib"] = one(case, optimizer, {})["measured_mib"]
            rows[f"{case}, {optimizer}"] = found
            print(f"{case:12} {optimizer:6} estimated {found['estimated_mib']:7.1f} MiB, measured {found['measured_mib']:7.1f} "
                  f"({found['ratio'] - 1:+.1%}), as trained {found['as_trained_mib']:7.1f}")  # fmt: skip
            if arguments.out:
                arguments.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
