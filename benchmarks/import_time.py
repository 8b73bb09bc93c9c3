"""What `import muonlab` and the first `muonlab.optimizer` cost beyond torch: the bar is 60 ms.

    python benchmarks/import_time.py [--rounds 15] [--python PYTHON] [--out benchmarks/results/import_time.json]

Processes take turns (A B C A B C …): torch alone, then with muonlab. `beyond` is the difference of their medians. Importing torch
takes seconds, which vary by more than what is asked, so each process also says what muonlab took of its own processor time, after
`import torch`: `inside` is the median of that. --python measures in another environment, such as a bare one. Bytecode is written in
a first round that does not count, as pip does when it installs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

BAR_MS = 60.0
PROGRAMS = {"torch": "", "import muonlab": "import muonlab", "muonlab.optimizer": "import muonlab; muonlab.optimizer"}
_TIMED = "import torch, time; began = time.process_time(); {}; print(1000 * (time.process_time() - began))"
_ABOUT = (
    "import importlib.util as u, json, platform, torch; "
    "print(json.dumps({'torch': torch.__version__, 'python': platform.python_version(), 'lab': u.find_spec('scipy') is not None}))"
)


def measured(python: str, program: str, environment: dict[str, str]) -> tuple[float, float]:
    """Milliseconds of the processor: of the whole process, and of the program after torch."""
    process = subprocess.Popen([python, "-c", _TIMED.format(program or "0")], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process, process.stdout as out:
        inside = float(out.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {program}")
    return 1000 * (used.ru_utime + used.ru_stime), inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:  # whether the folder of the source is writable or not
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": cache}
        rounds = [{name: measured(given.python, p, environment) for name, p in PROGRAMS.items()} for _ in range(given.rounds + 1)]
        about = json.loads(subprocess.check_output([given.python, "-W", "ignore", "-c", _ABOUT], env=environment))
    medians = {name: [statistics.median(row[name][i] for row in rounds[1:]) for i in (0, 1)] for name in PROGRAMS}
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        **about,
        "rounds": given.rounds,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # others on this machine make caches cold, and the processor's own time longer
        "bar_ms": BAR_MS,
        "torch_ms": round(medians["torch"][0], 1),
        "ms": {
            name: {"inside": round(inside, 2), "beyond": round(whole - medians["torch"][0], 1)}
            for name, (whole, inside) in medians.items()
            if name != "torch"
        },
    }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
