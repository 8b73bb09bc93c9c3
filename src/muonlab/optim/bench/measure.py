"""The measuring: interleaved rounds (A B C A B C …), medians, on a GPU by its own events."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.optim.bench.rivals import Rival, Step
from muonlab.optim.bench.shapes import Shape, matrices
from muonlab.optim.precision import fast_matmul_dtype


def wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def free(device: str) -> None:
    """Gives back the memory of what nobody holds any more."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def once(step: Step, device: str) -> tuple[float, float]:
    """(seconds until the device was done, seconds until the host was) of one step."""
    wait(device)
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        step()
        took = time.perf_counter() - start
        return took, took
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    start = time.perf_counter()
    step()
    host = time.perf_counter() - start
    ended.record()
    torch.cuda.synchronize(device)
    return begun.elapsed_time(ended) / 1e3, host


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2


def interleaved(
    steps: dict[str, Step], rounds: int, device: str, before: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """name -> {"ms", "host_ms"}, medians over the rounds. `before` each step something that is not timed."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                before()
                times[name].append(once(step, device))
    finally:
        if collecting:
            gc.enable()
    return {
        name: {"ms": 1e3 * median([t for t, _ in found]), "host_ms": 1e3 * median([t for _, t in found])}
        for name, found in times.items()
    }


class Bench:
    """One set's weights and gradients, which all rivals share: each has a state of its own."""

    def __init__(self, shapes: Sequence[Shape], device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.device = device
        self.banks = [self._parameter(shape, generator) for shape in shapes]
        self.singles: list[nn.Parameter] = []
        for p in self.banks:
            assert p.grad is not None
            grads = p.grad.reshape(-1, *p.shape[-2:]).unbind(0)
            # a matrix of a bank shares its memory: a rival that takes matrices alone needs no weights of its own
            views = p.detach().reshape(-1, *p.shape[-2:]).unbind(0)
            for view, grad in zip(views, grads, strict=True):
                single = nn.Parameter(view) if p.ndim > 2 else p
                single.grad = grad if p.ndim > 2 else p.grad
                self.singles.append(single)
        self._grads = [(p, p.grad) for p in (*self.banks, *self.singles)]

    def _parameter(self, shape: Shape, generator: torch.Generator) -> nn.Parameter:
        grad = torch.randn(shape, generator=generator, device=self.device)
        p = nn.Parameter(grad / shape[-1])
        p.grad = grad
        return p

    def step_of(self, rival: Rival) -> Step:
        """The rival's step, taken once, so that state, kernels and compiled code are there."""
        self.give_back()
        step = rival.make(self.banks if rival.banks else self.singles)
        self.give_back()
        step()
        wait(self.device)
        return step

    def give_back(self) -> None:
        """Every gradient to its parameter: a rival may take them away."""
        for p, grad in self._grads:
            p.grad = grad

    def measure(self, rivals: Sequence[Rival], rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """(name -> {"ms", "host_ms"}, name -> why it was left out)."""
        steps: dict[str, Step] = {}
        left_out: dict[str, str] = {}
        for rival in rivals:
            try:
                steps[rival.name] = self.step_of(rival)
            except Exception as error:  # whatever it is, it costs this rival only
                left_out[rival.name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
                free(self.device)
        return interleaved(steps, rounds, self.device, self.give_back), left_out


def fitting(shapes: Sequence[Shape], device: str) -> str:
    """Why the set does not fit the device's memory: weights, gradients, two rivals' states, half of it again. Empty: it does."""
    if torch.device(device).type != "cuda":
        return ""
    needed = 4 * sum(m * n for m, n in matrices(shapes)) * 6
    free = torch.cuda.mem_get_info(device)[0]
    return "" if needed <= free else f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free"


def matmul_peak(device: str, tiny: bool = False) -> float:
    """FLOP/s of this device's own matrix product in the dtype that the iteration takes: the best of some."""
    size = 256 if tiny else (8192 if torch.device(device).type == "cuda" else 1024)
    batch = 4 if size <= 1024 else 1
    x: Tensor = torch.randn(batch, size, size, device=device)
    x = x.to(fast_matmul_dtype(x))
    torch.bmm(x, x)
    return 2 * batch * size**3 / min(once(lambda: torch.bmm(x, x), device)[0] for _ in range(10))


def bandwidth(device: str, tiny: bool = False) -> float:
    """Bytes/s of this device's own copy, read and written: the best of some."""
    numbers = 2**20 if tiny else (2**28 if torch.device(device).type == "cuda" else 2**25)
    x, y = (torch.zeros(numbers, device=device) for _ in range(2))
    return 8 * numbers / min(once(lambda: y.copy_(x), device)[0] for _ in range(6))


def about(device: str) -> dict[str, Any]:
    """Date, hardware and versions, as figures are published with."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "triton": _triton(),
        "hardware": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu_name(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _triton() -> str | None:
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return triton.__version__


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
