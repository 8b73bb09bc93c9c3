"""How long one optimizer step takes, against torch.optim.Muon and peers: interleaved rounds (A B C A B C …), medians.

python benchmarks/step.py [--variants] [--sets NAME ...] [--rounds 15] [--only NAME ...] [--compiled] [--seconds S]
                          [--device cuda] [--tiny] [--out FILE]

`muonlab bench` is the same without the peers. With --variants: every optimizer of this package, against "muon". Peers that are not
installed are left out, and the output says so: pip install pytorch_optimizer heavyball
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from muonlab.files import write_atomically
from muonlab.optim.bench.report import Asked, run, text
from muonlab.optim.bench.rivals import Rival, own_variants, rivals
from muonlab.optim.bench.shapes import SETS, default_sets


def peers() -> list[Rival]:
    """Other packages' Muon, where they are installed."""
    makers = {
        "pytorch_optimizer Muon": ("pytorch_optimizer", lambda m, p: m.Muon([{"params": p, "use_muon": True}], lr=0.02).step),
        "heavyball Muon": ("heavyball", lambda m, p: m.Muon(p, lr=0.02).step),
    }
    found = []
    for name, (module, make) in makers.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        found.append(Rival(name, lambda p, make=make, loaded=loaded: make(loaded, p)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS)
    parser.add_argument("--variants", action="store_true", help="compare the optimizers of this package")
    parser.add_argument("--rounds", type=int, help="default 15; with --tiny 2")
    parser.add_argument("--only", nargs="+", help="names of rows, besides the first")
    parser.add_argument("--compiled", action="store_true", help="also what has to be compiled, which takes minutes")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after so many seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="JSON file, written again after each set")
    given = parser.parse_args()
    everybody = own_variants() if given.variants else [*rivals(), *([] if given.tiny else peers())]
    everybody = [r for i, r in enumerate(everybody) if not given.only or i == 0 or r.name in given.only]
    sets = given.sets or default_sets(given.device, given.tiny)
    rounds = given.rounds or (2 if given.tiny else 15)

    def write(found: dict[str, Any]) -> None:
        if given.out:
            write_atomically(given.out, json.dumps(found, indent=1) + "\n")

    asked = Asked(sets, given.device, rounds, given.tiny, given.compiled, given.seconds)
    print(text(run(asked, everybody, write), everybody))


if __name__ == "__main__":
    main()
