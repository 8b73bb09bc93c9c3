"""What a trained model can do: answers read out of its text, votes, accuracy with its interval, comparisons."""

from muonlab.extras import need_lab

need_lab(__name__, "pydantic", "safetensors", "tomli_w")
