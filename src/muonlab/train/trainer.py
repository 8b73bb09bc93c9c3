"""The training loop's parts: what changes during a run, one step of it, an evaluation, a checkpoint."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from muonlab.data import corpus
from muonlab.data.corpus import Corpus
from muonlab.data.loader import Batch, Loader, validation_batches
from muonlab.data.packing import PackedLoader, packed_validation_batches
from muonlab.data.prepared import Documents
from muonlab.errors import InputError
from muonlab.optim.precision import bf16_is_fast, pin
from muonlab.streams import stream_seed
from muonlab.train.checkpoint import Checkpoint, own, tensors_of
from muonlab.train.recipe import Recipe
from muonlab.train.threads import default_threads


@dataclass(frozen=True)
class Machine:
    """What a run is computed on and how: decided once, recorded, and kept by a resume."""

    device: str
    precision: Literal["float32", "bf16"]
    threads: int
    bf16_fast: bool  # whether orthogonalizers compute their products in bf16
    accumulate: int | None = None  # what was found for train.accumulate = "auto" (batch_size.fitted); None: the recipe says it


def choose_machine(recipe: Recipe, device: str | None = None, threads: int | None = None, bf16_fast: bool | None = None) -> Machine:
    """The device asked for, or CUDA where there is one; bf16 where the device is fast at it (measured, unless given).

    Raises InputError for a device that is not there.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    kind = torch.device(name).type
    threads = threads or default_threads()
    torch.set_num_threads(threads)
    fast = bf16_is_fast(kind) if bf16_fast is None else bf16_fast
    precision = recipe.train.precision
    if precision == "auto":
        precision = "bf16" if fast else "float32"
    return Machine(name, precision, threads, fast)


def check_device(name: str) -> None:
    """Raises InputError for a device that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    kind = torch.device(name).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if kind == "cuda" and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")


def batches(recipe: Recipe, text: Corpus, seed: int, accumulate: int = 1) -> tuple[Loader | PackedLoader, list[Batch]]:
    """The training loader and the validation batches, of the size of a micro-batch. Raises InputError where recipe and corpus do
    not fit."""
    config, settings = recipe.model, recipe.train
    vocabulary = config.vocab_size or text.vocab_size
    if recipe.data.source != "bin" and vocabulary < text.vocab_size:
        raise InputError(f"model.vocab_size: expected at least the tokenizer's {text.vocab_size}, got {vocabulary}")
    context, micro, train, held = config.context, -(-settings.batch // accumulate), text.train, text.validation
    if isinstance(train, Documents):
        loader = PackedLoader(train, context=context, batch=settings.batch, seed=seed)
    else:
        loader = Loader(train, context=context, batch=settings.batch, seed=seed)
    choose = packed_validation_batches if isinstance(held, Documents) else validation_batches
    return loader, choose(held, context=context, batch=micro, tokens=settings.eval_tokens)  # pyright: ignore[reportArgumentType]


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """What a loss is computed in: bf16 autocast on this device, or nothing special."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


class Trainer:
    """Model, optimizer and data of one run. Raises InputError where recipe and data do not fit."""

    def __init__(self, recipe: Recipe, seed: int, machine: Machine) -> None:
        self.recipe, self.seed, self.machine = recipe, seed, machine
        self.step = 0
        torch.set_num_threads(machine.threads)
        pin(torch.device(machine.device).type, machine.bf16_fast)
        torch.manual_seed(stream_seed(seed, "torch"))  # nothing here draws from it; a user's model may
        text = corpus.load(recipe.data)
        self.data, self.tokenizer = text.provenance, text.tokenizer
        parts = machine.accumulate or recipe.train.accumulate
        if parts == "auto":
            raise ValueError("train.accumulate: auto is for batch_size.fitted to find, before there is a trainer")
        self.accumulate = parts
        self.loader, self.validation = batches(recipe, text, seed, self.accumulate)
        self.model = recipe.model.build(text.vocab_size)
        self.model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
        if isinstance(self.loader, PackedLoader) and not self.model.keeps_documents_apart():
            family = recipe.model.family  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(f"data.source: the model family {family} cannot keep packed documents apart (its forward takes none)")
        self.model.to(machine.device)
        try:
            self.optimizer = recipe.optimizer.build(self.model)
        except ValueError as error:
            raise InputError(f"optimizer: {error}") from None
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.loss = torch.compile(self.model.loss) if recipe.train.compile else self.model.loss

    @property
    def lr(self) -> float:
        """The learning rate of the hidden matrices in the last step."""
        groups = self.optimizer.param_groups
        return next((g for g in groups if g["rule"] == self.recipe.optimizer.name), groups[0])["lr"]

    def train_step(self, parts: int | None = None) -> Tensor:
        """One optimizer step. Returns the mean training loss of its batch over the targets that count, before the step (a scalar on
        the device). parts: so many micro-batches only, for a rehearsal."""
        settings = self.recipe.train
        factor = self.recipe.schedule.factor(self.step, settings.steps)
        scalars = self.recipe.schedule.scalars_at(self.step, settings.steps)
        blocks = self.recipe.model.window_blocks
        if self.recipe.schedule.windows is not None and blocks is not None:
            self.model.set_window(self.recipe.schedule.window_at(self.step, settings.steps, blocks))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            group.update({key: value for key, value in scalars.items() if key in group})
        batch = self.loader.next()
        count, total = batch.counted(), torch.zeros((), device=self.machine.device)
        for part in batch.split(self.accumulate)[:parts]:
            loss = self._loss(self._on_device(part)) * (part.counted() / count)  # the mean is the whole batch's, however split
            loss.backward()
            total += loss.detach()
        if settings.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def rehearse(self) -> None:
        """Whatever needs memory in a run, once: steps (the second finds the state that the first made, and its second micro-batch
        the gradients of the first), an evaluation, the copies that a checkpoint takes. The trainer is of no use afterwards."""
        self.step = max(0, self.recipe.train.steps - 2)  # where windows are longest
        for _ in range(2):
            self.train_step(parts=2)
        self.validation = self.validation[:1]
        self.evaluate()
        for tensors in tensors_of(self.checkpoint({})).values():
            own(tensors)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss in nats per token over the fixed validation tokens that count."""
        self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=self.machine.device), 0
        for batch in self.validation:
            total += self._loss(self._on_device(batch)).double() * batch.counted()
            count += batch.counted()
        self.model.train()
        return (total / count).item()

    def _loss(self, batch: Batch) -> Tensor:
        """The mean over the targets that count."""
        documents = () if batch.documents is None else (batch.documents,)
        with autocast(self.machine.device, self.machine.precision):
            return self.loss(batch.inputs, batch.targets, *documents)

    def _on_device(self, batch: Batch) -> Batch:
        largest = max(int(batch.inputs.max()), int(batch.targets.max()))
        if largest >= self.model.vocab_size:
            raise InputError(f"model.vocab_size: expected more than the largest token, {largest}, got {self.model.vocab_size}")
        if self.machine.device == "cpu":
            return batch
        moved = (t if t is None else t.contiguous().pin_memory().to(self.machine.device, non_blocking=True) for t in batch)
        return Batch(*moved)  # pyright: ignore[reportArgumentType]

    # -- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint(self, progress: dict[str, Any]) -> Checkpoint:
        """All that changes during a run, with what the caller wants to find again in `progress`."""
        random = {"cpu": torch.get_rng_state()}
        if torch.device(self.machine.device).type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.machine.device)
        progress = {**progress, "step": self.step, "skipped": self.optimizer.skipped, "loader": self.loader.state_dict()}
        return Checkpoint(self.model.state_dict(), self.optimizer.state_dict(), random, progress)

    def restore(self, checkpoint: Checkpoint) -> float:
        """Takes over everything but the recipe. Returns the seconds trained so far."""
        self.model.load_state_dict(checkpoint.model)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # rates are ours, not a scheduler's by place
            self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.random["cpu"])
        if "cuda" in checkpoint.random and torch.device(self.machine.device).type == "cuda":
            torch.cuda.set_rng_state(checkpoint.random["cuda"], self.machine.device)
        self.loader.load_state_dict(checkpoint.progress["loader"])
        self.step = checkpoint.progress["step"]
        self.optimizer.skipped = checkpoint.progress.get("skipped", 0)  # not in checkpoints of before there was this count
        return checkpoint.progress["seconds"]
