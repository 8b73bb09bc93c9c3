"""The command line: parses, calls, prints. Data on stdout, everything else on stderr."""

from muonlab.cli.console import main

__all__ = ["main"]
