"""Shape rules: what the learning rate is multiplied by for a logical matrix (m, n) = (out, in)."""

from __future__ import annotations

import math

from muonlab.names import choose

_RULES = {
    # Keller Jordan: spectral norm of the update grows with the output side only.
    "aspect": lambda m, n: math.sqrt(max(1.0, m / n)),
    # Moonshot, arXiv 2502.16982: an update as large as AdamW's typical one (RMS 0.2), so that its lr carries over.
    "match_adamw_rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    # Bernstein & Newhouse, arXiv 2410.21265: unit RMS-to-RMS operator norm.
    "rms_to_rms": lambda m, n: math.sqrt(m / n),
    "sqrt_max": lambda m, n: math.sqrt(max(m, n)),
    "none": lambda m, n: 1.0,
}

# What the same rules are called elsewhere.
_ALIASES = {
    "original": "aspect",  # torch.optim.Muon
    "shape_scaling": "aspect",  # Emerging-Optimizers
    "match_rms_adamw": "match_adamw_rms",  # torch.optim.Muon
    "rms_norm": "match_adamw_rms",  # dion
    "unit_rms_norm": "rms_to_rms",  # Emerging-Optimizers
    "spectral_unclamped": "rms_to_rms",  # torch.optim.Muon, from 2.14 on
}


def scaling_rule(name: str) -> str:
    """The canonical name of a shape rule. Raises ValueError for an unknown or ambiguous one."""
    if name == "spectral":
        raise ValueError(
            "scale 'spectral' means two things in public code: sqrt(m/n) in dion (ours: 'rms_to_rms') and "
            "sqrt(max(m, n)) in Emerging-Optimizers (ours: 'sqrt_max'). Use one of these two names."
        )
    return choose("scale", _ALIASES.get(name, name), _RULES)


def shape_scale(rule: str, m: int, n: int) -> float:
    """The factor of `rule` (a canonical name) for a logical matrix of m outputs and n inputs."""
    return _RULES[rule](m, n) if m and n else 1.0
