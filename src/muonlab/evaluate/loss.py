"""The loss of a run on what it held out, or on other prepared data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from muonlab.data import corpus
from muonlab.data.corpus import Text
from muonlab.data.loader import Batch, to_batch
from muonlab.data.overlap import counted, in_words
from muonlab.data.packing import WINDOW, pack, packed_batch
from muonlab.data.prepared import Documents, open_prepared
from muonlab.errors import InputError, RunError
from muonlab.evaluate.loading import LoadedRun
from muonlab.evaluate.seen import trained_keys
from muonlab.train.run_folder import RunFolder

_TOKENS_AT_A_TIME = 1 << 14


def evaluate_loss(
    run: LoadedRun,
    data: str | Path | None = None,
    *,
    split: Literal["validation", "train"] = "validation",
    tokens: int | None = None,
    on_progress: Callable[[float, float], None] = lambda share, rate: None,
) -> dict[str, Any]:
    """Mean cross-entropy in nats of the targets that count, as training evaluates it. seen: how many of the documents ("rows" of
    "of") are training documents; None where nobody counted. remarks: what to know of the figure.

    data: a folder that `muonlab data prepare` made; None: the run's own, of which `recorded` is what training found at this step.
    tokens: as train.eval_tokens; default: as many as in training, or all of other data. on_progress: is told the share that is done
    and tokens a second. Raises InputError for data of another tokenizer, and where there is none; RunError for a loss that is not
    finite.
    """
    text, seen, remarks = _own(run, split) if data is None else _other(run, data, split)
    as_trained = data is None and tokens is None
    rows = _rows(text, run.context, run.recipe.train.eval_tokens if as_trained else tokens)
    total, count, done, began = 0.0, 0, 0, time.perf_counter()
    for batch in _batches(text, rows, run.context):
        counted = batch.counted()
        total, count, done = total + _loss(run, batch) * counted, count + counted, done + len(batch.inputs)
        on_progress(done / len(rows), count / (time.perf_counter() - began))
    if not count:
        raise InputError(f"{data or run.folder}: no target counts in the {split} part: the answers lie beyond the tokens asked for")
    loss, seconds = total / count, time.perf_counter() - began
    if not math.isfinite(loss):
        raise RunError(
            f"{run.folder}, step {run.step}: expected a finite loss, got {loss}: the run diverged, or {run.machine.precision} does "
            "not hold its logits; choose an earlier step with --checkpoint"
        )
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "targets": count,
        "rows": len(rows),
        "recorded": _recorded(run).get(run.step) if as_trained and split == "validation" else None,
        "seen": seen,
        "remarks": remarks + ([f"{words}: this is not the loss of unseen text"] if (words := in_words(seen, "documents")) else []),
        "seconds": seconds,
        "tokens_per_second": len(rows) * run.context / seconds,
    }


_Known = tuple[Text, dict[str, int] | None, list[str]]  # the text, how much of it was trained on, and what to know of it


def _own(run: LoadedRun, split: str) -> _Known:
    data = run.recipe.data
    try:
        text = corpus.load(data)
    except InputError as error:
        moved = any(not Path(name).is_absolute() for name in (*data.files, *data.validation_files))
        there = "its paths are relative to where the run was trained: give the command there, or name" if moved else "name"
        raise InputError(*error.problems, f"{run.folder}: the data that it was trained on cannot be read; {there} --data") from None
    if text.provenance["sha256"] != run.described["data"]["sha256"]:
        raise InputError(f"{run.folder}: its corpus has changed since it was trained (SHA-256 differs): name --data")
    if split == "train":
        return text.train, None, []
    return text.validation, run.described["data"].get("seen"), []


def _other(run: LoadedRun, data: str | Path, split: str) -> _Known:
    prepared, known = open_prepared(data), run.tokenizer
    theirs = prepared.manifest["tokenizer"]
    if theirs["sha256"] != known.sha256:
        raise InputError(
            f"{data}: prepared with another tokenizer ({theirs['name']}, {theirs['vocab_size']:,} tokens) than the model's "
            f"({known.name}, {known.vocab_size:,}): prepare it again with --tokenizer {run.folder / 'tokenizer.json'}"
        )
    remarks = []
    if prepared.begins != run.begins and run.described["data"].get("manifests"):
        form, own = (f"{'' if begins else 'do not '}begin with the end token" for begins in (prepared.begins, run.begins))
        remarks = [f"{data}: documents {form}, and those that the run was trained on {own}: their first tokens weigh on the loss"]
    trained = trained_keys(run.described) if prepared.begins else None
    seen = None if trained is None else counted(prepared.prompts(split), trained)
    return prepared.validation if split == "validation" else prepared.train, seen, remarks


def _recorded(run: LoadedRun) -> dict[int, float]:
    """{step: val_loss} that the run wrote down."""
    return {row["step"]: row["val_loss"] for row in RunFolder(run.folder).rows() if row.get("val_loss") is not None}


def _rows(text: Text, context: int, tokens: int | None) -> list[Any]:
    """Packed rows, or windows, in the order that training evaluates them."""
    if isinstance(text, Documents):
        sizes = text.sizes()
        rows: list[Any] = []
        for start in range(0, len(text), WINDOW):
            rows += pack(sizes, np.arange(start, min(start + WINDOW, len(text))), context)
    else:
        rows = [segment[i : i + context + 1] for segment in text for i in range(0, len(segment) - context, context)]
    if not rows:
        raise InputError(
            "no text to evaluate on: nothing is held out there, or less than a row; name other --data, or --split train"
        )
    wanted = len(rows) if tokens is None else tokens // context
    if not 1 <= wanted <= len(rows):
        raise InputError(f"--tokens: expected {context} (one row) to {len(rows) * context} (all), got {tokens}")
    return rows[:wanted]


def _batches(text: Text, rows: list[Any], context: int) -> Iterator[Batch]:
    size = max(1, _TOKENS_AT_A_TIME // context)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield packed_batch(text, some, context) if isinstance(text, Documents) else to_batch(some)


@torch.no_grad()
def _loss(run: LoadedRun, batch: Batch) -> float:
    if not batch.counted():
        return 0.0
    largest = max(int(batch.inputs.max()), int(batch.targets.max()))
    if largest >= run.model.vocab_size:
        raise InputError(
            f"the data has the token {largest}, and the model knows {run.model.vocab_size}: it is of another tokenizer"
        )
    inputs, targets, *documents = (tensor.to(run.machine.device) for tensor in batch if tensor is not None)
    with run.computing():
        return run.model.loss(inputs, targets, *documents).item()
