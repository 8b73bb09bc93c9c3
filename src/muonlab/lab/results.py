"""`compute` by the path under which it was documented: now `from muonlab.lab import compute`."""

from muonlab.lab.judge.results import compute

__all__ = ["compute"]
