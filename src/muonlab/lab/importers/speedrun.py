"""modded-nanogpt's logs (https://github.com/KellerJordan/modded-nanogpt): the program, a line of `=`, facts of the machine,
then lines such as `step:125/1770 val_loss:4.6555 train_time:12222ms step_avg:97.78ms`."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import Any

from muonlab.lab.importers.parsed import ParsedRun, rows_of

_STEP = re.compile(r"^step:(\d+)/(\d+)((?: +[a-z_]+:\S+)+) *\r?$", re.MULTILINE)
_RULER = re.compile(r"^={50,}[ \t]*\r?\n", re.MULTILINE)  # the logs' own are 100 wide; underlines in a docstring are shorter
_IMPORT = re.compile(r"^(?:import|from) \w", re.MULTILINE)
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


def is_speedrun(text: str) -> bool:
    """True for a log of this kind, also for one that stopped before its first line about a step."""
    return _STEP.search(text) is not None or _RULER.search(text) is not None


def read_speedrun(text: str, arm: str, name: str) -> ParsedRun:
    """The run in a log. Raises InputError if the log holds more than one."""
    if text and not text.endswith("\n"):  # "val_loss:3.27" may be what is left of "val_loss:3.2791", "12m" of "12ms"
        text = re.sub(r"^step:.*(?<!s)\Z", "", text, flags=re.MULTILINE)
    ruler = _RULER.search(text)
    second = _RULER.search(text, ruler.end()) if ruler and not text[: ruler.start()].strip() else None
    if ruler and second and _IMPORT.search(text, ruler.end(), second.start()):  # logs of 2024 have one above the program too
        text, ruler = text[ruler.end() :], _RULER.search(text[ruler.end() :])
    source, told = (text[: ruler.start()], text[ruler.end() :]) if ruler else (None, text)
    if source is not None and not source.strip():
        source = None
    values, planned = [], None
    for line in _STEP.finditer(told):
        planned = int(line[2])
        pairs = dict(pair.split(":", 1) for pair in line[3].split())
        found = {key: _number(pairs[key]) for key in ("val_loss", "train_loss", "lr") if key in pairs}
        if any(key in found for key in ("val_loss", "train_loss")):  # lines with the time alone say nothing of the loss
            values.append((int(line[1]), found | {"seconds": _seconds(pairs.get("train_time", ""))}))
    facts = _facts(told)
    return ParsedRun(arm, name, rows_of(values, name), planned, facts.pop("seed", None), source, facts)


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
