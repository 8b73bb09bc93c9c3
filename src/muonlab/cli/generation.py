"""`muonlab generate`: what a trained run writes after a prompt. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from muonlab.cli.app import MODELS, app, say, show
from muonlab.cli.flags import Json, Loading, TemplateText, Writing
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.evaluate.generation import Completion, TextGenerator
    from muonlab.evaluate.loading import LoadedRun

Stop = Annotated[list[str] | None, Parameter(name="--stop", negative=(), help="a text that ends what is written; may be repeated")]


@app.command(group=MODELS)
def generate(
    run: Path,
    *,
    prompt: Annotated[list[str] | None, Parameter(negative=(), help="what to begin with; may be repeated")] = None,
    writing: Writing = Writing(),
    stop: Stop = None,
    template: TemplateText = None,
    loading: Loading = Loading(),
    json: Json = False,
) -> None:
    """Write what follows a prompt, as it comes; after several prompts, all of them at once.

    A run that was trained on prompts and answers gets the prompt in its own template: `--template '{{ prompt }}'` gives it as
    it stands. Without a prompt a new document begins.

    Parameters
    ----------
    run:
        Folder of a run.
    """
    from muonlab.cli.data import template_text
    from muonlab.evaluate.generation import TextGenerator
    from muonlab.evaluate.prompts import asked_by, own_template

    how = writing.sampling(max_tokens=200, temperature=0.8, stop=tuple(stop or ()))
    loaded = loading.load(run)
    used = own_template(loaded, template_text(template)) if prompt else None
    prompts = list(map(asked_by(used), prompt)) if used and prompt else (prompt or [""])
    writer = TextGenerator.of(loaded)
    arguments: dict[str, Any] = {key: getattr(how, key) for key in ("max_tokens", "temperature", "top_p", "seed", "stop")}
    if len(prompts) == 1 and not json:
        done = [writer.stream(prompts[0], _write, **arguments)]
        print(flush=True)
    else:
        done = writer.complete(prompts, **arguments)
    _none_too_long(prompts, done, loaded)
    if json or len(prompts) > 1:
        shown = [{"prompt": text, **vars(completion)} for text, completion in zip(prompts, done, strict=True)]
        found = {"run": str(run), "step": loaded.step, "completions": shown, "tokens_per_second": writer.work.tokens_per_second}
        show(found, json, lambda: "\n\n".join(f"==> {text.strip()} <==\n{one.text}" for text, one in zip(prompts, done)))
    for line in _told(writer, loaded):
        say(line)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _none_too_long(prompts: list[str], done: list[Completion], run: LoadedRun) -> None:
    for text, completion in zip(prompts, done, strict=True):
        if completion.reason == "context" and completion.tokens == 0:
            count, most = len(run.tokenizer.encode(text)), (run.model.longest or 0) - run.begins
            raise InputError(f"--prompt: expected at most {most} tokens, the model's context, got {count}: {text[:60]!r}")


def _told(writer: TextGenerator, run: LoadedRun) -> list[str]:
    work = writer.work
    lines = [f"step {run.step}: {work.tokens:,} tokens in {work.seconds:.1f} s, {work.tokens_per_second:,.0f} tokens/s"]
    if full := work.reasons["context"]:
        which = "the text ends" if work.prompts == 1 else f"{full} of {work.prompts} texts end"
        lines.append(f"{which} where the model's context of {run.model.longest} tokens is full")
    return lines
