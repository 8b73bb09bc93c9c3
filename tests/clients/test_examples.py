"""The files in examples/ run as they stand, and train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"hf_trainer": ["accelerate"], "lightning_module": ["lightning"], "accelerate_loop": ["accelerate"], "lora": ["peft"]}


@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_it_runs_and_the_loss_falls(example, tmp_path):
    for package in ("transformers", *NEEDS.get(example, [])):
        pytest.importorskip(package, reason=f"{package} is not installed: it is in the extra 'clients'")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{example}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if re.match(r"(step \d+: )?loss ", line)]
    losses = [float(number) for number in re.findall(r"\d+\.\d{3}", " ".join(told))]
    assert len(losses) == 2, done.stdout
    assert losses[1] < 0.5 * losses[0]
