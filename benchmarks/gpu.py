"""Everything that has to be known on a GPU, in one command: is it correct, how fast is it, does a run survive.

    python benchmarks/gpu.py --out DIR [--minutes 8] [--only PART ...] [--dry] [--tiny] [--device cuda|cpu]

The parts run in order of worth, each in a process of its own, which is killed with its children when its share of the time is
over; what a part leaves unused goes to those after it. DIR gets PART.json, written as the part goes on, and PART.log. A table
comes last. Needs torch and this folder: no install, no network. Exit code: 0, 1 if a part failed or ran out of time, 2 for bad
input, 130 or 143 where a signal ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent / "gpu_parts"
SHARES = {"correct": 22, "step": 17, "train": 24, "run": 21, "sweep": 11, "decode": 5}  # of the time, in order of worth
SHOWS = {
    "correct": "tests with the marker cuda",
    "step": "an optimizer step against torch.optim.Muon and others",
    "train": "tokens/s and share of the matmul peak, four models and transformers' GPT-2",
    "run": "a run, killed and resumed; batch search",
    "sweep": "1, 4 and 8 runs at once: runs per hour",
    "decode": "cached generation, batch 1 and 64",
}
KEPT_BACK = 3.0  # seconds that a part is told less than it has: to write its last figures


class Stopped(Exception):
    def __init__(self, number: int) -> None:
        self.code = 128 + number


def main() -> int:
    arguments = _arguments()
    folder = Path(os.environ.get("MUONLAB_GPU_PARTS", PARTS))  # tests put a part of their own there
    todo = [name for name in SHARES if name in (arguments.only or SHARES)]
    total = 60.0 * arguments.minutes
    if arguments.dry:
        whole = sum(SHARES[name] for name in todo)
        for name in todo:
            print(f"{name:8} {total * SHARES[name] / whole:4.0f} s  {SHOWS[name]}")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, float, str]] = []
    code = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        why = _cannot(arguments.device)
        ends = time.monotonic() + total
        for i, name in enumerate(todo):
            shares = [SHARES[later] for later in todo[i:]]
            limit = max(0.0, ends - time.monotonic()) * shares[0] / sum(shares)
            if why is not None:
                _write(arguments.out / f"{name}.json", _known(name) | {"status": "not run", "why": why})
                rows.append((name, "not run", 0.0, why))
                continue
            print(f"{name}: at most {limit:.0f} s, log in {arguments.out / f'{name}.log'}", flush=True)
            rows.append((name, *_run(folder / f"{name}.py", name, limit, arguments)))
    except Stopped as stopped:
        code = stopped.code
        rows += [(name, "stopped", 0.0, "") for name in todo[len(rows) :]]
    print(_table(rows), flush=True)
    return code or int(any(status in ("failed", "timed out") for _, status, _, _ in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for figures and logs (default gpu-results)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default 8)")
    parser.add_argument("--only", nargs="+", metavar="PART", help=", ".join(SHARES))
    parser.add_argument("--dry", action="store_true", help="list the parts and their time, and run none")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU by default: does the pack run?")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, with --tiny cpu")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only or () if name not in SHARES]:
        parser.error(f"--only: unknown part {', '.join(unknown)}; expected some of {', '.join(SHARES)}")
    if not 0 < arguments.minutes <= 24 * 60:
        parser.error(f"--minutes: expected more than 0, and at most a day, got {arguments.minutes:g}")
    if taken := next((p for p in (arguments.out, *arguments.out.parents) if p.exists() and not p.is_dir()), None):
        parser.error(f"--out: expected a folder, {taken} is a file")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu: the sizes are a GPU's; add --tiny")
    arguments.device = arguments.device or ("cpu" if arguments.tiny else "cuda")
    return arguments


def _cannot(device: str) -> str | None:
    """Why no part can run; None: there is what all of them need."""
    program = "import torch; print(torch.__version__, torch.cuda.is_available())"
    try:
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "importing torch takes longer than two minutes"
    if found.returncode:
        return f"needs torch ({(found.stderr.strip().splitlines() or ['it could not be imported'])[-1]})"
    version, cuda = found.stdout.split()[-2:]
    return f"torch {version} sees no CUDA device; --tiny runs on the CPU" if device == "cuda" and cuda != "True" else None


def _run(program: Path, name: str, limit: float, arguments: argparse.Namespace) -> tuple[str, float, str]:
    """Status, seconds, headline."""
    file, start = arguments.out / f"{name}.json", time.monotonic()
    file.unlink(missing_ok=True)  # what an earlier pack has left is not this one's
    told = max(1.0, limit - KEPT_BACK)
    command = [sys.executable, str(program), "--out", str(file), "--seconds", f"{told:.1f}", "--device", arguments.device]
    with open(arguments.out / f"{name}.log", "w") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        child = subprocess.Popen([*command, *(["--tiny"] if arguments.tiny else [])], env=environment, **out)
        try:
            child.wait(timeout=limit)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        except Stopped:
            _finish(file, name, {"status": "stopped"}, start)
            raise
        finally:
            _kill(child)
    figures: dict[str, Any] = {}
    if timed_out:
        figures = {"status": "timed out", "why": f"not done after {limit:.0f} s"}
    elif child.returncode not in (0, 1, 3) or _read(file).get("status") not in ("ok", "failed", "not run"):
        figures = {"status": "failed", "why": f"its process ended with exit code {child.returncode}: see {name}.log"}
    figures = _finish(file, name, figures, start)
    shown = [figures.get("headline"), figures.get("why")]
    return figures["status"], figures["seconds"], "; ".join(filter(None, shown))


def _known(name: str) -> dict[str, Any]:
    """What is known of a part that says nothing itself."""
    return {"part": name, "date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}


def _finish(file: Path, name: str, more: dict[str, Any], start: float) -> dict[str, Any]:
    figures = {**_known(name), **_read(file), **more, "seconds": round(time.monotonic() - start, 1)}
    _write(file, figures)
    return figures


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child, if it still is, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _write(file: Path, figures: dict[str, Any]) -> None:
    file.write_text(json.dumps(figures, indent=1) + "\n")


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def _table(rows: list[tuple[str, str, float, str]]) -> str:
    lines = [f"{'part':8} {'status':9} {'seconds':>7}  figures"]
    return "\n".join(["", *lines, *(f"{name:8} {status:9} {seconds:7.1f}  {shown}" for name, status, seconds, shown in rows)])


if __name__ == "__main__":
    sys.exit(main())
