"""Arms × seeds: run them, read them back, and say better, worse, equivalent or undecided, with the evidence.

A question's way, top to bottom:

plan       what is to be run: config, loading (the file), followups, seeds, grid, experiment (cells, plan), machine, probe
run        what is missing is done: runner (sweeps, races), race (who runs next), search (Optuna), pool (worker processes)
runs       run folders as values: store (a sweep), collection (runs without a plan), index (SQLite), curves, tables
judge      figures and verdicts: results, effects (designs), targets (time to a loss), standings (of a race), arms, answers, audit
show       report and overview: findings (sentences), facts, arm_tables, charts, render (pictures), export (CSV, Parquet)

stats      the mathematics, without torch
log        `muonlab.run`: runs of any training script
importers  other people's logs as run folders
records    what others can verify: certify, verify

From a folder to its verdicts: `for sentence in answer(compute(collect("runs/log"))): print(sentence)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from muonlab.extras import need_lab

if TYPE_CHECKING:
    from muonlab.lab.judge.results import compute
    from muonlab.lab.runs.collection import collect
    from muonlab.lab.show.report import answer

need_lab(__name__, "pydantic", "scipy", "statsmodels", "tomli_w")

_FACE = {"collect": "runs.collection", "compute": "judge.results", "answer": "show.report"}  # imported on first use
__all__ = ["answer", "collect", "compute"]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(f"muonlab.lab.{_FACE[name]}"), name)
    raise AttributeError(f"module 'muonlab.lab' has no attribute {name!r}")
