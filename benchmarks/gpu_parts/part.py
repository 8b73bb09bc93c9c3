"""What the parts of the GPU pack share: where figures go, what a part needs, what the machine is and can do.

Importing this puts the checkout's src and benchmarks on the path, of child processes too, so that a bare folder needs no install.
Needs Python alone; torch where something is measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PATHS = [str(ROOT / "src"), str(ROOT / "benchmarks")]
sys.path[1:1] = [path for path in _PATHS if path not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join([_PATHS[0], *filter(None, [os.environ.get("PYTHONPATH")]), _PATHS[1]])

OK, FAILED, NOT_RUN = 0, 1, 3  # exit codes of a part
DATASHEET = {"H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s of the SXM boards, NVIDIA's data sheets


class NotRun(Exception):
    """Why a part or a case cannot run here."""


class Part:
    """The figures of one part, in a JSON file that is written again after each case: a part that is killed keeps what it has."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.file: Path = arguments.out
        self.tiny: bool = arguments.tiny
        self.device: str = arguments.device
        self.ends = time.monotonic() + arguments.seconds
        self.seconds: float = arguments.seconds
        self.figures: dict[str, Any] = {"part": name, "status": "running", "headline": "", "cases": {}}

    def left(self) -> float:
        """Seconds until this part is killed."""
        return self.ends - time.monotonic()

    def case(self, name: str, run: Callable[[], dict[str, Any]], *, needs_seconds: float = 0.0) -> dict[str, Any] | None:
        """Runs a case and writes its figures; an error is its figure, and the next case runs. None: there are none.

        needs_seconds: with less time left, it is not begun."""
        start = time.perf_counter()
        if self.left() < needs_seconds:
            row = {"status": "not run", "why": f"{self.left():.0f} s left, needs {needs_seconds:.0f}"}
        else:
            try:
                row = {"status": "ok", **run()}
            except NotRun as why:
                row = {"status": "not run", "why": str(why)}
            except Exception as error:  # whatever it is: it costs its case only
                traceback.print_exc()
                row = {"status": "failed", "why": f"{type(error).__name__}: {first_line(error)}"}
            row["seconds"] = round(time.perf_counter() - start, 2)
        self.figures["cases"][name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        self.write()
        return row if row["status"] == "ok" else None

    def say(self, headline: str) -> None:
        """The one line of figures that the table shows."""
        self.figures["headline"] = headline
        self.write()

    def write(self) -> None:
        new = self.file.with_name(f".{self.file.name}.new")
        new.write_text(json.dumps(self.figures, indent=1) + "\n")
        new.replace(self.file)


def main(name: str, run: Callable[[Part], None], needs: Iterable[str] = ()) -> None:
    """A part's command line. needs: modules beside torch."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--seconds", type=float, default=300.0, help="time to fit into (default 300)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("cpu" if arguments.tiny else "cuda")
    part = Part(name, arguments)
    try:
        part.write()
        if missing := [module for module in ("torch", *needs) if not importable(module)]:
            raise NotRun(f"needs {', '.join(missing)}")
        part.figures = about(arguments.device) | {"tiny": arguments.tiny} | part.figures
        if arguments.device == "cuda" and not part.figures["cuda"]:
            raise NotRun("this torch sees no CUDA device")
        run(part)
        cases = part.figures["cases"]
        statuses = {row["status"] for row in cases.values()}
        part.figures["status"] = "failed" if "failed" in statuses else "ok"
        for status in ("failed", "not run"):
            if names := [name for name, row in cases.items() if row["status"] == status and len(cases) > 1]:
                part.figures["why"] = "; ".join(filter(None, [part.figures.get("why"), f"{status}: {', '.join(names)}"]))
        if statuses == {"not run"}:
            raise NotRun("; ".join(sorted({row["why"] for row in cases.values()})))
    except NotRun as why:
        part.figures |= {"status": "not run", "why": str(why)}
    except Exception as error:
        traceback.print_exc()
        part.figures |= {"status": "failed", "why": f"{type(error).__name__}: {first_line(error)}"}
    part.write()
    print(part.figures["status"], part.figures.get("why") or part.figures["headline"])
    sys.exit({"ok": OK, "not run": NOT_RUN}.get(part.figures["status"], FAILED))


def importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def about(device: str) -> dict[str, Any]:
    """Date, hardware, driver and versions. No host names and no paths: figures are published."""
    import torch

    cuda = torch.cuda.is_available()
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": torch.cuda.get_device_name() if device == "cuda" and cuda else _cpu_name(),
        "device": device,
        "cuda": torch.version.cuda if cuda else None,
        "driver": _driver(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
    }
    if cuda:
        found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: str) -> float:
    """By the clock, until the device is done."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def matmul_peak(device: str, size: int) -> float:
    """bf16 FLOP/s of this device's own (size, size) matrix product: the best of some runs of ten."""
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def ten() -> None:
        for _ in range(10):
            torch.mm(a, b, out=out)

    return 20 * size**3 / min(seconds_of(ten, device) for _ in range(6))


def datasheet_peak(hardware: str) -> float | None:
    slower = any(board in hardware for board in ("PCIe", "NVL"))
    return None if slower else next((peak for name, peak in DATASHEET.items() if name in hardware), None)


if __name__ == "__main__":  # what the pack asks before the first part
    print(json.dumps(about(sys.argv[1])))
