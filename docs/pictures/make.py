"""The pictures of the documentation, from what the commands really print: python docs/pictures/make.py [NAME ...]

plan.svg      what the first program of tutorials/five-lines.md prints
progress.svg  a sweep at work, taken when four of its nine runs have ended
report.png    the report of the runs of tutorials/better.md; needs chromium, or is left as it is
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")


def first_program(page: str) -> str:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert found is not None, page
    return found[1]


def run_program(page: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(first_program(page), page, "exec"), {"__name__": "__main__"})
    return out.getvalue()


def save(name: str, title: str, *shown: RenderableType, width: int) -> None:
    """A terminal window. The template's fonts come from the network: the picture takes those that are there."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False)
    for one in shown:
        console.print(one, soft_wrap=isinstance(one, Text))
    svg = console.export_svg(title=title, unique_id=name)
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    lines = [line.rstrip() for line in svg.splitlines()]
    (HERE / f"{name}.svg").write_text("\n".join(lines) + "\n")


def plan() -> None:
    printed = run_program("tutorials/five-lines.md").splitlines()[:-1]  # all but the loss
    save("plan", "print(opt.plan)", Text("\n".join(printed)), width=max(map(len, printed)))


def progress() -> None:
    from rich.live import Live

    from muonlab.cli import progress as cli

    frames: list[Any] = []

    class Terminal(Console):
        def __init__(self) -> None:
            super().__init__(file=io.StringIO(), force_terminal=True, width=90, height=25, highlight=False)

    class Watched(Live):
        def get_renderable(self) -> RenderableType:
            frame = super().get_renderable()
            text = io.StringIO()
            Console(file=text, width=90).print(frame)
            if "4/9 runs" in text.getvalue() and text.getvalue().count("%") == 2:
                frames.append(frame)
            return frame

    cli.Log, cli.Live = Terminal, Watched  # type: ignore[misc]
    command = ["sweep", str(ROOT / "experiments/quickstart.toml"), "--workers", "2"]
    run_command([*command, "--set", f"train.steps={STEPS}"])
    said = "$ muonlab sweep experiments/quickstart.toml --workers 2"
    save("progress", "muonlab sweep", Text(said), frames[len(frames) // 2], width=70)


STEPS = int(os.environ.get("STEPS", "300"))  # of each run of the sweep


def report() -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print("report.png: no chromium here, so it is left as it is", file=sys.stderr)
        return
    run_program("tutorials/better.md")
    run_command(["report", "runs/log"])
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,1150", "--virtual-time-budget=8000"]
    page = Path("runs/log/report/report.html").resolve()
    subprocess.run([*command, f"--screenshot={HERE / 'report.png'}", page.as_uri()], check=True, capture_output=True)


def run_command(command: list[str]) -> None:
    from muonlab.cli.console import run

    with contextlib.redirect_stdout(io.StringIO()):
        code = run(command)
    assert code == 0, command


PICTURES: dict[str, Callable[[], None]] = {"plan": plan, "progress": progress, "report": report}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    for name in sys.argv[1:] or PICTURES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            PICTURES[name]()
