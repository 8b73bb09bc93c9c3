"""Flags that several commands have, each written once: alone, or as a dataclass whose fields are flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from muonlab.cli.app import positive
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.evaluate.gsm8k import Sampling
    from muonlab.evaluate.loading import LoadedRun

Set = Annotated[
    list[str] | None,
    Parameter(name="--set", help="KEY=VALUE, a dotted key of the recipe such as optimizer.lr=0.02; may be repeated", negative=()),
]
Profile = Annotated[str | None, Parameter(help="one of the file's profiles, such as gpu")]
Device = Annotated[str | None, Parameter(help="cpu, cuda or cuda:N; default: CUDA where there is one")]
Json = Annotated[bool, Parameter(name="--json", help="print JSON", negative=())]
Threads = Annotated[int | None, Parameter(help="CPU threads; default: OMP_NUM_THREADS, else the cores that are idle")]
TemplateText = Annotated[
    str | None, Parameter(name="--template", help="a Jinja template of the prompt, or a file with one; default: the run's own")
]
Batch = Annotated[int, Parameter(help="texts that are written at once; more are faster, and take more memory")]


def listed(flag: str, names: str) -> tuple[str, ...]:
    """From "a, b" ("a", "b"): how --columns and --tasks name several. Raises InputError where one is empty."""
    found = tuple(name.strip() for name in names.split(","))
    if not all(found):
        raise InputError(f"{flag}: expected names of {flag[2:]}, with commas between them, got {names!r}")
    return found


@Parameter(name="*")
@dataclass(frozen=True)
class Weights:
    """Which of a run's weights."""

    checkpoint: Annotated[str, Parameter(help="last, best (of the lowest validation loss; train.keep_best), or a step")] = "last"
    tokenizer: Annotated[str | None, Parameter(help="for runs on token shards, which do not say what their tokens mean")] = None


@Parameter(name="*")
@dataclass(frozen=True)
class Loading(Weights):
    """Which of a run's weights, and what computes with them."""

    device: Device = None
    threads: Threads = None

    def how(self) -> dict[str, Any]:
        """Raises InputError for a number of threads that is none."""
        positive("--threads", self.threads)
        return vars(self)

    def load(self, run: Path) -> LoadedRun:
        """Raises InputError for what cannot be loaded."""
        from muonlab.evaluate.loading import load_run

        return load_run(run, **self.how())


@Parameter(name="*")
@dataclass(frozen=True)
class Writing:
    """How texts are written."""

    max_tokens: Annotated[int | None, Parameter(help="longest text; default: 200, of answers 512")] = None
    temperature: Annotated[
        float | None, Parameter(help="0: the likeliest token each time; default: 0.8, of one answer 0, of several 0.7")
    ] = None
    top_p: Annotated[float, Parameter(help="choose among the likeliest tokens that have this probability together")] = 1.0
    seed: int = 0

    def sampling(self, *, max_tokens: int, temperature: float, **further: Any) -> Sampling:
        """max_tokens, temperature: where none is given."""
        from muonlab.evaluate.gsm8k import Sampling

        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        found = {"max_tokens": max_tokens, "temperature": temperature} | {k: v for k, v in given.items() if v is not None}
        return Sampling(**found, top_p=self.top_p, seed=self.seed, **further)


@Parameter(name="*")
@dataclass(frozen=True)
class Launch:
    """Where many runs are computed, and where they are kept."""

    set: Set = None
    out: Annotated[Path | None, Parameter(help="folder of the runs; default: runs/NAME, of a race runs/NAME-race")] = None
    workers: Annotated[
        int | None,
        Parameter(help="processes at once; default: one a core (CPU), or up to four where the GPU's memory allows (CUDA)"),
    ] = None
    device: Device = None

    def overrides(self) -> tuple[str, ...]:
        return tuple(self.set or ())

    def how(self) -> dict[str, Any]:
        """Raises InputError for a number of workers that is none."""
        positive("--workers", self.workers)
        return {"workers": self.workers, "device": self.device}
