"""The command line: parses, calls, prints. Data on stdout, everything else on stderr."""

from muonlab.cli.app import main

__all__ = ["main"]
