"""Texts that a model writes after prompts: batches of prompts at once, or one with its text as it comes.

A row's random numbers are its own (of the seed, its prompt, and how often that came before), so that what it says does not depend
on the rows beside it, nor on how many there are; but for rounding, which a batch's size can change in the last bits of a logit.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from muonlab.data.tokenizers import Tokenizer, continuation
from muonlab.errors import InputError, RunError
from muonlab.evaluate.loading import LoadedRun
from muonlab.models.decoding import select
from muonlab.models.family import Model
from muonlab.streams import stream_seed

Reason = Literal["end", "stop", "max_tokens", "context"]

_LOGITS_AT_A_TIME = 1 << 26  # numbers: how much of the prompts is read at once (256 MiB)
_SHARED = 16  # tokens that all prompts must begin with before they are read once for all
_NEAR = 8  # tokens before a text that decide how it is decoded


@dataclass(frozen=True)
class Completion:
    """What followed a prompt. tokens: all that were generated, the end of the document too. reason: it came to the end of the
    document, to a stop text (left out of the text), to max_tokens, or the context of a model that has a longest one was full."""

    text: str
    tokens: int
    reason: Reason


@dataclass
class Work:
    """What was done so far, all calls together. too_long: prompts that the context has no room for. seconds: of reading prompts and
    writing."""

    prompts: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    too_long: int = 0
    seconds: float = 0.0
    reasons: Counter[Reason] = field(default_factory=Counter)

    @property
    def tokens_per_second(self) -> float:
        """Generated ones, of all rows together."""
        return self.tokens / self.seconds if self.seconds else 0.0


class TextGenerator:
    """The Generator of gsm8k.py over a model's `extend`. batch: rows that are decoded together; more take more memory."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        begins: bool = False,
        batch: int = 64,
        computing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """begins: a text begins with the token that ends a document, as those did that the model was trained on. computing: what
        logits are computed in, such as autocast."""
        self.model, self.tokenizer, self.begins, self.batch, self.computing = model, tokenizer, begins, batch, computing
        self.work = Work()

    @classmethod
    def of(cls, run: LoadedRun, *, batch: int = 64) -> TextGenerator:
        return cls(run.model, run.tokenizer, begins=run.begins, batch=batch, computing=run.computing)

    def generate(self, prompts: Sequence[str | Sequence[int]], **how: Any) -> list[str]:
        """The texts of `complete`."""
        return [completion.text for completion in self.complete(prompts, **how)]

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """What follows each prompt, a text or all tokens before; an empty one is the beginning of a document. temperature 0: the
        likeliest token each time. top_p: of the likeliest tokens, the fewest that have this probability together. Raises RunError
        for logits that are not finite, InputError for a prompt that is no text."""
        rows = self._rows(prompts, max_tokens, seed, stop)
        fitting = sorted((row for row in rows if row.reason is None), key=lambda row: -len(row.prompt))
        for start in range(0, len(fitting), self.batch):
            self._write(fitting[start : start + self.batch], temperature, top_p)
        return [self._done(row) for row in rows]

    def stream(
        self,
        prompt: str,
        show: Callable[[str], None],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Completion:
        """`complete` for one prompt; `show` is told each piece of its text as soon as no later token can change it."""
        (row,) = self._rows([prompt], max_tokens, seed, stop)
        shown = ""

        def look() -> None:
            nonlocal shown
            text = row.settled()
            if text.startswith(shown) and len(text) > len(shown):
                show(text[len(shown) :])
                shown = text

        if row.reason is None:
            self._write([row], temperature, top_p, look)
        completion = self._done(row)
        if len(completion.text) > len(shown):
            show(completion.text[len(shown) :])
        return completion

    def _rows(self, prompts: Sequence[str | Sequence[int]], max_tokens: int, seed: int, stop: Sequence[str]) -> list[_Row]:
        rows, before = [], Counter[tuple[int, ...]]()
        for prompt in prompts:
            tokens = self.prompt(prompt) if isinstance(prompt, str) else list(prompt) or [self.tokenizer.end]
            key = tuple(tokens)
            random = np.random.Generator(np.random.PCG64(stream_seed(seed, "row", key, before[key])))
            before[key] += 1
            room = sys.maxsize if self.model.longest is None else self.model.longest - len(tokens) + 1  # the last one is not read
            limit: Reason = "max_tokens" if max_tokens <= room else "context"
            row = _Row(self.tokenizer, tokens, min(max_tokens, room), limit, tuple(filter(None, stop)), random)
            if room < 1:
                row.reason = "context"
            rows.append(row)
        return rows

    def prompt(self, text: str) -> list[int]:
        """The tokens before what follows a text. Raises InputError for one that is no text."""
        try:
            tokens = self.tokenizer.encode(text).tolist()
        except UnicodeEncodeError:
            raise InputError(f"expected a prompt of Unicode text, got {text[:60]!r}") from None
        return self.begun(tokens)

    def begun(self, tokens: list[int]) -> list[int]:
        """Tokens as a document begins."""
        return [self.tokenizer.end, *tokens] if self.begins or not tokens else tokens

    def _write(self, rows: list[_Row], temperature: float, top_p: float, look: Callable[[], None] = lambda: None) -> None:
        began = time.perf_counter()
        with torch.inference_mode(), self.computing():  # one for all tokens: autocast then converts each weight once
            decoding = _Decoding(self.model, rows, self.tokenizer.vocab_size)
            while decoding.step(temperature, top_p):
                look()
        self.work.seconds += time.perf_counter() - began

    def _done(self, row: _Row) -> Completion:
        assert row.reason is not None
        self.work.prompts += 1
        self.work.prompt_tokens += len(row.prompt)
        self.work.tokens += len(row.tokens)
        self.work.too_long += row.most < 1
        self.work.reasons[row.reason] += 1
        return Completion(row.text(), len(row.tokens), row.reason)


@dataclass
class _Row:
    """A prompt and what follows it. limit: why it ends when `most` tokens are there."""

    tokenizer: Tokenizer
    prompt: list[int]
    most: int
    limit: Reason
    stop: tuple[str, ...]
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    reason: Reason | None = None
    said: str = ""

    def take(self, token: int) -> None:
        self.tokens.append(token)
        if token == self.tokenizer.end:
            self.reason = "end"
        elif self.stop and self._stops():
            self.reason = "stop"
        elif len(self.tokens) == self.most:
            self.reason = self.limit

    def text(self) -> str:
        """Up to the first stop text."""
        text = continuation(self.tokenizer, self.prompt, self.tokens)
        ends = [at for at in map(text.find, self.stop) if at >= 0]
        return text[: min(ends)] if ends else text

    def settled(self) -> str:
        """The part that stays whatever comes: without a character that is not whole yet, or what a stop text may begin with."""
        text = self.text().rstrip("\ufffd")
        held = (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        text = text[: len(text) - max(held, default=0)]
        if len(text) > len(self.said):  # a run of byte tokens that is not whole takes its characters back for a while
            self.said = text
        return self.said

    def _stops(self) -> bool:
        """Has a stop text come? Looks at the end alone, and at all only if there is one: texts are long."""
        last = 4 * max(map(len, self.stop)) + 8  # a token is at least a byte
        before = [*self.prompt[-_NEAR:], *self.tokens[:-last]][-_NEAR:]
        end = continuation(self.tokenizer, before, self.tokens[-last:])
        if not any(stop in end for stop in self.stop):
            return False
        text = continuation(self.tokenizer, self.prompt, self.tokens)
        return any(stop in text for stop in self.stop)


class _Decoding:
    """A batch of rows: their prompts are read, then each step gives every row a token. Rows that end are dropped."""

    def __init__(self, model: Model, rows: list[_Row], vocabulary: int) -> None:
        """vocabulary: the tokenizer's; rows of the head beyond it mean nothing, and are never chosen."""
        self.model, self.rows, self.vocabulary = model, rows, vocabulary
        self.device = next(model.parameters()).device
        self.states: Any = None
        self.logits = self._read()

    def step(self, temperature: float, top_p: float) -> bool:
        """Gives each row its next token. Returns whether there are rows left."""
        if not torch.isfinite(self.logits).all():
            raise RunError("the model's logits are not finite: it diverged, or its precision is too low")
        for row, token in zip(self.rows, self._choose(temperature, top_p), strict=True):
            row.take(token)
        alive = [i for i, row in enumerate(self.rows) if row.reason is None]
        if len(alive) < len(self.rows):
            self.rows = [self.rows[i] for i in alive]
            if not alive:
                return False
            self.states = select(self.states, torch.tensor(alive, device=self.device))
        newest = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.device)
        logits, self.states = self.model.extend(newest, self.states)
        self.logits = logits[:, 0, : self.vocabulary]
        return True

    def _choose(self, temperature: float, top_p: float) -> list[int]:
        if temperature == 0:
            return self.logits.argmax(-1).tolist()
        uniform = torch.tensor([row.random.random() for row in self.rows], dtype=torch.float64, device=self.device)
        return sample(self.logits, uniform, temperature=temperature, top_p=top_p).tolist()

    def _read(self) -> Tensor:
        """Reads the prompts. Returns the logits (B, vocabulary) for what comes next."""
        prompts = [row.prompt for row in self.rows]
        shared = _shared(prompts)
        if len(prompts) > 1 and shared >= _SHARED:
            self._pieces(torch.tensor([prompts[0][:shared]]), torch.tensor([shared]))
            self.states = select(self.states, torch.zeros(len(prompts), dtype=torch.int64, device=self.device))
        else:
            shared = 0
        lengths = torch.tensor([len(prompt) - shared for prompt in prompts])
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt) - shared] = torch.tensor(prompt[shared:])
        return self._pieces(tokens, lengths)

    def _pieces(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Reads tokens (B, T), of row b the first lengths[b], in pieces whose logits fit into memory. Returns each row's last."""
        tokens, lengths = tokens.to(self.device), lengths.to(self.device)
        width = max(1, _LOGITS_AT_A_TIME // (len(tokens) * self.model.vocab_size))
        every, last = torch.arange(len(tokens), device=self.device), torch.empty(0)
        for start in range(0, tokens.shape[1], width):
            piece = tokens[:, start : start + width]
            here = (lengths - start).clamp(0, piece.shape[1])
            whole = bool((here == piece.shape[1]).all())
            logits, self.states = self.model.extend(piece, self.states, None if whole else here)
            found = logits[every, (here - 1).clamp(min=0), : self.vocabulary]
            last = found if start == 0 else torch.where((here > 0)[:, None], found, last)
        return last


def sample(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float = 1.0) -> Tensor:
    """Tokens (B,) drawn from logits (B, V), one for each number of `uniform` (B,) float64 in [0, 1).

    top_p: nucleus sampling (arXiv:1904.09751): the fewest likeliest tokens whose probabilities reach it, in their proportions.
    """
    logits = logits.double()
    chances = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    order = None
    if top_p < 1:
        chances, order = chances.sort(dim=-1, descending=True, stable=True)
        chances = chances * (chances.cumsum(-1) - chances < top_p)
    total = chances.cumsum(-1)
    token = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)  # u < 1, so that u·total < total, rounded too
    return (token if order is None else order.gather(-1, token))[:, 0]


def _shared(prompts: list[list[int]]) -> int:
    """With how many tokens all prompts begin; each keeps one of its own."""
    least = min(map(len, prompts)) - 1
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*(prompt[:least] for prompt in prompts))))
