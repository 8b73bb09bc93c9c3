"""`muonlab bench`: how fast the optimizer's step is on this machine. Heavy imports wait until the command needs them."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from muonlab.cli.app import OPTIMIZERS, app, positive, say, show
from muonlab.cli.flags import Device, Json
from muonlab.errors import InputError
from muonlab.files import write_atomically
from muonlab.names import choose

if TYPE_CHECKING:
    from muonlab.optim.bench.report import Asked


@app.command(group=OPTIMIZERS)
def bench(
    *,
    sets: Annotated[str | None, Parameter(help="of matrices, such as gpt2-small,llama-8b; default: those for the device")] = None,
    device: Device = None,
    rounds: Annotated[int | None, Parameter(help="steps of each, of which the median counts; default 15")] = None,
    compiled: Annotated[bool, Parameter(help="also compiled steps; compiling takes minutes", negative=())] = False,
    tiny: Annotated[bool, Parameter(help="tiny sizes: does it run at all?", negative=())] = False,
    out: Annotated[Path | None, Parameter(help="JSON file, written again after each set")] = None,
    json: Json = False,
) -> None:
    """Measure one optimizer step here, against torch.optim.Muon, and say which way of taking it to choose.

    Interleaved rounds, medians. On a GPU by its events: plain, in a CUDA graph, with the Triton kernel.
    Ctrl-C shows what was measured so far.
    """
    positive("--rounds", rounds)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out: expected a file in a folder that is there, got {out}")
    asked = _asked(sets, device, rounds, compiled, tiny)

    from muonlab.optim.bench.report import run, text
    from muonlab.optim.bench.rivals import rivals

    everybody = rivals()
    latest: dict[str, Any] = {}

    def write(found: dict[str, Any]) -> None:
        latest.update(found)
        if out is not None:
            write_atomically(out, dumps(found, indent=1) + "\n")
        measured = ", ".join(found["sets"])
        say(f"measured so far: {measured or 'nothing'}")

    try:
        found = run(asked, everybody, write)
    except KeyboardInterrupt:
        if latest:
            show(latest, json, lambda: text(latest, everybody))
        raise
    show(found, json, lambda: text(found, everybody))


def _asked(sets: str | None, device: str | None, rounds: int | None, compiled: bool, tiny: bool) -> Asked:
    import torch

    from muonlab.optim.bench.report import Asked
    from muonlab.optim.bench.shapes import SETS, default_sets

    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA raises AssertionError
        why = str(error).partition("\n")[0]
        raise InputError(f"--device: expected a device that torch can use here, got {found!r}: {why}") from None
    names = [name.strip() for name in sets.split(",")] if sets else []
    for name in names:
        try:
            choose("set", name, SETS)
        except ValueError as error:
            raise InputError(f"--sets: {error}") from None
    return Asked(names or default_sets(found, tiny), found, rounds or (2 if tiny else 15), tiny, compiled)
