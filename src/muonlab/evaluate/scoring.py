"""How likely a model finds given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muonlab.evaluate.loading import LoadedRun

_LOGITS_AT_A_TIME = 1 << 26  # numbers: 256 MiB


@dataclass(frozen=True)
class Score:
    """log_likelihood: in nats, of all tokens together. greedy: is each of them the likeliest one?"""

    log_likelihood: float
    greedy: bool


def score(run: LoadedRun, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch: int = 64) -> list[Score]:
    """The score of each pair's second tokens, as they follow the first. Of more than the context holds, the first tokens are not
    read: of an answer longer than the context, only its last `context` tokens are scored. No tokens are certain: (0, True).
    Raises ValueError where there is nothing before."""
    context = run.context
    rows: list[list[int]] = []
    for before, after in pairs:
        if not before:
            raise ValueError(f"expected tokens before and after, got 0 and {len(after)}")
        rows.append([*before, *after][-(context + 1) :])
    found = {i: Score(0.0, True) for i, (_, after) in enumerate(pairs) if not after}
    order = sorted((i for i in range(len(rows)) if i not in found), key=lambda i: -len(rows[i]))
    while order:
        width = len(rows[order[0]]) - 1
        many = max(1, min(batch, _LOGITS_AT_A_TIME // (width * run.model.vocab_size)))
        some, order = order[:many], order[many:]
        lasts = [min(len(pairs[i][1]), context) for i in some]
        found |= zip(some, _scores(run, [rows[i] for i in some], lasts), strict=True)
    return [found[i] for i in range(len(rows))]


@torch.inference_mode()
def _scores(run: LoadedRun, rows: list[list[int]], lasts: list[int]) -> list[Score]:
    """Of each row's last tokens, so many. Rows are padded on the right, which no position before sees."""
    tokens = torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = torch.tensor(row)
    tokens = tokens.to(run.machine.device)
    with run.computing():
        logits = run.model(tokens[:, :-1])
    return [
        _of(logits[b, len(row) - 1 - n : len(row) - 1], tokens[b, len(row) - n : len(row)])
        for b, (row, n) in enumerate(zip(rows, lasts))
    ]


def _of(logits: Tensor, targets: Tensor) -> Score:  # (n, V), (n,)
    chances = logits.float().log_softmax(-1).gather(-1, targets[:, None])
    return Score(float(chances.double().sum()), bool((logits.argmax(-1) == targets).all()))
