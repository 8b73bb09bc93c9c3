"""One run or several, as they answer together: their answers vote, or their logits are averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muonlab.errors import InputError
from muonlab.evaluate.ensemble import Averaged
from muonlab.evaluate.generation import TextGenerator
from muonlab.evaluate.gsm8k import ZERO_SHOT, Prompt
from muonlab.evaluate.loading import LoadedRun, load_run
from muonlab.evaluate.prompts import asked_by, left_empty, own_template
from muonlab.train.checkpoint import weights_sha256


@dataclass
class Team:
    """models: who answers, by name, and prompts: what each is given for a problem. told: what the user should know beforehand."""

    runs: list[LoadedRun]
    together: Literal["vote", "average"] | None
    models: dict[str, TextGenerator]
    prompts: dict[str, Prompt]
    told: list[str]

    @property
    def name(self) -> str:
        names = ", ".join(str(run.folder) for run in self.runs)
        return {"vote": f"vote of {names}", "average": f"average of {names}", None: names}[self.together]

    @property
    def tokens_per_second(self) -> float:
        """Of the models one after the other."""
        work = [model.work for model in self.models.values()]
        seconds = sum(one.seconds for one in work)
        return sum(one.tokens for one in work) / seconds if seconds else 0.0

    def warnings(self) -> list[str]:
        """Texts that are not whole. Raises InputError where no prompt was short enough to be read."""
        lines = []
        for name, model in self.models.items():
            work = model.work
            if work.too_long == work.prompts:
                raise InputError(
                    f"{name}: every prompt is longer than the model's context of {model.model.longest} tokens: give fewer examples"
                )
            if work.too_long:
                lines.append(
                    f"{name}: {work.too_long} of {work.prompts} prompts are longer than the context of {model.model.longest} tokens"
                )
            if full := work.reasons["context"] - work.too_long:
                lines.append(
                    f"{name}: {full} of {work.prompts} texts end where the context of {model.model.longest} tokens is full"
                )
            if cut := work.reasons["max_tokens"]:
                lines.append(f"{name}: {cut} of {work.prompts} texts were cut off: --max-tokens allows longer ones")
        return lines

    def as_json(self) -> dict[str, Any]:
        works = [model.work for model in self.models.values()]
        reasons = sum((work.reasons for work in works), Counter[str]())
        sums = {
            key: sum(getattr(work, key) for work in works) for key in ("prompts", "prompt_tokens", "tokens", "too_long", "seconds")
        }
        return {
            "runs": [
                {"run": str(run.folder), "id": run.described["id"], "step": run.step, "precision": run.machine.precision}
                for run in self.runs
            ],
            "together": self.together,
            "work": {**sums, "tokens_per_second": self.tokens_per_second, "reasons": dict(reasons)},
        }


def gather(
    folders: Sequence[Path],
    *,
    together: Literal["vote", "average"] | None = None,
    both: bool = False,
    prompt: Prompt | None = None,
    template: str | None = None,
    checkpoint: str = "last",
    tokenizer: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = 64,
) -> Team:
    """Loads the runs. prompt: for all, in place of each run's own template. Raises InputError for runs that do not go together."""
    names = [str(folder) for folder in folders]
    if not folders:
        raise InputError("expected the folder of a run, got none")
    if both:
        raise InputError("--ensemble --average: answers vote, or logits are averaged: choose one")
    if len(folders) > 1 and together is None:
        raise InputError(f"got {len(folders)} runs: expected --ensemble (their answers vote) or --average (their logits)")
    if len(folders) == 1 and together is not None:
        raise InputError("expected several runs with --ensemble or --average, got one")
    _refuse_twice(names, [folder.resolve() for folder in folders])
    runs = [load_run(f, device, checkpoint=checkpoint, tokenizer=tokenizer, threads=threads) for f in folders]
    if together is not None:
        _refuse_twice(names, [weights_sha256(run.model) for run in runs])  # copies
    forms = {name: _form(run, prompt, template) for name, run in zip(names, runs)}
    told = [f"{name}: {text}" for name, (_, text) in forms.items() if text]
    if together != "average":
        models = {name: TextGenerator.of(run, batch=batch) for name, run in zip(names, runs)}
        return Team(runs, together, models, {name: form for name, (form, _) in forms.items()}, told)
    return Team(runs, together, {"average": _averaged(runs, batch)}, {"average": _common(forms)}, told)


def _refuse_twice(names: Sequence[str], identities: Sequence[object]) -> None:
    """Raises InputError where two runs, by name, are one: its answers would count twice."""
    first: dict[object, str] = {}
    for name, identity in zip(names, identities, strict=True):
        if identity in first:
            as_well = "" if first[identity] == name else f" (as {first[identity]}, too)"
            raise InputError(f"{name}: given twice{as_well}; for several answers of one run there is --samples")
        first[identity] = name


def _form(run: LoadedRun, prompt: Prompt | None, template: str | None) -> tuple[Prompt, str]:
    """What the run is given for a problem, and what is to be said of that."""
    if prompt is not None:
        return prompt, ""
    used = own_template(run, template)
    if used is None:
        return ZERO_SHOT, "was trained on text without prompts: it is given the question and a line end"
    ask, empty = asked_by(used), left_empty(used)
    told = f"was trained on prompts with {', '.join(empty)}, too: that stays empty" if empty else ""
    return lambda row: ask(row["question"]), told


def _averaged(runs: Sequence[LoadedRun], batch: int) -> TextGenerator:
    first, *others = runs
    for other in others:
        if other.tokenizer.sha256 != first.tokenizer.sha256:
            raise InputError(
                f"--average: {first.folder} and {other.folder} have different tokenizers; their answers can vote: --ensemble"
            )
        if other.machine.precision != first.machine.precision:
            raise InputError(f"--average: {first.folder} and {other.folder} compute in different precision; their answers can vote")
        if other.begins != first.begins:
            raise InputError(
                f"--average: of {first.folder} and {other.folder} one was trained on documents that begin with the end token; "
                "their answers can vote: --ensemble"
            )
    model = Averaged([run.model for run in runs]).eval()
    return TextGenerator(model, first.tokenizer, begins=first.begins, batch=batch, computing=first.computing)


def _common(forms: Mapping[str, tuple[Prompt, str]]) -> Prompt:
    """The one prompt of all. Raises InputError where they differ."""
    probe = {"question": "How many?", "answer": ""}
    texts = {form(probe) for form, _ in forms.values()}
    if len(texts) > 1:
        raise InputError("--average: the runs were trained on prompts of different form; give one with --template, or --ensemble")
    return next(iter(forms.values()))[0]
