"""modded-nanogpt's logs (https://github.com/KellerJordan/modded-nanogpt): the program, a line of `=`, facts of the machine,
then lines such as `step:125/1770 val_loss:4.6555 train_time:12222ms step_avg:97.78ms`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from muonlab.data.unpacking import size_in_words
from muonlab.errors import InputError
from muonlab.lab.importers.parsed import Curve, ParsedRun

_STEP = re.compile(r"^step:(\d+)/(\d+)((?: +[a-z_]+:\S+)+) *\r?$", re.MULTILINE)
_RULER = re.compile(r"^={50,}[ \t]*\r?\n", re.MULTILINE)  # the logs' own are 100 wide; underlines in a docstring are shorter
_IMPORT = re.compile(r"^(?:import|from) \w", re.MULTILINE)
_LONGEST_MARK = 1 << 16  # characters of a line
_LONGEST_PROGRAM = 1 << 24
_FACTS_WITHIN = 1 << 20  # characters of lines that are not about a step
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


class MarkSearch:
    """Whether a text that comes in pieces is a log of this kind, also one that stopped before its first line about a step."""

    def __init__(self) -> None:
        self._found, self._rest = False, ""

    def feed(self, text: str) -> None:
        if self._found:
            return
        lines, end, rest = (self._rest + text).rpartition("\n")
        self._found = self._found or _marked(lines + end)
        self._rest = rest if len(rest) <= _LONGEST_MARK else "."  # the rest of a line that is no mark

    def found(self) -> bool:
        return self._found or _marked(self._rest)


def _marked(text: str) -> bool:
    return ("step:" in text and _STEP.search(text) is not None) or ("=" * 50 in text and _RULER.search(text) is not None)


class _Told:
    """What lines say of a run."""

    def __init__(self, name: str) -> None:
        self.curve, self.planned = Curve(name), None
        self._rest: list[str] = []
        self._room = _FACTS_WITHIN

    def hear(self, line: str) -> None:
        step = _STEP.match(line)
        if step is None:
            if self._room > 0:
                self._rest.append(line)
                self._room -= len(line)
            return
        self.planned = int(step[2])
        pairs = dict(pair.split(":", 1) for pair in step[3].split())
        found = {key: _number(pairs[key]) for key in ("val_loss", "train_loss", "lr") if key in pairs}
        if any(key in found for key in ("val_loss", "train_loss")):  # lines with the time alone say nothing of the loss
            self.curve.add(int(step[1]), found | {"seconds": _seconds(pairs.get("train_time", ""))})

    def facts(self) -> dict[str, Any]:
        return _facts("".join(self._rest))


class _Program:
    """The lines above a line of `=`."""

    def __init__(self) -> None:
        self._lines: list[str] | None = []
        self._size = 0
        self.imports = False

    def add(self, line: str) -> None:
        self._size += len(line)
        self.imports = self.imports or _IMPORT.match(line) is not None
        if self._size > _LONGEST_PROGRAM:  # a log without such a line, most likely: none of it need be kept
            self._lines = None
        if self._lines is not None:
            self._lines.append(line)

    def text(self, name: str) -> str:
        if self._lines is None:
            raise InputError(
                f"{name}: more than {size_in_words(_LONGEST_PROGRAM)} above the first line of `=`: no program is as long"
            )
        return "".join(self._lines)


def read_speedrun(lines: Iterable[str], arm: str, name: str) -> ParsedRun:
    """The run in a log. Raises InputError if the log holds more than one."""
    source: str | None = None
    program: _Program | None = _Program()
    told, rulers = _Told(name), 0
    for line in lines:
        if not line.endswith("\n") and line.startswith("step:") and not line.endswith("s"):
            break  # cut: "val_loss:3.27" may be what is left of "val_loss:3.2791", "12m" of "12ms"
        if program is not None and _RULER.match(line):
            rulers += 1
            if rulers == 1 or program.imports:  # logs of 2024 have a line above the program, too
                above = program.text(name)
                source, told = above if above.strip() else None, _Told(name)
            program = _Program() if rulers == 1 and source is None else None
            continue
        if program is not None:
            program.add(line)
        told.hear(line)
    facts = told.facts()
    return ParsedRun(arm, name, told.curve.rows(), told.planned, facts.pop("seed", None), source, facts)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip(","))
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    """`12222ms`, `158.2s` or `10.9m` (hours are not in use)."""
    match = re.fullmatch(r"([\d.]+)(ms|s|m|min)", text)
    return None if match is None else round(float(match[1]) * _UNITS[match[2]], 6)


def _facts(text: str) -> dict[str, Any]:
    """Versions, GPUs, date and seed, where the log states them."""
    patterns = {"python": r"Running Python (\S+)", "torch": r"[Rr]unning [Pp]y[Tt]orch (\S+)", "cuda": r"compiled for CUDA (\S+)"}
    versions = {key: match[1] for key, pattern in patterns.items() if (match := re.search(pattern, text))}
    facts: dict[str, Any] = {"versions": versions} if versions else {}
    gpus = re.findall(r"^\|\s+\d+\s+(\S.*?)\s+(?:On|Off)\s*\|", text, flags=re.MULTILINE)
    if gpus:
        facts["gpu"] = f"{len(gpus)} × {gpus[0]}" if len(gpus) > 1 else gpus[0]
    elif match := re.search(r"device_name=(.+?)(?: with world_size=(\d+))?\s*$", text, flags=re.MULTILINE):
        facts["gpu"] = f"{match[2]} × {match[1]}" if match[2] else match[1]
    if match := re.search(r"^[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d+) (\d\d:\d\d:\d\d) (\d{4})\s*$", text, flags=re.MULTILINE):
        with suppress(ValueError):  # a line that only looks like nvidia-smi's date
            facts["started"] = datetime.strptime(" ".join(match.groups()), "%b %d %H:%M:%S %Y").isoformat()
    if match := re.search(r"^(?:Using )?seed[=:] ?(\d+)\s*$", text, flags=re.MULTILINE | re.IGNORECASE):
        facts["seed"] = int(match[1])
    return facts
