"""Model families, one file each: config, module, roles. No model knows of an optimizer."""

from muonlab.extras import need_lab

need_lab(__name__, "pydantic")
