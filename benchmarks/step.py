"""How long one optimizer step takes, against torch.optim.Muon and peers: interleaved rounds (A B C A B C …), medians.

python benchmarks/step.py [--variants] [--sets gpt2-small tiny many-small] [--rounds 15] [--only NAME ...] [--out FILE]

With --variants: every optimizer of this package, against "muon", in place of the peers. Peers that are not installed are left
out, and the output says so: pip install pytorch_optimizer heavyball
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.polar import orthogonalizer
from muonlab.optim.variants import variant, variants

PATTERN = [(3, 1), (1, 1), (4, 1), (1, 4)]  # fused QKV, projection, MLP up, MLP down: in widths
SETS = {
    "gpt2-small": [(m * 768, n * 768) for m, n in PATTERN] * 12,
    "tiny": [(m * 256, n * 256) for m, n in PATTERN] * 6,
    "many-small": [(64, 64)] * 100 + [(64, 256)] * 100,
}
BARS = {"gpt2-small": (0.66, 0.88), "tiny": (0.72, 0.85), "many-small": (0.15, 0.17)}  # fast, muonlab.Muon

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def candidates() -> dict[str, Make]:
    """name -> a function that makes the optimizer; the first one is what the others are compared with."""
    found: dict[str, Make] = {
        "torch.optim.Muon": lambda p: torch.optim.Muon(p, lr=0.02),
        "muonlab fast": lambda p: Optimizer(p, variant("muon").rule(orthogonalizer="fast"), lr=0.02, weight_decay=0.1),
        "muonlab.Muon": lambda p: muonlab.Muon(p, lr=0.02),
        "torch AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    }
    peers = {
        "pytorch_optimizer Muon": ("pytorch_optimizer", lambda m, p: m.Muon([{"params": p, "use_muon": True}], lr=0.02)),
        "heavyball Muon": ("heavyball", lambda m, p: m.Muon(p, lr=0.02)),
    }
    for name, (module, make) in peers.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        found[name] = lambda p, make=make, loaded=loaded: make(loaded, p)
    return found


def own_variants() -> dict[str, Make]:
    """Every optimizer here, with its defaults; "muon" first."""
    names = ["muon", *(name for name in variants() if name != "muon")]
    return {name: lambda p, name=name: Optimizer(p, variant(name).rule(), lr=1e-3, weight_decay=0.1) for name in names}


def measure(shapes: list[tuple[int, int]], makers: dict[str, Make], rounds: int, device: str) -> dict[str, list[float]]:
    """name -> seconds of each round. All of them step the same gradients; each has weights of its own."""
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(m, n, generator=generator).to(device) for m, n in shapes]
    steppers = {}
    for name, make in makers.items():
        params = [nn.Parameter(g / g.shape[1]) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        steppers[name] = make(params)
        steppers[name].step()  # state and kernels are made in the first step
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    gc.disable()
    for _ in range(rounds):
        for name, optimizer in steppers.items():
            for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                p.grad = g  # HeavyBall takes gradients away
            _wait(device)
            start = time.perf_counter()
            optimizer.step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """FLOP/s of this machine's own matrix product in the dtype that the iteration takes: the best of some."""
    from muonlab.optim.precision import fast_matmul_dtype

    x: Tensor = torch.randn(4, 1024, 1024, device=device)
    x = x.to(fast_matmul_dtype(x))
    best = 0.0
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        torch.bmm(x, x)
        _wait(device)
        best = max(best, 2 * x.shape[0] * 1024**3 / (time.perf_counter() - start))
    return best


def counted_flops(name: str, shapes: list[tuple[int, int]]) -> float | None:
    """FLOPs of the orthogonalizations, where the method is known: ours as it counts itself, torch's in the standard form."""
    if name == "muonlab fast":
        return sum(orthogonalizer("fast").flops(m, n) for m, n in shapes)
    if name == "muonlab.Muon":
        return sum(orthogonalizer("keller5").flops(m, n) for m, n in shapes)
    if name == "torch.optim.Muon":
        return sum(20 * min(s) ** 2 * max(s) + 10 * min(s) ** 3 for s in shapes)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--variants", action="store_true", help="compare the optimizers of this package")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", help="names of optimizers, besides torch.optim.Muon")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = own_variants() if arguments.variants else candidates()
    first = next(iter(found))
    makers = {k: v for k, v in found.items() if not arguments.only or k in (first, *arguments.only)}
    flops_per_second = peak(arguments.device)
    chip = torch.cuda.get_device_name() if arguments.device == "cuda" else _cpu_name()
    print(f"torch {torch.__version__}, {chip}, {torch.get_num_threads()} threads, matmul peak {flops_per_second / 1e9:.0f} GFLOP/s")
    report = {
        "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "hardware": chip,
        "threads": torch.get_num_threads(), "peak_gflops": flops_per_second / 1e9, "rounds": arguments.rounds, "sets": {},
    }  # fmt: skip
    for name in arguments.sets:
        seconds = measure(SETS[name], makers, arguments.rounds, arguments.device)
        base = statistics.median(seconds[first])
        print(f"\n{name}" + ("" if arguments.variants else f": bars {BARS[name][0]} (fast), {BARS[name][1]} (muonlab.Muon)"))
        rows = {}
        for who, times in seconds.items():
            median, flops = statistics.median(times), counted_flops(who, SETS[name])
            share = flops / median / flops_per_second if flops else None
            rows[who] = {"ms": median * 1e3, "ratio": median / base, "gflop": flops and flops / 1e9, "share_of_peak": share}
            shown = f"{flops / 1e9:8.1f} GFLOP  {share:4.0%} of peak" if flops and share else ""
            print(f"  {who:24} {median * 1e3:9.2f} ms   {median / base:5.3f}  {shown}")
        report["sets"][name] = rows
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
