"""Part 3, train: tokens/s, model FLOPs utilization, memory against its estimate; transformers' GPT-2 of gpt-124m's shape beside it.

python benchmarks/gpu_parts/train.py --out FILE [--tiny] [--seconds N]

A step is that of `muonlab train`: bf16 autocast, forward, loss, backward, the recipe's clip and its optimizer, on random tokens.
MFU = tokens/s · FLOPs a token / peak. FLOPs a token: forward and backward as torch's FlopCounterMode counts them, attention whole
(not its causal half), the optimizer's left out. peak: the measured bf16 matrix product; mfu_datasheet: the card's data sheet, where
the card is known. With GPT-2: fused AdamW, and its loss compiled with the model, as ours. Bars, compiled, on an H100: gpt-124m's
mfu_datasheet >= 0.40; its forward and backward passes >= 1.3 x the tokens/s of GPT-2's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from part import ROOT, NotRun, Part, datasheet_peak, main, matmul_peak, seconds_of, wait

MFU_BAR, GPT2_BAR = 0.40, 1.3
VOCABULARY = 50304
MAMBA_130M = {"family": "mamba", "layers": 24, "width": 768, "vocab_size": 50257, "context": 1024}  # the paper's 130M
TINY = {
    "gpt": {"layers": 2, "width": 64, "head_width": 32, "context": 64, "vocab_size": 256},
    "ngpt": {"layers": 2, "width": 64, "head_width": 32, "context": 64, "vocab_size": 256},
    "mamba": {"layers": 2, "width": 64, "ssm_head_width": 32, "ssm_state": 32, "context": 64, "vocab_size": 256},
    "hybrid": {"layers": 2, "width": 64, "head_width": 32, "ssm_head_width": 32, "ssm_state": 32, "context": 64, "vocab_size": 256},
}
# Left out with --tiny: nothing is new in them.
SAME_WHEN_TINY = ("mamba-130m, eager", "ngpt-155m, eager", "hybrid-small, eager", "GPT-2, eager")
MEMORY = 0.8  # of the free memory: what an estimate may fill
WARM_UP, STEPS, LOOKS = 3, 20, 6  # steps: not counted, timed as one, timed in pieces
NEEDS, NEEDS_COMPILED = 12.0, 40.0  # seconds: no case is begun with less left; guesses


@dataclass(frozen=True)
class Case:
    recipe: str  # a file under recipes/ that says model and optimizer
    batch: int  # sequences at once, halved until they fit
    model: dict[str, Any] | None = None  # instead of the recipe's
    compiled: bool = True
    gpt2: bool = False  # transformers' model of the recipe's shape


CASES = {  # in order of worth; compiling takes a minute or so, hence the quick ones in between
    "gpt-124m": Case("gpt-124m", 32),
    "GPT-2": Case("gpt-124m", 32, gpt2=True),
    "gpt-124m, eager": Case("gpt-124m", 32, compiled=False),
    "ngpt-155m, eager": Case("ngpt-155m", 32, compiled=False),
    "mamba-130m, eager": Case("hybrid-small", 16, MAMBA_130M, compiled=False),
    "hybrid-small, eager": Case("hybrid-small", 16, compiled=False),
    "ngpt-155m": Case("ngpt-155m", 32),
    "mamba-130m": Case("hybrid-small", 16, MAMBA_130M),
    "hybrid-small": Case("hybrid-small", 16),
    "GPT-2, eager": Case("gpt-124m", 32, compiled=False, gpt2=True),
}


def train(part: Part) -> None:
    from muonlab.optim.precision import bf16_is_fast, pin

    pin(part.device, bf16_is_fast(part.device))
    peaks = {"peak_tflops": matmul_peak(part.device, 256 if part.tiny else 8192) / 1e12}
    if sheet := datasheet_peak(part.figures["hardware"]):
        peaks["datasheet_tflops"] = sheet / 1e12
    part.figures |= peaks
    for name, case in CASES.items():
        if part.tiny and name in SAME_WHEN_TINY:
            continue
        batch = part.figures["cases"].get("gpt-124m", {}).get("batch") if case.gpt2 else None  # the same batch for both
        chosen = replace(case, batch=2 if part.tiny else batch or case.batch)
        needs = 0.0 if part.tiny else NEEDS_COMPILED if case.compiled else NEEDS
        part.case(name, lambda chosen=chosen: measured(part, chosen), needs_seconds=needs)
        summary(part)


def measured(part: Part, case: Case) -> dict[str, Any]:
    """One model's figures. What does not fit into memory after all is tried once more with half the batch."""
    import torch

    try:
        return _measured(part, case)
    except torch.OutOfMemoryError:
        if case.batch == 1:
            raise
        print(f"out of memory with a batch of {case.batch}", flush=True)
    _free(part.device)
    return _measured(part, replace(case, batch=case.batch // 2))


def _measured(part: Part, case: Case) -> dict[str, Any]:
    import torch

    from muonlab.models.counting import size_of
    from muonlab.train.recipe import load_recipe

    device, recipe = part.device, load_recipe(ROOT / "recipes" / f"{case.recipe}.toml")
    model = recipe.model
    if part.tiny:
        family = (case.model or recipe.model.model_dump())["family"]
        model = type(load_recipe(None, [f"model.family={family}"]).model)(**TINY[family])
    elif case.model is not None:
        model = type(load_recipe(None, [f"model.family={case.model['family']}"]).model)(**case.model)
    size, batch, estimate = size_of(model, VOCABULARY), case.batch, None
    if not case.gpt2:
        batch, estimate = fitting(model, recipe.optimizer, batch, device)
    _free(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    module, loss_of, optimizer = theirs(model, device) if case.gpt2 else ours(model, recipe.optimizer, device)
    if case.compiled:
        torch._dynamo.reset()
        # On the CPU the tiny sizes ask whether it can be traced: a C++ compiler may not be there.
        loss_of = torch.compile(loss_of, backend="inductor" if device == "cuda" else "eager")
    tokens = torch.randint(model.vocab_size or VOCABULARY, (batch, model.context + 1), device=device)
    clip = None if case.gpt2 else recipe.train.grad_clip

    def passes() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()

    def update() -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    row = _timed(passes, update, device, part)
    tokens_a_step = batch * model.context
    row |= {"batch": batch, "context": model.context, "parameters": sum(p.numel() for p in module.parameters())}
    row |= {"tokens_per_second": tokens_a_step / row["step_seconds"], "flops_per_token": size.flops_per_token}
    row |= {"tokens_per_second_passes": tokens_a_step / row["passes_seconds"], "compiled": case.compiled}
    row |= _utilization(row, part.figures)
    if device == "cuda":
        row["peak_memory_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        row["reserved_memory_gib"] = torch.cuda.max_memory_reserved() / 2**30
    if estimate is not None:
        row["estimated_memory_gib"] = estimate / 2**30
        if device == "cuda":
            row["memory_over_estimate"] = row["peak_memory_gib"] / row["estimated_memory_gib"]
    return row


def _timed(passes: Callable[[], None], update: Callable[[], None], device: str, part: Part) -> dict[str, float]:
    """Seconds of a whole step, mean of many that nobody waits between, and of its two halves, medians of some."""
    began = time.perf_counter()
    for _ in range(1 if part.tiny else WARM_UP):
        passes()
        update()
    wait(device)
    warm = time.perf_counter() - began
    one = seconds_of(lambda: (passes(), update()), device)
    steps = 1 if part.tiny else max(3, min(STEPS, int(0.2 * part.left() / one)))
    whole = seconds_of(lambda: [(passes(), update()) for _ in range(steps)], device) / steps
    halves = [(seconds_of(passes, device), seconds_of(update, device)) for _ in range(2 if part.tiny else LOOKS)]
    first, second = (statistics.median(times) for times in zip(*halves, strict=True))
    found = {
        "step_seconds": whole,
        "passes_seconds": first,
        "optimizer_seconds": second,
        "optimizer_share": second / (first + second),
    }
    return found | {"warm_up_seconds": warm}


def _utilization(row: dict[str, Any], figures: dict[str, Any]) -> dict[str, float]:
    found = {}
    for key, peak in (("mfu", "peak_tflops"), ("mfu_datasheet", "datasheet_tflops")):
        if peak in figures:
            for suffix in ("", "_passes"):
                flops = row[f"tokens_per_second{suffix}"] * row["flops_per_token"]
                found[key + suffix] = flops / (figures[peak] * 1e12)
    return found


def ours(model: Any, optimizer: Any, device: str) -> tuple[Any, Callable[..., Any], Any]:
    import torch

    module = model.build(VOCABULARY)
    module.initialize(lambda name: torch.Generator().manual_seed(0))
    module.to(device)
    return module, module.loss, optimizer.build(module)


def theirs(model: Any, device: str) -> tuple[Any, Callable[..., Any], Any]:
    """transformers' GPT-2 of a gpt's shape (its heads are 64 wide), as benchmarks/models.py builds it."""
    import torch
    import torch.nn.functional as F

    try:
        import transformers
    except ImportError as error:
        raise NotRun(f"needs transformers ({error})") from None
    from models import gpt2

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    size = {"layers": model.layers, "width": model.width, "vocab_size": model.vocab_size or VOCABULARY}
    module = gpt2(size, model.context, tied=False).to(device)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(module(tokens).logits.float().flatten(0, 1), targets.flatten())

    return module, loss, torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)


def fitting(model: Any, optimizer: Any, batch: int, device: str) -> tuple[int, int | None]:
    """The batch, halved until a step's estimated memory fits, and that estimate in bytes. None: it cannot be followed."""
    import torch

    from muonlab.train.footprint import footprints

    free = torch.cuda.mem_get_info()[0] if device == "cuda" else None
    at = {"vocab_size": VOCABULARY, "precision": "bf16"}
    for place in dict.fromkeys((device, "cpu")):  # what cannot be followed on a GPU is about as large on a CPU
        try:
            while True:
                estimate = footprints(model, {"": optimizer}, batch=batch, device=place, **at)[""].total
                if free is None or estimate <= MEMORY * free or batch == 1:
                    return batch, estimate
                batch //= 2
        except Exception as error:  # the estimate is a figure of its own: without it the speed is still worth measuring
            print(f"no estimate of memory on {place}: {type(error).__name__}: {error}", flush=True)
    return batch, None


def _free(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def summary(part: Part) -> None:
    """The headline, and the bars as far as they can be judged."""
    cases = {name: row for name, row in part.figures["cases"].items() if row["status"] == "ok"}
    first, gpt2 = cases.get("gpt-124m"), cases.get("GPT-2")
    words = []
    bars = part.figures["bars"] = {}
    if first:
        mfu = first.get("mfu_datasheet", first["mfu"])
        words.append(f"gpt-124m {first['tokens_per_second']:,.0f} tokens/s, MFU {mfu:.0%}")
        bars["gpt-124m MFU"] = _bar(mfu, MFU_BAR, judged="mfu_datasheet" in first)
        if gpt2 and gpt2["batch"] == first["batch"]:
            ratio = first["tokens_per_second_passes"] / gpt2["tokens_per_second_passes"]
            part.figures["gpt2_ratio_whole_step"] = first["tokens_per_second"] / gpt2["tokens_per_second"]
            bars["against GPT-2"] = _bar(ratio, GPT2_BAR, judged=not part.tiny)
            words.append(f"{ratio:.2f} x GPT-2")
    others = [name for name in cases if name in ("ngpt-155m", "mamba-130m", "hybrid-small")]
    words += [f"{name} {cases[name]['tokens_per_second']:,.0f}" for name in others]
    missed = [name for name, bar in bars.items() if bar["met"] is False]
    part.say(", ".join(words) + (f"; BELOW ITS BAR: {', '.join(missed)}" if missed else ""))


def _bar(figure: float, bar: float, *, judged: bool) -> dict[str, Any]:
    return {"figure": figure, "bar": bar, "met": figure >= bar if judged else None}


if __name__ == "__main__":
    main("train", train, needs=("numpy", "pydantic", "safetensors", "tomli_w"))
