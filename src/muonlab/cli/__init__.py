"""The command line: parses, calls, prints. Data on stdout, everything else on stderr."""

from __future__ import annotations

import sys

from muonlab.extras import MissingPackage, need_lab


def main() -> None:
    """The console script. What it needs beside torch and numpy is the extra 'lab', and is told where it is not there."""
    try:
        need_lab("the command line", "cyclopts", "pydantic", "rich", "tomli_w")
    except MissingPackage as missing:
        print(f"muonlab: {missing}", file=sys.stderr)
        sys.exit(2)
    from muonlab.cli.console import main as start

    start()


__all__ = ["main"]
