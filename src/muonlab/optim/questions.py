"""Parameters on which sources differ, or are silent: what is done with each, and who does otherwise.

A question's name stands for all of its parameters in `roles` and `specs`: `roles={"router": "vector"}`.
"""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from torch import nn


class Question(NamedTuple):
    """patterns: (class of a module that holds the parameter, the parameter's path from there), as in architectures.py."""

    name: str
    patterns: tuple[tuple[str, str], ...]
    answer: str


QUESTIONS = (
    Question(
        "router",
        (
            ("*Router", "weight"),
            ("*Router", "*.weight"),
            ("*M[oO]E*", "gate.weight"),
            ("*Moe*", "gate.weight"),
            ("*", "router.weight"),
        ),
        "by Muon, as Megatron-LM has it unless told otherwise (its pull request 6504)",
    ),
    Question(
        "mla",
        (("*Attention", "q_b_proj.weight"), ("*Attention", "kv_b_proj.weight")),
        "as few matrices as it holds; GLM-5 has one for each head ('Muon Split'): specs={'mla': {'groups': 1, 'split': heads}}",
    ),
    Question(
        "lora",
        (("*", "lora_[AB].*.weight"), ("*", "lora_[AB].weight")),
        "both factors by Muon; OneTrainer gives A to Adam (its pull request 1314, after arXiv 2508.17901)",
    ),
    Question(
        "clip_projection",
        (
            ("*CLIP*", "visual_projection.weight"),
            ("*CLIP*", "text_projection.weight"),
            ("CLIP", "proj"),
            ("CLIP", "text_projection"),
        ),
        "by Muon, as any matrix between layers: no source says otherwise",
    ),
    Question("dt_proj", (("*Mamba*", "dt_proj.weight"),), "by Muon, as any matrix between layers: no source says otherwise"),
)


def question_of(chain: list[tuple[nn.Module, str]]) -> Question | None:
    """The question that a parameter belongs to. chain: the modules that hold it, with its path from each."""
    for question in QUESTIONS:
        for kind, path in question.patterns:
            if any(fnmatch.fnmatchcase(type(module).__name__, kind) and fnmatch.fnmatchcase(own, path) for module, own in chain):
                return question
    return None
