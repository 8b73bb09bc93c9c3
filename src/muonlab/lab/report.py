"""`answer` by the path under which it was documented: now `from muonlab.lab import answer`."""

from muonlab.lab.show.report import answer

__all__ = ["answer"]
