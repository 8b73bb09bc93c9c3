"""Draws docs/pictures/rooms.svg: which room may import which. `python docs/pictures/rooms.py`, after a wall was moved."""

from __future__ import annotations

from pathlib import Path

HEIGHT, GAP = 44, 26
# floors from the top: (room, what it does, left edge, width)
FLOORS = [
    [("cli", "commands: parse, call, print", 0, 900)],
    [
        ("lab.show", "reports, charts", 0, 210),
        ("lab.run", "sweeps, races, searches", 220, 210),
        ("lab.records", "", 440, 120),
        ("evaluate", "generate, GSM8K, roadmaps, export", 600, 300),
    ],
    [("lab.judge", "runs → verdicts", 0, 210), ("lab.importers", "others' logs", 220, 210), ("lab.log", "muonlab.run", 440, 120)],
    [("lab.plan", "file → arms × seeds", 0, 560)],
    [("lab.runs", "run folders as values", 0, 340), ("lab.stats", "the mathematics, no torch", 350, 210)],
    [("train", "recipe + seed → run folder, exact resume", 0, 900)],
    [
        ("optim", "Muon's family; torch alone", 0, 360),
        ("models", "GPT, nGPT, Mamba-2, hybrids", 370, 270),
        ("data", "text → tokens", 650, 250),
    ],
]
STYLE = """
.room { fill: #eef0fb; stroke: #3f51b5; stroke-width: 1.2 }
.lab { fill: #fafafa; stroke: #9e9e9e; stroke-dasharray: 5 4 }
.background { fill: #ffffff }
text { font-family: sans-serif; text-anchor: middle; fill: #1a1a1a }
.name { font-size: 15px; font-weight: 600 }
.says { font-size: 12px }
"""


def box(name: str, says: str, x: int, y: int, width: int) -> str:
    middle = x + width / 2
    lines = [f'<rect class="room" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6"/>']
    lines.append(f'<text class="name" x="{middle}" y="{y + (19 if says else 27)}">{name}</text>')
    if says:
        lines.append(f'<text class="says" x="{middle}" y="{y + 35}">{says}</text>')
    return "\n".join(lines)


def main() -> None:
    rows = []
    for floor, rooms in enumerate(FLOORS):
        rows += [box(name, says, x + 20, 14 + floor * (HEIGHT + GAP), width) for name, says, x, width in rooms]
    first, last = 1, 4  # the floors of the lab
    top = 14 + first * (HEIGHT + GAP) - 9
    height = (last - first) * (HEIGHT + GAP) + HEIGHT + 18
    rows.insert(0, f'<rect class="lab" x="8" y="{top}" width="584" height="{height}" rx="10"/>')
    total = 14 + len(FLOORS) * (HEIGHT + GAP)
    about = 'role="img" aria-label="The rooms of muonlab, in floors"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 {total}" {about}>'
    background = f'<rect class="background" width="940" height="{total}"/>'
    text = "\n".join([head, f"<style>{STYLE}</style>", background, *rows, "</svg>"])
    (Path(__file__).parent / "rooms.svg").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
