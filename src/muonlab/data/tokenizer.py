"""The byte tokenizer: every byte is a token, and one more ends a document. Lossless, nothing to download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16]

END_OF_DOCUMENT = 256
VOCAB_SIZE = 257


def encode(document: bytes) -> Tokens:
    """bytes -> tokens (len + 1,) uint16, the last one END_OF_DOCUMENT."""
    tokens = np.empty(len(document) + 1, dtype=np.uint16)
    tokens[:-1] = np.frombuffer(document, dtype=np.uint8)
    tokens[-1] = END_OF_DOCUMENT
    return tokens


def decode(tokens: Tokens) -> bytes:
    """tokens -> bytes; END_OF_DOCUMENT is left out. Raises ValueError for other tokens above 255."""
    kept = np.asarray(tokens)[np.asarray(tokens) != END_OF_DOCUMENT]
    if kept.size and kept.max() > END_OF_DOCUMENT:
        raise ValueError(f"expected byte tokens 0 … {END_OF_DOCUMENT}, got {kept.max()}")
    return kept.astype(np.uint8).tobytes()
