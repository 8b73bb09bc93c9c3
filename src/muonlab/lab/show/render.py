"""Vega-Lite definitions to PNG and SVG, and the libraries for a page, in processes of their own: vl-convert holds the interpreter's
lock while it works, and its time is most of a report's. This file is such a process's program: it imports nothing of muonlab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import vl_convert


@dataclass(frozen=True)
class Picture:
    """A definition and where its pictures go. None: not that kind."""

    spec: dict[str, Any]
    png: str | None = None
    svg: str | None = None


class Bundle:
    """The JavaScript that draws definitions in a page without a network; it is made while other work goes on."""

    def __init__(self, version: str) -> None:
        self._process = _start({"version": version, "bundle": True, "pictures": []})

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def text(self) -> str:
        """Waits for it. Raises RuntimeError if it could not be made."""
        return _end(self._process)


def render(pictures: list[Picture], version: str) -> None:
    """Writes the pictures, by as many processes as there are cores. version: of Vega-Lite.

    Raises OSError if a file cannot be written, RuntimeError if a definition cannot be drawn.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, 1 + len(pictures) // 4)
    shares = [{"version": version, "bundle": False, "pictures": [asdict(p) for p in pictures[i::count]]} for i in range(count)]
    others = [_start(share) for share in shares[1:]]
    try:
        _work(shares[0])
        for process in others:
            _end(process)
    finally:
        for process in others:
            process.kill()
            process.wait()


def _start(share: dict[str, Any]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(share).encode())
    process.stdin.close()
    process.stdin = None
    return process


def _end(process: subprocess.Popen[bytes]) -> str:
    output = process.communicate()[0]
    if process.returncode != 0:
        raise RuntimeError(f"the charts could not be drawn: the process that draws them ended with exit code {process.returncode}")
    return output.decode()


def _work(share: dict[str, Any]) -> str:
    for picture in share["pictures"]:
        svg = vl_convert.vegalite_to_svg(picture["spec"], vl_version=share["version"])
        if picture["svg"] is not None:
            with open(picture["svg"], "w", encoding="utf-8") as file:
                file.write(svg)
        if picture["png"] is not None:
            data = vl_convert.svg_to_png(svg, scale=2)
            with open(picture["png"], "wb") as file:
                file.write(data)
    # its stub asks for a snippet, which has a default
    return vl_convert.javascript_bundle(vl_version=share["version"]) if share["bundle"] else ""  # pyright: ignore[reportCallIssue]


if __name__ == "__main__":
    sys.stdout.write(_work(json.load(sys.stdin)))
