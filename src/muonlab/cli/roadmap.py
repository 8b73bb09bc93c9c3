"""`muonlab eval roadmap`: a model, a larger one, ensembles, votes over samples, on the same problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from muonlab.cli.app import positive, say, show
from muonlab.cli.evaluation import evaluation
from muonlab.cli.flags import Batch, Device, Json, Profile, Threads

if TYPE_CHECKING:
    from muonlab.train.run import Progress


@evaluation.command
def roadmap(
    file: Path,
    *,
    profile: Profile = None,
    out: Annotated[Path | None, Parameter(help="folder of runs, answers and report; default: runs/NAME")] = None,
    batch: Batch = 64,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a roadmap's models where they are not trained yet, ask all the same problems, and say what each stage adds.

    The same command goes on with what was stopped. The report is OUT/report/report.md.

    Parameters
    ----------
    file:
        A roadmap file, such as roadmaps/words.toml.
    """
    from muonlab.evaluate.roadmap import load_roadmap, travel
    from muonlab.evaluate.roadmap_report import sentence, write_report

    positive("--threads", threads)
    positive("--batch", batch)
    loaded = load_roadmap(file, profile=profile)
    folder = out or Path("runs") / (file.stem if profile is None else f"{file.stem}-{profile}")
    with _Bars() as bars:
        options = {"training": bars.training, "answering": bars.answering}
        travelled = travel(loaded, folder, device=device, threads=threads, batch=batch, say=say, **options)
    judged = write_report(travelled, folder / "report")
    say(f"{folder / 'report' / 'report.md'}")
    stages = [{"name": step.stage.name, "accuracy": step.found.value, "verdict": step.verdict} for step in judged]
    words = [loaded.config.question, *(f"- {sentence(step, loaded.config.alpha)}" for step in judged)]
    show({"folder": str(folder), "stages": stages}, json, lambda: "\n".join(words))


class _Bars:
    """The bar of the run that is trained, or of the one that answers; one at a time."""

    def __init__(self) -> None:
        from contextlib import ExitStack

        self.name, self.stack = "", ExitStack()

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def training(self, name: str, progress: Progress) -> None:
        from muonlab.cli.progress import RunDisplay

        if self.name != f"train {name}":
            self.stack.close()
            self.name, self.run = f"train {name}", self.stack.enter_context(RunDisplay(name))
        self.run.update(progress)

    def answering(self, name: str, done: int, problems: int) -> None:
        from muonlab.cli.progress import EvaluationDisplay

        if self.name != f"ask {name}":
            self.stack.close()
            self.name, self.asked = f"ask {name}", self.stack.enter_context(EvaluationDisplay(name))
        self.asked.update(done / problems, f"{done}/{problems}")
