"""QK-Clip, the second half of MuonClip: keeps attention logits below a bound by shrinking the weights that make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from muonlab.optim.checks import check_range


class QKLayer(Protocol):
    """One attention layer, as a model shows it by `qk_layers()`."""

    heads: int  # of queries; those of keys follow from their weights' rows
    query: Sequence[Tensor]  # weight (heads·d, …) and, where there is one, bias (heads·d)
    key: Sequence[Tensor]
    max_logits: Tensor | None  # (heads,): the largest causal logit since the last step, softmax scale included

    def reset(self) -> None: ...


class QKClip:
    """After each optimizer step, for every head h with S_h > τ: W_q ← γ^α W_q, W_k ← γ^(1−α) W_k with γ = τ/S_h.

    S_h is the head's largest logit in the forward passes of that step. (MuonClip, arXiv 2507.20534: τ = 100, α = ½.) With
    grouped queries a key serves several heads, and takes the smallest γ among them. Momentum is left as it is.

        clip = QKClip(model, tau=100)
        clip.attach(optimizer)          # from now on a part of optimizer.step()

    model: has `qk_layers()` (a list of `QKLayer`), as muonlab's GPT with `qk_norm=False` does; or give such a list. Where
    queries and keys are normalized, scaling their weights changes nothing, and the model says so. Raises ValueError for values
    out of range, TypeError for a model without `qk_layers()`.
    """

    def __init__(self, model: Any, *, tau: float = 100.0, alpha: float = 0.5) -> None:
        check_range("tau", tau, 0.0, float("inf"), open_low=True)
        check_range("alpha", alpha, 0.0, 1.0)
        show = getattr(model, "qk_layers", None)
        if show is None and not isinstance(model, Sequence):
            raise TypeError(
                f"{type(model).__name__} has no qk_layers(): write it (see QKLayer), give a list of QKLayer, or, of a "
                "wrapped model, the one inside"
            )
        self.layers: Sequence[QKLayer] = show() if show else model
        self.tau, self.alpha = tau, alpha
        self.clipped = 0  # heads, over all steps

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Runs after every step of the optimizer. Returns torch's handle, whose `remove()` ends it."""
        return optimizer.register_step_post_hook(lambda *_: self.clip())

    @torch.no_grad()
    def clip(self) -> None:
        for layer in self.layers:
            if layer.max_logits is None:
                continue
            gamma = (self.tau / layer.max_logits.float()).clamp(max=1.0)
            above = (layer.max_logits > self.tau) & layer.max_logits.isfinite()  # an overflow says nothing of the weights' size
            gamma = torch.where(above, gamma, 1.0)  # also where the largest logit is not positive
            self.clipped += int((gamma < 1).sum())
            _scale(layer.query, gamma**self.alpha, layer.heads)
            weight = layer.key[0]
            key_heads = weight.shape[0] * layer.heads // layer.query[0].shape[0]
            shared = gamma.reshape(key_heads, -1).amin(1)
            _scale(layer.key, shared ** (1 - self.alpha), key_heads)
            layer.reset()


def _scale(tensors: Sequence[Tensor], factors: Tensor, heads: int) -> None:
    """Each head's rows times its factor, in place."""
    for t in tensors:
        rows = factors.to(t.dtype).repeat_interleave(t.shape[0] // heads)
        t.mul_(rows.reshape(-1, *[1] * (t.ndim - 1)))
