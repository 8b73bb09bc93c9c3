"""One run from its first step to its result, in its folder; or from its newest checkpoint on."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from muonlab.data import corpus
from muonlab.data.packing import PackedLoader
from muonlab.errors import InputError, Interrupted, RunError
from muonlab.files import write_atomically
from muonlab.models.counting import size_of
from muonlab.train import checkpoint as checkpoints
from muonlab.train.batch_size import fitted, out_of_memory
from muonlab.train.memory import keep_freed_memory
from muonlab.train.provenance import provenance
from muonlab.train.recipe import Recipe
from muonlab.train.run_folder import RunFolder, best_evaluation, latest, write_json
from muonlab.train.session import session
from muonlab.train.settings import flat
from muonlab.train.signals import StopRequest, stop_requests
from muonlab.train.tracking import Tracking, check_trackers
from muonlab.train.trainer import Machine, Trainer, check_device, choose_machine

_AUDITED = 10  # the step that is audited: the first ones begin from zeros


@dataclass(frozen=True)
class Progress:
    """What a run tells while it runs."""

    step: int
    steps: int
    train_loss: float | None
    val_loss: float | None
    tokens_per_second: float
    seconds_left: float


def train(
    recipe: Recipe,
    seed: int,
    out: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    bf16_fast: bool | None = None,
    resume: bool = False,
    trackers: Sequence[str] = (),
    memory_limit: int | None = None,
    audit: bool = False,
    on_begin: Callable[[], None] = lambda: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains in the folder `out` and returns the content of its result.json.

    With `resume` a folder's unfinished run goes on exactly where its newest whole checkpoint is (bit for bit on the same CPU), a
    finished one returns its result, and an empty folder starts. trackers: names of tracking.TRACKERS that get the rows, beside
    those that the run has from before. memory_limit: bytes, for train.accumulate = "auto" (batch_size.fitted). audit: say what an
    early step really did to the parameters (`Optimizer.audit`). on_begin is called when all is ready for the first step: the input
    is good, and the folder is this process's own.

    Raises InputError for bad input, Interrupted after SIGINT or SIGTERM or when the folder's stop file asks for it (everything
    saved), RunError where the folder cannot be written any more, or a gradient is not finite and `nonfinite` is "raise".
    """
    folder = RunFolder(out)
    known, result = check(recipe, seed, out, device=device, resume=resume, trackers=trackers)
    if result is not None:
        say(f"{out}: already {result['status']}")
        return result
    machine = _machine(known, recipe, device, threads, bf16_fast, say)
    machine = fitted(machine, recipe, seed, memory_limit=memory_limit, say=say)
    if machine.device == "cpu":
        keep_freed_memory()
    trainer = _trainer(recipe, seed, machine, out, say)
    if known is not None and known["data"]["sha256"] != trainer.data["sha256"]:
        raise InputError(f"{out}: the corpus has changed since the run began (SHA-256 differs): start a new run")
    with folder.lock(), stop_requests() as request, session(folder) as begin:
        if folder.run() != known:
            raise InputError(f"{out}: another process has begun a run here meanwhile: choose another folder with --out")
        if (result := folder.result()) is not None:
            say(f"{out}: already {result['status']}, by another process meanwhile")
            return result
        with _told_in_words(folder, trainer):
            if known is None:
                if trainer.tokenizer is not None:
                    write_atomically(folder.path / "tokenizer.json", trainer.tokenizer)
                write_atomically(folder.path / "recipe.toml", recipe.to_toml())
                write_json(folder.run_file, _describe(recipe, seed, trainer))
            whole = _Session(trainer, folder, request, trackers, on_progress, say, audit)
            whole.restore()
            begin(trainer.step)
            on_begin()
            return whole.run()


def _trainer(recipe: Recipe, seed: int, machine: Machine, out: str | Path, say: Callable[[str], None]) -> Trainer:
    """Model, data and optimizer; says what is to be known of the data. Raises RunError where the device has no room for them."""
    try:
        trainer = Trainer(recipe, seed, machine)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = "choose a smaller model or another device, or make room"
        raise RunError(f"{out}: cannot begin: out of memory on {machine.device}; {remedy}") from None
    if isinstance(trainer.loader, PackedLoader):
        say(f"packed: {trainer.loader.waste()}")
    for line in corpus.remarks(trainer.data):
        say(line)
    return trainer


@contextmanager
def _told_in_words(folder: RunFolder, trainer: Trainer) -> Iterator[None]:
    """What ends a run, as a RunError that says where it stopped and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        saved = checkpoints.checkpoints(folder.checkpoints)
        kept = f"{saved[0].name} is saved" if saved else "there is no checkpoint yet"
        remedy = "Mend this (make room?), then go on with --resume."
        raise RunError(f"{folder.path}: stopped at step {trainer.step}: {reason}; {kept}. {remedy}") from None
    except FloatingPointError as error:  # optimizer.nonfinite = "raise"
        raise RunError(f"{folder.path}: stopped at step {trainer.step}: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = "split batches further in a new run: --vram-auto (with a lower --memory-limit), or a larger train.accumulate"
        device = trainer.machine.device
        raise RunError(f"{folder.path}: stopped at step {trainer.step}: out of memory on {device}; {remedy}") from None


@dataclass
class _Session:
    """One process's share of a run."""

    trainer: Trainer
    folder: RunFolder
    request: StopRequest
    trackers: Sequence[str]
    on_progress: Callable[[Progress], None]
    say: Callable[[str], None]
    audit: bool = False
    seconds: float = 0.0  # of training, all sessions together; evaluation and checkpoints not counted
    rows: int = 0  # in metrics.jsonl
    train_loss: float | None = None
    val_loss: float | None = None
    best_loss: float = math.inf  # of the evaluations so far, and the step of the first that had it
    best_step: int | None = None

    def run(self) -> dict[str, Any]:
        about = flat({**self.trainer.recipe.canonical(), "seed": self.trainer.seed})
        with Tracking(self.folder, self.trackers, about, self.trainer.step, self.say) as self.tracking:
            return self._train()

    def _train(self) -> dict[str, Any]:
        trainer, settings = self.trainer, self.trainer.recipe.train
        began, first_step = time.perf_counter(), trainer.step
        while trainer.step < settings.steps:
            start = time.perf_counter()
            audit = trainer.optimizer.audit(layers=2) if self.audit and trainer.step + 1 == min(_AUDITED, settings.steps) else None
            loss = trainer.train_step()
            if audit is not None:
                self.say("\n".join([f"step {trainer.step}: {audit.summary}", *audit.doubts]))
            last = trainer.step == settings.steps
            evaluate = last or trainer.step % settings.eval_every == 0
            save = last or trainer.step % settings.checkpoint_every == 0 or self._kept_for_good(trainer.step)
            # a checkpoint must be known to be finite, and an evaluation must not be charged for the step before it
            look = evaluate or save or trainer.step % settings.log_every == 0
            if look:
                self.train_loss = loss.item()  # waits for the device
            self.seconds += time.perf_counter() - start
            if look and not self._record(evaluate):
                return self._finish("diverged")
            if save or (settings.keep_best and self.best_step == trainer.step):
                self._checkpoint()
            if look:
                done = trainer.step - first_step
                pace = (time.perf_counter() - began) / done
                rate = trainer.step * trainer.recipe.tokens_per_step / self.seconds
                left = pace * (settings.steps - trainer.step)
                self.on_progress(Progress(trainer.step, settings.steps, self.train_loss, self.val_loss, rate, left))
            if not last and (self.request.signum is not None or self.folder.stop_file.exists()):
                self._stop(self.request.signum)
        return self._finish("finished")

    def restore(self) -> None:
        saved, problems = checkpoints.load_newest(self.folder.checkpoints)
        if saved is not None:
            self.seconds = self.trainer.restore(saved)
        for problem in problems:
            self.say(f"{problem}: using step-{self.trainer.step:08d} instead")
        checkpoints.discard_after(self.folder.checkpoints, self.trainer.step)
        self.rows = self.folder.keep_rows(self.trainer.step)
        rows = self.folder.rows()
        self.train_loss = latest(rows, "train_loss")  # what a run tells that was killed before its result.json
        self.val_loss = latest(rows, "val_loss")
        if best := best_evaluation(rows):
            self.best_loss, self.best_step = best["val_loss"], best["step"]
        if saved is not None:
            lost = saved.progress["rows"] - self.rows
            if lost:
                self.say(f"{self.folder.metrics_file}: {lost} damaged rows are left out")
            self.say(f"{self.folder.path}: goes on after step {self.trainer.step}")

    def _record(self, evaluate: bool) -> bool:
        """Writes a row about this step. False if the run has diverged."""
        trainer = self.trainer
        tokens = trainer.step * trainer.recipe.tokens_per_step
        row: dict[str, Any] = {"step": trainer.step, "tokens": tokens, "seconds": self.seconds}
        row |= {"train_loss": self.train_loss, "lr": trainer.lr, **self._skipped()}
        if evaluate:
            self.val_loss = row["val_loss"] = trainer.evaluate()
            if self.val_loss < self.best_loss:
                self.best_loss, self.best_step = self.val_loss, trainer.step
        broken = [key for key in ("train_loss", "val_loss") if not math.isfinite(row.get(key) or 0.0)]
        for key in broken:
            row[key] = None  # JSON has no NaN
        row |= {"diverged": True} if broken else {}
        self.folder.append_row(row)
        self.tracking.log(row)
        self.rows += 1
        return not broken

    def _skipped(self) -> dict[str, int]:
        """Steps left out so far for a gradient that was not finite; nothing where there are none."""
        skipped = self.trainer.optimizer.skipped
        return {"skipped": skipped} if skipped else {}

    def _checkpoint(self) -> None:
        self.folder.sync_rows()
        state = self.trainer.checkpoint({"seconds": self.seconds, "rows": self.rows})
        settings = self.trainer.recipe.train
        checkpoints.save(self.folder.checkpoints, self.trainer.step, state, settings.keep_checkpoints, self._kept)

    def _kept(self, step: int) -> bool:
        """Whether a checkpoint stays, however old it is."""
        return self._kept_for_good(step) or (self.trainer.recipe.train.keep_best and step == self.best_step)

    def _kept_for_good(self, step: int) -> bool:
        every = self.trainer.recipe.train.keep_every
        return every is not None and step % every == 0

    def _stop(self, signum: int | None) -> None:
        """signum: None where the folder's stop file asked for it."""
        self._checkpoint()
        name = "`muonlab stop`" if signum is None else signal.Signals(signum).name
        where = f"{self.folder.path}: stopped by {name} after step {self.trainer.step}"
        remedy = f"the same command with --resume goes on, and so does `muonlab resume {self.folder.path}`"
        raise Interrupted(signum or signal.SIGTERM, f"{where}, saved; {remedy}")

    def _finish(self, status: str) -> dict[str, Any]:
        rows = self.folder.rows()
        losses = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
        finished = status == "finished"
        result = {
            "id": self.trainer.recipe.run_id(self.trainer.seed),
            "status": status,
            "rows": self.rows,
            "steps": self.trainer.step,
            "tokens": self.trainer.step * self.trainer.recipe.tokens_per_step,
            "seconds": self.seconds,
            "val_loss": losses[-1] if finished else None,
            "train_loss": self.train_loss if finished else None,
            "best_val_loss": min(losses, default=None),
            "weights_sha256": checkpoints.weights_sha256(self.trainer.model),
            **self._skipped(),
        }
        write_json(self.folder.result_file, result)
        return result


def check(
    recipe: Recipe, seed: int, out: str | Path, *, device: str | None = None, resume: bool = False, trackers: Sequence[str] = ()
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """All of a call of `train` that can be checked at once, before data is prepared. Returns run.json and result.json of the run
    that is in the folder, where there is one. Raises InputError."""
    check_trackers(trackers)
    folder = RunFolder(out)
    known = _check(folder, recipe, seed, resume)
    result = None if known is None else folder.result()
    device = device or (known["machine"]["device"] if known is not None else None)
    if device is not None and result is None:
        check_device(device)
    return known, result


def _check(folder: RunFolder, recipe: Recipe, seed: int, resume: bool) -> dict[str, Any] | None:
    """run.json of the run in the folder, None if there is none. Raises InputError if it is in the way."""
    known = folder.run()
    if known is None:
        if checkpoints.checkpoints(folder.checkpoints) or folder.rows():
            raise InputError(f"{folder.path}: holds a run without its run.json: delete the folder, or choose another with --out")
        return None
    if not resume:
        state = "a finished run" if folder.result() else "an unfinished run"
        raise InputError(f"{folder.path}: holds {state}: go on with --resume, or choose another folder with --out")
    if known["id"] != recipe.run_id(seed):
        before = flat({**known["recipe"], "seed": known["seed"]})
        now = flat({**recipe.canonical(), "seed": seed})
        differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        changed = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in differ)
        raise InputError(f"{folder.path}: holds another run ({changed}): choose another folder with --out")
    return known


def _machine(
    known: dict[str, Any] | None,
    recipe: Recipe,
    device: str | None,
    threads: int | None,
    bf16_fast: bool | None,
    say: Callable[[str], None],
) -> Machine:
    if known is None:
        return choose_machine(recipe, device, threads, bf16_fast)
    before = Machine(**known["machine"])
    now = choose_machine(recipe, device or before.device, threads or before.threads, before.bf16_fast)
    if (now.device, now.threads) != (before.device, before.threads):
        say(f"began on {before.device} with {before.threads} threads, goes on with {now.device} and {now.threads}: not bit for bit")
    same = (
        now.device.partition(":")[0] == before.device.partition(":")[0]
    )  # what fits is another question on another kind of device
    return replace(now, precision=before.precision, accumulate=before.accumulate if same else None)


def _describe(recipe: Recipe, seed: int, trainer: Trainer) -> dict[str, Any]:
    return {
        "format": 1,
        "id": recipe.run_id(seed),
        "seed": seed,
        "recipe": recipe.canonical(),
        "machine": {key: value for key, value in asdict(trainer.machine).items() if value is not None},
        "model": asdict(size_of(recipe.model, trainer.model.vocab_size)),
        "data": trainer.data,
        "provenance": provenance(torch.device(trainer.machine.device)),
    }
