"""`muonlab export`: a trained model taken along. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from muonlab.cli.app import MODELS, app, say, show
from muonlab.cli.flags import Json, Weights


@app.command(group=MODELS)
def export(
    run: Path,
    *,
    to: Annotated[Literal["safetensors", "hf"], Parameter(help="for muonlab, or for transformers with the model's code (gpt)")],
    out: Annotated[Path, Parameter(help="a new folder")],
    weights: Weights = Weights(),
    json: Json = False,
) -> None:
    """Write a run's model into a folder of its own: weights, sizes, tokenizer, and how to load them.

    Parameters
    ----------
    run:
        Folder of a run.
    """
    from muonlab.evaluate.export import export as write
    from muonlab.evaluate.export import refuse_taken
    from muonlab.evaluate.loading import load_run

    refuse_taken(out)
    loaded = load_run(run, "cpu", **vars(weights))
    files = write(loaded, out, to)
    if loaded.known_tokenizer is None:
        say(f"{run}: trained on token shards, which do not say what their tokens mean: no tokenizer is exported; see --tokenizer")
    show(
        {"run": str(run), "step": loaded.step, "to": to, "out": str(out), "files": files},
        json,
        lambda: f"{out}: the model after step {loaded.step}, {sum(files.values()):,} bytes: {', '.join(files)}",
    )
