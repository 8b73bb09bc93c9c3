"""What was measured, as one dict and as words: times, ratios, shares of the device's peak, and what to choose."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from muonlab.optim.bench.measure import Bench, about, bandwidth, fitting, free, interleaved, matmul_peak
from muonlab.optim.bench.rivals import BASE, DROP_IN, FAST, FLOOR, Rival, newton_schulz, with_kernels
from muonlab.optim.bench.shapes import ALONE, SETS, SMOKE_ALONE, Shape, entries, matrices, standard_flops
from muonlab.optim.polar import orthogonalizer

# What our step is to take of torch.optim.Muon's time: (set, row) -> ratio, on a CPU (two AVX512-bf16 cores) and on a GPU (an H100).
BARS = {
    "cpu": {
        ("gpt2-small", FAST): 0.66,
        ("gpt2-small", DROP_IN): 0.88,
        ("tiny", FAST): 0.72,
        ("tiny", DROP_IN): 0.85,
        ("many-small", FAST): 0.15,
        ("many-small", DROP_IN): 0.17,
    },
    "cuda": {("gpt2-small", FAST): 0.5, ("many-small", FAST): 0.35},
}
PEAK_BAR = ("llama-8b", 0.55)  # share of the GPU's matmul peak, on the FLOPs of the standard form
ALONE_BARS = {"aspect 4": 1.5, "square": 1.3}  # times as fast as the standard form compiled

# What momentum, decay and update have to move of a matrix entry, in float32 with products in bfloat16: gradient 4, momentum 8,
# what is orthogonalized 2, its result 2, weight 8.
ELEMENTWISE_BYTES = 24


@dataclass(frozen=True)
class Asked:
    sets: Sequence[str]
    device: str
    rounds: int = 15
    tiny: bool = False
    compiled: bool = False
    seconds: float = math.inf  # no set and no compiled row is begun after them


def run(asked: Asked, everybody: Sequence[Rival], write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measures; `write` gets the figures after each set, and so has what there is when it ends early.

    The plain rows of all sets come first, then orthogonalization alone, then what has to be compiled, set by set: that takes long.
    """
    ends = time.monotonic() + asked.seconds
    found: dict[str, Any] = about(asked.device) | {
        "rounds": asked.rounds,
        "peak_gflops": matmul_peak(asked.device, asked.tiny) / 1e9,
        "bandwidth_gbs": bandwidth(asked.device, asked.tiny) / 1e9,
        "sets": {},
        "orthogonalization": {},
        "left_out": {},
    }
    plain = [r for r in everybody if not r.compiles]
    for name in asked.sets:
        why = fitting(SETS[name], asked.device) or ("" if time.monotonic() < ends else "no time was left")
        if why:
            found["left_out"][name] = why
        else:
            _measure(name, plain, asked, found)
        write(found)
    if everybody[0].name == BASE and len(everybody) > 6:  # not where only some rows are asked for
        _alone(asked, found)
        write(found)
    slow = [r for r in everybody if r.compiles]
    if not asked.compiled:
        found["left_out"] |= {r.name: "compiling takes minutes: ask for it with --compiled" for r in slow}
    for name in found["sets"] if asked.compiled else []:
        for rival in slow:
            if time.monotonic() < ends:
                _measure(name, [everybody[0], rival], asked, found)
            else:
                found["left_out"][f"{name}: {rival.name}"] = "no time was left"
            write(found)
    write(found)
    return found


def _measure(name: str, rivals: Sequence[Rival], asked: Asked, found: dict[str, Any]) -> None:
    """Puts rows into found["sets"][name]: ratios are to the first of these rivals, in the same rounds."""
    shapes, first = SETS[name], rivals[0].name
    times, left_out = Bench(shapes, asked.device).measure(rivals, asked.rounds)
    found["left_out"] |= {f"{name}: {who}": why for who, why in left_out.items()}
    free(asked.device)
    rows = found["sets"].setdefault(name, {})
    flops = sum(standard_flops(m, n) for m, n in matrices(shapes))
    for who, row in times.items():
        if who in rows:  # measured before, in more company
            continue
        seconds = row["ms"] / 1e3
        rows[who] = row | {"ratio": row["ms"] / times[first]["ms"] if first in times else None}
        own = _own_flops(who, shapes)
        if own:
            rows[who] |= {"gflop": own / 1e9, "share_of_peak": own / seconds / found["peak_gflops"] / 1e9}
            rows[who]["standard_share_of_peak"] = flops / seconds / found["peak_gflops"] / 1e9
        if who == FLOOR:
            moved = ELEMENTWISE_BYTES * entries(shapes)
            rows[who] |= {"elementwise_bytes": moved, "share_of_bandwidth": moved / seconds / found["bandwidth_gbs"] / 1e9}


def _own_flops(who: str, shapes: Sequence[Shape]) -> int | None:
    """FLOPs of the orthogonalizations, where the method is known."""
    if who.startswith(FAST):
        return sum(orthogonalizer("fast").flops(m, n) for m, n in matrices(shapes))
    if who == DROP_IN:
        return sum(orthogonalizer("keller5").flops(m, n) for m, n in matrices(shapes))
    known = (BASE, f"{BASE}, compiled", "KellerJordan")
    return sum(standard_flops(m, n) for m, n in matrices(shapes)) if who in known else None


def _alone(asked: Asked, found: dict[str, Any]) -> None:
    """Orthogonalization of a stack, in bfloat16: ms, and how many times as fast as the standard form each is (as the compiled one,
    where that was asked for)."""
    for name, shape in (SMOKE_ALONE if asked.tiny else ALONE).items():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(asked.device)
        fast, keller = (orthogonalizer(method, dtype=torch.bfloat16) for method in ("fast", "keller5"))
        ways: dict[str, Callable[[], Any]] = {"standard": lambda x=x: newton_schulz(x)}
        if asked.compiled:
            compiled = torch.compile(newton_schulz)
            ways["standard, compiled"] = lambda x=x, compiled=compiled: compiled(x)
        ways |= {"fast": lambda x=x, fast=fast: fast(x), "keller5": lambda x=x, keller=keller: keller(x)}
        ways["fast, kernel"] = lambda x=x, fast=fast: with_kernels(lambda: fast(x))()
        steps: dict[str, Callable[[], Any]] = {}
        for way, step in ways.items():
            try:
                step()
                steps[way] = step
            except Exception as error:
                found["left_out"][f"orthogonalization: {way}"] = f"{type(error).__name__}: {str(error)[:200]}"
        # a CPU takes seconds for one
        times = interleaved(steps, asked.rounds if asked.device.startswith("cuda") else min(asked.rounds, 5), asked.device)
        base = times.get("standard, compiled", times["standard"])["ms"]
        found["orthogonalization"][f"{name}, {'×'.join(map(str, shape))}"] = {
            way: row | {"times_as_fast": base / row["ms"]} for way, row in times.items()
        }
        free(asked.device)


def text(found: dict[str, Any], everybody: Sequence[Rival]) -> str:
    """The figures as a table for each set, what was left out, the bars, and what to choose."""
    kind = torch.device(found["device"]).type
    lines = [
        f"torch {found['torch']}, {found['hardware']}, {found['threads']} threads: products {found['peak_gflops']:.0f} GFLOP/s, "
        f"copies {found['bandwidth_gbs']:.0f} GB/s"
    ]
    for name, rows in found["sets"].items():
        lines += ["", f"{name:28} {'ms':>10} {'ratio':>7} {'host ms':>9}  of peak"]
        for who, row in rows.items():
            ratio = f"{row['ratio']:7.3f}" if row["ratio"] is not None else f"{'':7}"
            share = f"{row['share_of_peak']:8.0%}" if "share_of_peak" in row else ""
            share = f"{row['share_of_bandwidth']:8.0%} of the bandwidth" if "share_of_bandwidth" in row else share
            bar = BARS.get(kind, {}).get((name, who))
            lines.append(f"  {who:26} {row['ms']:10.2f} {ratio} {row['host_ms']:9.2f} {share}{f'  bar {bar}' if bar else ''}")
    for name, rows in found["orthogonalization"].items():
        lines += ["", f"orthogonalization, {name}: {'ms':>9}  times as fast"]
        lines += [f"  {who:26} {row['ms']:10.2f} {row['times_as_fast']:7.2f}" for who, row in rows.items()]
    if found["left_out"]:
        lines += ["", "left out:", *[f"  {who}: {why}" for who, why in found["left_out"].items()]]
    chosen = ["", choice(found, everybody)] if everybody[0].name == BASE else []
    return "\n".join([*lines, *verdicts(found), *chosen])


def verdicts(found: dict[str, Any]) -> list[str]:
    """What a GPU was to reach beside the ratios."""
    lines = []
    row = found["sets"].get(PEAK_BAR[0], {}).get(FAST, {})
    if "standard_share_of_peak" in row:
        share = row["standard_share_of_peak"]
        lines += ["", f"{PEAK_BAR[0]}: {share:.0%} of the peak, on the FLOPs that the standard form needs (bar {PEAK_BAR[1]:.0%})"]
    for name, rows in found["orthogonalization"].items():
        best = max((row["times_as_fast"], who) for who, row in rows.items())
        bar = next(bar for key, bar in ALONE_BARS.items() if name.startswith(key))
        against = "compiled" if "standard, compiled" in rows else "plain"
        lines.append(f"{name}: {best[1]} is {best[0]:.2f} times as fast as the standard form, {against} (aim on a GPU {bar})")
    return lines


def choice(found: dict[str, Any], everybody: Sequence[Rival]) -> str:
    """The way of ours that takes the least of the base's time, in the geometric mean over the sets; the first, and so the simplest,
    of those within 3 %."""
    options: list[tuple[float, Rival]] = []
    for rival in everybody:
        ratios = [rows[rival.name]["ratio"] for rows in found["sets"].values() if rows.get(rival.name, {}).get("ratio")]
        if rival.choice and ratios and len(ratios) == len(found["sets"]):
            options.append((math.exp(sum(map(math.log, ratios)) / len(ratios)), rival))
    if not options:
        return "Nothing to choose from: no way of ours was measured on every set."
    least = min(ratio for ratio, _ in options)
    ratio, best = next(option for option in options if option[0] <= 1.03 * least)
    return f"Choose: {best.choice}\n        {ratio:.2f} of torch.optim.Muon's time here"
