"""Part 2, step: benchmarks/step.py on the device.

python benchmarks/gpu_parts/step.py --out FILE [--tiny] [--seconds N]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from part import ROOT, Part, main


def step(part: Part) -> None:
    """Its JSON goes into this part's as it grows."""
    file = part.file.with_name(f".{part.file.stem}-figures.json")
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks/step.py"), "--device", part.device, "--out", str(file)]
    command += ["--tiny"] if part.tiny else ["--compiled", "--seconds", str(part.left())]
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(0.5)
        _note(part, file)
    _note(part, file)
    file.unlink(missing_ok=True)
    if process.returncode:
        raise RuntimeError(f"benchmarks/step.py ended with exit code {process.returncode}: see the log")


def _note(part: Part, file: Path) -> None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):  # not there yet, or half written
        return
    part.figures["cases"] = {"step.py": {"status": "ok", **found}}
    part.say(headline(found))


def headline(found: dict[str, Any]) -> str:
    """Our time over torch.optim.Muon's, for each set."""
    ratios = []
    for name, rows in found.get("sets", {}).items():
        ours = rows.get("muonlab fast", {})
        if ours.get("ratio") is not None:
            ratios.append(f"{name} {ours['ratio']:.2f}")
    return f"of torch.optim.Muon's time: {', '.join(ratios)}" if ratios else ""


if __name__ == "__main__":
    main("step", step)
