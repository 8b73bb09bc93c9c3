"""What a Muon step needs beside weights, gradients and state, in units of the largest stack: the bar is 2.5.

Each set of benchmarks/step.py in a process of its own; the peak of resident memory (Linux) or of CUDA's allocator.

python benchmarks/memory.py [--out benchmarks/results/memory.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from step import SETS
from torch import nn

from muonlab.optim import Optimizer
from muonlab.optim.variants import variant


def status(key: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure(name: str, method: str) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warm = [
        nn.Parameter(torch.randn(64, 128, device=device)) for _ in range(3)
    ]  # the libraries' own memory comes with the first step
    for p in warm:
        p.grad = torch.randn_like(p)
    Optimizer(warm, variant(method).rule(), lr=0.02, weight_decay=0.1).step()
    params = [nn.Parameter(torch.randn(shape, device=device)) for shape in SETS[name]]
    for p in params:
        p.grad = torch.randn_like(p)
    largest = max(count * m * n * 4 for (m, n), count in Counter(SETS[name]).items())
    state = sum(4 * p.numel() for p in params)
    optimizer = Optimizer(params, variant(method).rule(), lr=0.02, weight_decay=0.1)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(3):
        optimizer.step()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")
    held = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
    return {"extra_mib": (peak - before - held) / 2**20, "stacks": (peak - before - held) / largest, "state": held / state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("SET", "OPTIMIZER"), help="used by the script itself")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows = {}
    for name in SETS:
        for method in ("muon", "normuon"):
            command = [sys.executable, __file__, "--one", name, method]
            found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            rows[f"{name}, {method}"] = found
            print(
                f"{name:11} {method:8} extra {found['extra_mib']:7.1f} MiB = {found['stacks']:.2f} largest stacks, "
                f"state {found['state']:.3f} momenta"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
