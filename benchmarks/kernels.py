"""Whether `muonlab.optim.kernels.enable()` pays on this GPU: the Triton kernel against torch's products, interleaved, medians.

python benchmarks/kernels.py [--sizes 256 512 1024 2048 4096] [--batch 4] [--dtype bfloat16] [--rounds 20] [--out FILE]

For each m: R = XXᵀ of X (batch, m, 4m), S = bR + cR·R of R (batch, m, m), and the whole orthogonalization of X by `fast`. A ratio
below 1 is in favour of the kernel. Calls are eager, so the time to launch them counts. Before it is timed, each result is
compared with the plain one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from muonlab.optim import kernels
from muonlab.optim.newton_schulz import symmetric_product
from muonlab.optim.polar import orthogonalizer

WIDTH = 4  # X is (m, 4m), as a transformer's MLP weights are
ROUND_SECONDS = 0.01  # of calls between two looks at the clock: one small product is shorter than the clock is exact


def cases(m: int, batch: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """name -> the call, which takes the kernel or the plain path by the switch."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(batch, m, WIDTH * m, generator=generator, device="cuda") / (WIDTH * m) ** 0.5
    x = x.to(dtype)
    r = torch.bmm(x, x.mT)
    fast = orthogonalizer("fast", dtype=dtype)
    return {
        "XXᵀ": lambda: symmetric_product(x, x.mT),
        "bR + cR·R": lambda: symmetric_product(r, r, add=r, beta=-4.775, alpha=2.0315),
        "fast": lambda: fast(x),
    }


def seconds(call: Callable[[], Tensor], calls: int) -> float:
    """Of one call, on average over so many."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def compare(call: Callable[[], Tensor], rounds: int) -> dict[str, float]:
    """Plain, kernel, plain, kernel, …: medians in milliseconds, their ratio, and the relative difference of the results."""
    results = {}
    for on in (False, True):
        kernels.enable(on)
        results[on] = call().double()  # the first call compiles, and chooses a tile size
    difference = ((results[True] - results[False]).norm() / results[False].norm()).item()
    calls = max(1, round(ROUND_SECONDS / seconds(call, 3)))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for on in (False, True):
            kernels.enable(on)
            times[on].append(seconds(call, calls))
    kernels.enable(False)
    plain, kernel = (statistics.median(times[on]) for on in (False, True))
    return {"plain_ms": plain * 1e3, "kernel_ms": kernel * 1e3, "ratio": kernel / plain, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernels.py: torch finds no CUDA GPU, and on a CPU there is no kernel to time")
    if not kernels.available(torch.empty(0, device="cuda")):
        sys.exit("benchmarks/kernels.py: Triton is not installed: pip install 'muonlab[kernels]'")
    import triton  # pyright: ignore[reportMissingImports]

    report = {
        "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "triton": triton.__version__,
        "hardware": torch.cuda.get_device_name(), "dtype": arguments.dtype, "batch": arguments.batch, "rounds": arguments.rounds,
        "sizes": {},
    }  # fmt: skip
    print(
        f"torch {torch.__version__}, Triton {triton.__version__}, {report['hardware']}, {arguments.dtype}, batch {arguments.batch}"
    )
    for m in arguments.sizes:
        report["sizes"][m] = {}
        for name, call in cases(m, arguments.batch, getattr(torch, arguments.dtype)).items():
            row = report["sizes"][m][name] = compare(call, arguments.rounds)
            print(
                f"m = {m:4}  {name:10} plain {row['plain_ms']:9.3f} ms   kernel {row['kernel_ms']:9.3f} ms   "
                f"ratio {row['ratio']:5.3f}   difference {row['difference']:.1e}"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
