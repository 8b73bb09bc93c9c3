"""`collect` by the path under which it was documented: now `from muonlab.lab import collect`."""

from muonlab.lab.runs.collection import collect

__all__ = ["collect"]
