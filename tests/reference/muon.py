"""Muon and the variants that change its update: one matrix at a time, float64, plain mathematics.

W is (m, n) = (out, in), G the gradient, M the momentum, U what is orthogonalized, O = orth(U), D what is subtracted: W ← W − lr D.
"""

from __future__ import annotations

import math

import torch

from .orthogonal import keller


def shape_factor(name, rows, columns):
    """The factor on the learning rate by the shape (rows, columns) = (out, in)."""
    return {
        "aspect": math.sqrt(max(1.0, rows / columns)),
        "match_adamw_rms": 0.2 * math.sqrt(max(rows, columns)),
        "rms_to_rms": math.sqrt(rows / columns),
        "sqrt_max": math.sqrt(max(rows, columns)),
        "none": 1.0,
    }[name]


def stepped(w, d, lr, wd, decay):
    """W after the step with the update D and decoupled weight decay; any sign of wd; the decay never sees the shape factor.

    param: W(1 − lr wd) − lr D.   update: W − lr (D + wd D).   both: W − lr (D + wd (W + D)).
    coupled: the decay is in the gradient already, G + wd W.
    cautious: W − lr wd 1[D ⊙ W ≥ 0] ⊙ W − lr D, both terms with the W before the step (arXiv 2510.12402).
    squared, cautious_squared: as param and cautious, with lr · wd · lr in place of lr · wd (modded-nanogpt).
    """
    mask = (d * w >= 0).double()
    if decay == "param":
        return w - lr * wd * w - lr * d
    if decay == "coupled":
        return w - lr * d
    if decay == "update":
        return w - lr * (d + wd * d)
    if decay == "both":
        return w - lr * (d + wd * (w + d))
    if decay == "cautious":
        return w - lr * wd * mask * w - lr * d
    if decay == "squared":
        return w - lr * wd * lr * w - lr * d
    if decay == "cautious_squared":
        return w - lr * wd * lr * mask * w - lr * d
    raise ValueError(decay)


class Muon:
    """form "ema": M ← μM + (1−μ)G, U = μM + (1−μ)G with Nesterov (torch, modded-nanogpt);
    form "heavy_ball": M ← μM + G, U = G + μM with Nesterov (dion, Moonlight). Without Nesterov U = M.
    O = orth(U); D = shape factor · O; then the step with decay.
    """

    def __init__(
        self, w, lr, weight_decay=0.0, *, momentum=0.95, nesterov=True, form="ema", orth=keller, scale="aspect", decay="param"
    ):
        if form not in ("ema", "heavy_ball"):
            raise ValueError(form)
        self.w = w.detach().double().clone()
        self.lr, self.wd, self.mu, self.nesterov, self.form = lr, weight_decay, momentum, nesterov, form
        self.orth, self.scale, self.decay = orth, scale, decay
        self.m = torch.zeros_like(self.w)

    def direction(self, g):
        """U: the momentum, looked ahead or not."""
        g = g.double() + (self.wd * self.w if self.decay == "coupled" else 0)
        new = (1 - self.mu) * g if self.form == "ema" else g
        self.m = self.mu * self.m + new
        return self.mu * self.m + new if self.nesterov else self.m

    def reshaped(self, o):
        """What a variant does to O before the shape factor: here nothing."""
        return o

    def update(self, g):
        """D, with its shape factor."""
        return shape_factor(self.scale, *self.w.shape) * self.reshaped(self.orth(self.direction(g)))

    def step(self, g):
        self.w = stepped(self.w, self.update(g), self.lr, self.wd, self.decay)


class SmoothedMuon(Muon):
    """modded-nanogpt, medium-track record of 2025-09-17: S ← βS + (1−β)O from zero, without bias correction.

    lookahead=True is the record's code: the filter twice, βS + (1−β)O. lookahead=False is its text: S.
    It stands after orthogonalization, before the shape factor and the decay (a cautious mask sees the smoothed update).
    """

    def __init__(self, w, lr, weight_decay=0.0, *, smoothing=0.5, lookahead=True, **muon):
        super().__init__(w, lr, weight_decay, **muon)
        self.smoothing, self.lookahead = smoothing, lookahead
        self.s = torch.zeros_like(self.w)

    def reshaped(self, o):
        beta = self.smoothing
        self.s = beta * self.s + (1 - beta) * o
        return beta * self.s + (1 - beta) * o if self.lookahead else self.s


class NorMuon(Muon):
    """arXiv 2510.05491 in modded-nanogpt's form: one second moment a line of O, Frobenius norm of O kept.

    v_i = mean of the squares of line i; s ← β₂s + (1−β₂)v from zero, no bias correction; line i divided by sqrt(max(s_i, 1e-10));
    then the whole brought back to ‖O‖. axis "output": a line is a row (the paper); "input": a column; "long": a row if m ≥ n,
    else a column (the record).
    """

    def __init__(self, w, lr, weight_decay=0.0, *, beta2=0.95, axis="output", **muon):
        super().__init__(w, lr, weight_decay, **muon)
        rows, columns = self.w.shape
        self.rows = {"output": True, "input": False, "long": rows >= columns}[axis]
        self.beta2 = beta2
        self.s = [0.0] * (rows if self.rows else columns)

    def reshaped(self, o):
        lines = o if self.rows else o.T
        divided = []
        for i, line in enumerate(lines):
            mean_square = sum(x * x for x in line.tolist()) / len(line)
            self.s[i] = self.beta2 * self.s[i] + (1 - self.beta2) * mean_square
            divided.append(line / math.sqrt(max(self.s[i], 1e-10)))
        new = torch.stack(divided)
        new = new if self.rows else new.T
        return new * torch.linalg.matrix_norm(o) / max(float(torch.linalg.matrix_norm(new)), 1e-10)


class AdaMuon(Muon):
    """arXiv 2507.11005, final form: O = orth(sign(U)); V ← β₂V + (1−β₂)O² from zero, no bias correction, elementwise;
    Ô = O / (sqrt(V) + eps); D = 0.2 sqrt(mn) Ô / (‖Ô‖_F + eps); W ← (1 − lr wd)W − lr D. No shape factor besides.

    β₂ is the momentum unless given. sign(0) = 0. sign=False leaves out the sign and nothing else: the first public file, which also
    had no sign, differs further (β₂ = 0.999, bias correction). The momentum may be EMA or heavy ball: the sign makes them equal.
    """

    def __init__(
        self, w, lr, weight_decay=0.0, *, momentum=0.95, beta2=None, nesterov=True, form="ema", sign=True, orth=keller, eps=1e-8
    ):
        super().__init__(w, lr, weight_decay, momentum=momentum, nesterov=nesterov, form=form, orth=orth)
        self.beta2, self.sign, self.eps = momentum if beta2 is None else beta2, sign, eps
        self.v = torch.zeros_like(self.w)

    def update(self, g):
        u = self.direction(g)
        o = self.orth(torch.sign(u) if self.sign else u)
        self.v = self.beta2 * self.v + (1 - self.beta2) * o * o
        o = o / (self.v.sqrt() + self.eps)
        return 0.2 * math.sqrt(o.numel()) * o / (torch.linalg.matrix_norm(o) + self.eps)


class ContraMuon(Muon):
    """modded-nanogpt PR 275: D = O − coefficient · U/σ(U), brought back to ‖O‖_F, then the shape factor.

    σ(U) by power iteration from v = ones/‖ones‖, `rounds` times u = Uv/‖·‖, v = Uᵀu/‖·‖, and σ = ‖Uv‖; every norm at least 1e-10.
    The record's NorMuon part and its floor are left out.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, coefficient=0.2, rounds=5, **muon):
        super().__init__(w, lr, weight_decay, **muon)
        self.coefficient, self.rounds = coefficient, rounds

    def update(self, g):
        u = self.direction(g)
        o = self.orth(u)

        def unit(x):
            return x / max(float(torch.linalg.vector_norm(x)), 1e-10)

        v = unit(torch.ones(u.shape[1], dtype=u.dtype))
        for _ in range(self.rounds):
            v = unit(u.T @ unit(u @ v))
        sigma = max(float(torch.linalg.vector_norm(u @ v)), 1e-10)
        d = o - self.coefficient * u / sigma
        return shape_factor(self.scale, *self.w.shape) * torch.linalg.matrix_norm(o) * unit(d)
