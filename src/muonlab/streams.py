"""Random streams by name: (seed, name) -> a generator that nothing else shares.

What an arm draws can never depend on which optimizer it uses, so arms with one seed share initial weights and data order.
"""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from the run's seed and the stream's name, the same on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
