"""Part 1, correct: the tests that carry the marker cuda, on the device.

python benchmarks/gpu_parts/correct.py --out FILE [--tiny] [--seconds N]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from part import ROOT, NotRun, Part, importable, main

PROCESSES = 8
QUICK = ["tests/unit/test_cross_entropy.py", "tests/unit/test_drop_in.py"]  # with --tiny: collecting all takes too long
NO_TESTS, INTERRUPTED = 5, (2, 3, 4)  # pytest's exit codes
SHOWN = 20  # failures by name


def correct(part: Part) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "counts.jsonl"
        lines.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--device", part.device, "-p", "no:cacheprovider"]
        command += ["-p", "gpu_parts.counts"]
        if part.tiny:
            command += QUICK
        elif importable("xdist"):
            command += ["-n", str(PROCESSES)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of a test of this pack
        environment = {**inherited, "MUONLAB_GPU_COUNTS": str(lines)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        while process.poll() is None:
            time.sleep(0.5)
            _note(part, lines)
        counts = _note(part, lines)
    part.figures["exit_code"] = process.returncode
    if process.returncode == NO_TESTS:
        raise NotRun("no test has the marker cuda")
    if process.returncode in INTERRUPTED:
        raise RuntimeError(f"pytest could not run (exit code {process.returncode}): see the log")
    if process.returncode or counts["failed"]:
        part.figures["cases"]["pytest"]["status"] = "failed"


def _note(part: Part, lines: Path) -> Counter[str]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    counts = Counter(row["outcome"] for row in rows)
    failures = [row for row in rows if row["outcome"] == "failed"]
    skipped = Counter(row["why"] for row in rows if row["outcome"] == "skipped")
    part.figures["cases"]["pytest"] = {
        "status": "ok", **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "failures": [{"test": row["test"], "why": row["why"]} for row in failures[:SHOWN]],
        "skipped_because": dict(skipped.most_common(SHOWN)),
    }  # fmt: skip
    first = f"; first failure {failures[0]['test']}" if failures else ""
    part.say(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped{first}")
    return counts


if __name__ == "__main__":
    main("correct", correct, needs=("pytest", "hypothesis", "numpy", "pydantic"))
