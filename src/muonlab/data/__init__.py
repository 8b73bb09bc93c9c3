"""Text and token files -> a corpus of train and validation tokens -> batches. The exact position is state."""

from muonlab.extras import need_lab

need_lab(__name__, "pydantic")
