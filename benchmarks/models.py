"""Tokens per second of forward, loss and backward for each model family, against transformers' GPT-2 and Mamba-2 of equal size;
and how memory grows with length.

    python benchmarks/models.py [--sizes small 124m] [--rounds 11] [--no-memory] [--out benchmarks/results/models_cpu.json]

Needs transformers. Equal size: layers, width, heads and vocabulary (a row says its parameters); no dropout, batch 1, length 1024,
one dtype. A model and its peers take turns (A B A B ...), every other round backwards; a ratio is the median over rounds of peer's
time / ours, with its quartiles, since both of a round meet the same load. Where other programs take the processor away, the ratio
of processor times with --threads 1 says more than the clock's. Bars on the CPU: gpt >= 1, mamba >= 2, memory linear in length.

Memory: each (family, length) in a process of its own: the peak of resident memory (Linux) or of CUDA's allocator in a forward and
backward pass, beyond weights and gradients.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.models.family import Model, families
from muonlab.optim.precision import bf16_is_fast
from muonlab.train.provenance import cpu_name

LENGTH, LENGTHS = 1024, (512, 1024, 2048, 4096)
SIZES = {
    "bytes": {"layers": 6, "width": 384, "vocab_size": 257},
    "small": {"layers": 6, "width": 384, "vocab_size": 50304},
    "124m": {"layers": 12, "width": 768, "vocab_size": 50304},
}
HEAD_WIDTH = 64
PEERS = {"gpt": ["GPT-2"], "gpt, tied": ["GPT-2, tied"], "mamba": ["Mamba2, chunks of 256", "Mamba2, chunks of 64"]}


def build(name: str, size: dict[str, int], context: int) -> nn.Module:
    """One of our families, with an extra after a comma, or transformers' model of the same size."""
    torch.manual_seed(0)
    if name.startswith("GPT-2"):
        return gpt2(size, context, tied="tied" in name)
    family, _, extra = name.partition(", ")
    if family in ("mamba", "Mamba2"):  # a block has half the products of attention and MLP together
        size = size | {"layers": 2 * size["layers"]}
    if family == "Mamba2":
        return mamba2(size, chunk=int(extra.rpartition(" ")[2]))
    config = families()[family]
    wanted = size | {"head_width": HEAD_WIDTH, "context": context} | ({"tied": True} if extra == "tied" else {})
    model = config(**{key: value for key, value in wanted.items() if key in config.model_fields}).build(size["vocab_size"])
    model.initialize(lambda name: torch.Generator().manual_seed(0))
    return model


def gpt2(size: dict[str, int], context: int, tied: bool) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            **{"vocab_size": size["vocab_size"], "n_positions": context, "n_embd": size["width"], "n_layer": size["layers"]},
            **{"n_head": size["width"] // HEAD_WIDTH, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            **{"use_cache": False, "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None},
        )
    )


def mamba2(size: dict[str, int], chunk: int) -> nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            **{"vocab_size": size["vocab_size"], "hidden_size": size["width"], "num_hidden_layers": size["layers"]},
            **{"head_dim": 64, "num_heads": 2 * size["width"] // 64, "state_size": 128, "n_groups": 1, "chunk_size": chunk},
            **{"tie_word_embeddings": True, "use_cache": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        )
    )


def step(model: nn.Module, tokens: Tensor) -> None:  # tokens: (B, T + 1)
    """Forward, loss and backward, each as its library trains: ours by `loss`, theirs by cross-entropy of their logits."""
    if isinstance(model, Model):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        return
    logits = model(tokens[:, :-1]).logits.float()
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def speed(names: list[str], size: dict[str, int], rounds: int, device: str, bf16: bool) -> dict[str, dict]:
    """name -> a row. The first name is ours."""
    models = {name: build(name, size, LENGTH).to(device) for name in names}
    tokens = torch.randint(size["vocab_size"], (1, LENGTH + 1), generator=torch.Generator().manual_seed(0)).to(device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}  # by the clock, and of the processor
    for i in range(rounds + 1):  # the first round warms up
        for name in names if i % 2 else reversed(names):
            models[name].zero_grad(set_to_none=True)
            gc.collect()
            seconds[name].append(timed(lambda model=models[name]: step(model, tokens), device, bf16))
    rows = {}
    for name in names:
        parameters = sum(p.numel() for p in models[name].parameters())
        clock, cpu = (list(kind) for kind in zip(*seconds[name][1:], strict=True))
        rows[name] = {"parameters": parameters, "tokens_per_second": LENGTH / statistics.median(clock)}
        rows[name] |= {"seconds": statistics.median(clock), "cpu_seconds": statistics.median(cpu)}
        if name == names[0]:
            first = clock, cpu
            continue
        for kind, theirs, ours in zip(("clock", "cpu"), (clock, cpu), first, strict=True):
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            rows[name][f"{kind}_ratio"] = statistics.quantiles(ratios, n=4)
    return rows


def groups() -> list[list[str]]:
    """What takes turns: each of our models with its peers, and those without a peer with gpt."""
    found = [[name, *peers] for name, peers in PEERS.items() if name.partition(",")[0] in families()]
    without = [name for name in families() if name not in PEERS]
    return [*found, ["gpt", *without]] if without else found


def show(rows: dict[str, dict]) -> None:
    first = next(iter(rows))
    for name, row in rows.items():
        text = f"  {name:22} {row['parameters'] / 1e6:6.1f}M {row['tokens_per_second']:9.0f} tokens/s"
        if name != first:
            low, median, high = row["clock_ratio"]
            text += (
                f"   {median:.2f} of the time of {first} ({low:.2f} to {high:.2f}); of its processor time {row['cpu_ratio'][1]:.2f}"
            )
        print(text, flush=True)


def timed(run: Callable[[], None], device: str, bf16: bool) -> tuple[float, float]:
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        wait(device)
        start, cpu = time.perf_counter(), time.process_time()
        run()
        wait(device)
        return time.perf_counter() - start, time.process_time() - cpu


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(name: str, length: int, device: str) -> int:
    """Bytes that a forward and backward pass needs beyond weights and gradients."""
    model = build(name, SIZES["bytes"], max(LENGTHS)).to(device)
    tokens = torch.zeros(1, length + 1, dtype=torch.int64, device=device)
    step(model, tokens[:, :65])  # gradients, and the libraries' own memory
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, tokens)
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step(model, tokens)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory(device: str) -> dict[str, dict]:
    """family -> MiB at each length, and the exponent p of memory ~ length^p between neighbouring lengths."""
    rows = {}
    for name in families():
        found = []
        for length in LENGTHS:
            command = [sys.executable, __file__, "--device", device, "--one", name, str(length)]
            found.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
        exponents = [math.log2(b / a) for a, b in itertools.pairwise(found)]
        rows[name] = {"mib": {n: b / 2**20 for n, b in zip(LENGTHS, found, strict=True)}, "exponents": exponents}
        shown = "  ".join(f"{n}: {b / 2**20:.0f} MiB" for n, b in zip(LENGTHS, found, strict=True))
        print(f"  {name:10} {shown}   exponents {' '.join(f'{p:.2f}' for p in exponents)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "124m"])
    parser.add_argument("--only", nargs="+", help="names of our models, as gpt or 'gpt, tied'")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "LENGTH"), help="used by the script itself")
    arguments = parser.parse_args()
    if arguments.one:
        print(peak_memory(arguments.one[0], int(arguments.one[1]), arguments.device))
        return
    import transformers

    transformers.logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    report = {
        "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "transformers": transformers.__version__,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu_name(), "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "load_before": os.getloadavg()[0],
        "length": LENGTH, "batch": 1, "rounds": arguments.rounds, "speed": {},
    }  # fmt: skip
    for size in arguments.sizes:
        for precision in ("float32", "bf16") if bf16_is_fast(device) else ("float32",):
            print(f"{size}, {precision}")
            found = report["speed"][f"{size}, {precision}"] = {}
            for names in groups():
                if not arguments.only or names[0] in arguments.only:
                    rows = speed(names, SIZES[size], arguments.rounds, device, precision == "bf16")
                    found[", ".join(names)] = rows
                    show(rows)
    if not arguments.no_memory:
        print("peak memory beyond weights and gradients, byte vocabulary, by length")
        report["memory"] = memory(device)
    report["load_after"] = os.getloadavg()[0]
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
