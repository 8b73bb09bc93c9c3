"""Kills a 60-step run at 20 random moments (SIGKILL), resumes it, and compares with the run that nobody killed.

    python benchmarks/kill_test.py [--kills 20] [--seed 0] [--out benchmarks/results/kill_test.json]

Equal means: the same SHA-256 of the final weights, and every logged training and validation loss the same to the last bit.
A moment is a random delay of up to 0.1 s after a random step, so that it falls into steps, evaluations and checkpoints alike; step
0 stands for the start-up, with a delay of up to 3 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from muonlab.train.provenance import cpu_name
from muonlab.train.run_folder import RunFolder

RECIPE = """
[model]
layers = 2
width = 64
head_width = 32
context = 64
[optimizer]
name = "normuon"
[train]
steps = 60
batch = 8
precision = "float32"
eval_every = 10
eval_tokens = 2048
log_every = 1
checkpoint_every = 5
"""


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "muonlab", "train", str(recipe), "--out", str(out), "--threads", "1", "--device", "cpu", *more]


def evidence(out: Path) -> tuple[str, list[tuple]]:
    rows = [(row["step"], row.get("train_loss"), row.get("val_loss")) for row in RunFolder(out).rows()]
    result = RunFolder(out).result()
    assert result is not None
    return result["weights_sha256"], rows


def last_step(out: Path) -> int:
    rows = RunFolder(out).rows()
    return rows[-1]["step"] if rows else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill_test.json"))
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(RECIPE)
        subprocess.run(command(recipe, Path(folder) / "whole"), check=True, capture_output=True)
        whole = evidence(Path(folder) / "whole")
        for i in range(arguments.kills):
            out = Path(folder) / f"killed{i}"
            process = subprocess.Popen(command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            step = moments.randrange(60)
            while process.poll() is None and last_step(out) < step:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.1 if step else 3.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_after = last_step(out)
            finished = RunFolder(out).result_file.exists()
            done = subprocess.run(command(recipe, out, "--resume"), capture_output=True, text=True)
            equal = done.returncode == 0 and evidence(out) == whole
            trials.append({"killed_after_step": killed_after, "finished_before": finished, "equal": equal})
            print(f"{i + 1}/{arguments.kills}: killed after step {killed_after}, equal: {equal}", flush=True)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "equal": sum(trial["equal"] for trial in trials),
        "of": len(trials),
        "trials": trials,
    }
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{figures['equal']} of {figures['of']} equal; written to {arguments.out}")
    sys.exit(figures["equal"] != figures["of"])


if __name__ == "__main__":
    main()
