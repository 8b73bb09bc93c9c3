"""The picture of a sweep in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from muonlab.cli.progress import SweepDisplay
from muonlab.lab.run.pool import Event


def shown(display, height):
    display.console = Console(file=io.StringIO(), force_terminal=True, width=100, height=height)
    with display.console.capture() as caught:
        display.console.print(display._render())
    return caught.get().splitlines()


def test_a_low_window_shows_the_arms_at_work_and_the_last_line():
    cells = [f"arm{i:02}" for i in range(30)]
    for seeds in ([1, 2], list(range(50))):
        display = SweepDisplay(cells, seeds)
        for cell in cells[:20]:
            display.state[cell, 1] = Event(cell, 1, "finished")
        display.state["arm25", 1] = Event("arm25", 1, "started")
        lines = shown(display, 24)
        assert [line.split()[0] for line in lines[1:-1]] == ["arm25"]
        assert f"and 29 more arms; 20/{30 * len(seeds)} runs" in lines[-1]
        assert len(shown(display, 40)) == 32
        display.over = True
        assert len(shown(display, 24)) == 32


def test_what_has_ended_is_told_once(capsys):
    display = SweepDisplay(["a"], [1])
    for _ in range(3):  # the rounds of a search
        display.hear(Event("a", 1, "finished"))
        display.hear(Event("a", 1, "finished"))
    display.hear(Event("a", 2, "started"))
    display.hear(Event("a", 2, "finished"))
    display.hear(Event("a", 2, "finished"))
    said = capsys.readouterr().err
    assert said.count("seed 2: finished") == 1
    assert "seed 1" not in said
    assert display.already == 1
