"""How near each orthogonalizer comes to the exact polar factor: cosine and relative error against the SVD in float64.

python benchmarks/polar_accuracy.py [--out benchmarks/results/polar_accuracy.json]
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch

import muonlab
from muonlab.optim import orthogonalizers

SHAPES = [(256, 1024), (256, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/polar_accuracy.json"))
    arguments = parser.parse_args()
    rows = []
    print(f"{'method':16} {'shape':>10} {'dtype':>9} {'cosine':>8} {'rel. error':>10}")
    for m, n in SHAPES:
        g = torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        u, _, vt = torch.linalg.svd(g, full_matrices=False)
        exact = u @ vt
        for method in orthogonalizers():
            for dtype in (torch.float32, torch.bfloat16):
                found = muonlab.orthogonalize(g.float(), method, dtype=dtype).double()
                cosine = ((found * exact).sum() / (found.norm() * exact.norm())).item()
                error = ((found - exact).norm() / exact.norm()).item()
                name = str(dtype).removeprefix("torch.")
                rows.append({"method": method, "shape": [m, n], "dtype": name, "cosine": cosine, "relative_error": error})
                print(f"{method:16} {m:>5}×{n:<4} {name:>9} {cosine:8.4f} {error:10.4f}")
    figures = {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "gaussian_seed": 0, "rows": rows}
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
