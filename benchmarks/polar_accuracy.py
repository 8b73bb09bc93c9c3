"""How near each orthogonalizer comes to the exact polar factor: the relative error against the SVD in float64.

On the spectra of benchmarks/spectra.py (with random singular vectors), and on the momentum of a GPT of 3M parameters after 60
steps of training on the text of Python's standard library. About three minutes on two cores.

python benchmarks/polar_accuracy.py [--out benchmarks/results/polar_accuracy.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

import torch
from spectra import spectra
from torch import Tensor

import muonlab
from muonlab.optim import orthogonalizers
from muonlab.train.recipe import load_recipe
from muonlab.train.trainer import Trainer, choose_machine

LEFT_OUT = {"newtonschulz10", "polar_express", "svd", "exact"}  # another name of one here, or exact by construction


def matrices() -> dict[str, list[Tensor]]:
    """name -> float32 matrices."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, sigma in spectra().items():
        m = len(sigma)
        n = int(name.rsplit("×", 1)[1]) if "×" in name else m
        u, v = (torch.linalg.qr(torch.randn(size, m, generator=generator, dtype=torch.float64)).Q for size in (m, n))
        found[name] = [((u * sigma) @ v.mT).float()]
    return found | {"real momentum": momentum()}


def momentum() -> list[Tensor]:
    overrides = ["model.width=256", "model.head_width=64", "train.batch=8", "optimizer.name=muon"]
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "gpt-1m.toml", overrides)
    trainer = Trainer(recipe, seed=0, machine=choose_machine(recipe))
    for _ in range(60):
        trainer.train_step()
    groups = [g for g in trainer.optimizer.param_groups if g["rule"] == "muon"]
    return [trainer.optimizer.state[p]["momentum_buffer"].clone() for g in groups for p in g["params"]]


def polar_factor(x: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/polar_accuracy.json"))
    arguments = parser.parse_args()
    methods = [name for name in orthogonalizers() if name not in LEFT_OUT]
    rows = []
    for spectrum, examples in matrices().items():
        exact = [polar_factor(x) for x in examples]
        for method in methods:
            for dtype in (torch.float32, torch.bfloat16):
                errors = []
                for x, factor in zip(examples, exact, strict=True):
                    found = muonlab.orthogonalize(x, method, dtype=dtype).double()
                    errors.append(((found - factor).norm() / factor.norm()).item())
                name = str(dtype).removeprefix("torch.")
                rows.append({
                    "spectrum": spectrum, "method": method, "dtype": name, "matrices": len(errors),
                    "relative_error": statistics.median(errors), "lowest": min(errors), "highest": max(errors),
                })  # fmt: skip
        shown = {r["method"]: r["relative_error"] for r in rows if r["spectrum"] == spectrum and r["dtype"] == "bfloat16"}
        print(f"{spectrum:22}", "  ".join(f"{name} {error:.3f}" for name, error in shown.items()), flush=True)
    figures = {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "rows": rows}
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
