"""One recipe and one seed make one run, in a folder that holds the truth about it."""

from muonlab.extras import need_lab

need_lab(__name__, "pydantic", "tomli_w")
