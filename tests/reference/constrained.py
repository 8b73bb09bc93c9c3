"""Muon on a constraint: spheres of matrices, spheres of rows or columns, floors and brakes. One matrix at a time, float64."""

from __future__ import annotations

import math

import torch

from .muon import Muon


def size(x):
    """The Euclidean (Frobenius) norm as a plain number."""
    return math.sqrt(float((x * x).sum()))


def without_decay(weight_decay):
    if weight_decay != 0:
        raise ValueError("this method has no weight decay")


def lines(w, axis):
    """The vectors along the norm axis: "input" gives the rows of W, "output" its columns."""
    return {"input": w, "output": w.T}[axis]


class MuonH(Muon):
    """Hyperball, modded-nanogpt PR 267: with r = ‖W₀‖_F, W' = W − lr r D/max(‖D‖, 1e-10), then W = r W'/max(‖W'‖, 1e-10).

    The record takes r = ‖W‖ before the step, which is ‖W₀‖ up to rounding. The shape factor has no effect. A zero W never moves.
    """

    def __init__(self, w, lr, weight_decay=0.0, **muon):
        without_decay(weight_decay)
        super().__init__(w, lr, 0.0, **muon)
        self.radius = size(self.w)

    def step(self, g):
        d = self.update(g)
        moved = self.w - self.lr * self.radius * d / max(size(d), 1e-10)
        self.w = self.radius * moved / max(size(moved), 1e-10)


class MuonFloor(Muon):
    """u/w floor (PR 269), row floor (PR 328) and radial brake (PR 294), ordered as in the PR 331 script. D is Muon's scaled update.

    1. brake: c = ⟨D,W⟩/max(‖W‖², 1e-12); D ← (D − cW) + s cW with s = s_out if c < 0 (the step W − lr D grows W), else s_in.
    2. floor "scalar": with u = max(‖D‖, 1e-8), w = max(‖W‖, 1e-8), if u/w < tau: D ← D tau w/u.
       floor "row": D_i ← D_i max(1, tau max(‖W_i‖, 1e-8)/max(‖D_i‖, 1e-8)). floor None: nothing.
    3. with pin, the target radius R* = max(w − lr ⟨D,W⟩/w, 1e-8), with the same w = max(‖W‖, 1e-8).
    4. W ← W − lr D; with pin, W ← W R*/max(‖W‖, 1e-8).
    No decay. Ambiguity: w in step 3 is the clamped norm in both places. s_out = s_in = 1 turns the brake off.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, tau=0.35, floor="scalar", s_out=0.5, s_in=1.0, pin=True, **muon):
        without_decay(weight_decay)
        super().__init__(w, lr, 0.0, **muon)
        if floor not in ("scalar", "row", None):
            raise ValueError(floor)
        self.tau, self.floor, self.s_out, self.s_in, self.pin = tau, floor, s_out, s_in, pin

    def braked(self, d):
        c = float((d * self.w).sum()) / max(size(self.w) ** 2, 1e-12)
        radial = c * self.w
        return (d - radial) + (self.s_out if c < 0 else self.s_in) * radial

    def floored(self, d):
        if self.floor == "scalar":
            u, w = max(size(d), 1e-8), max(size(self.w), 1e-8)
            return d * self.tau * w / u if u / w < self.tau else d
        if self.floor == "row":
            rows = []
            for d_i, w_i in zip(d, self.w, strict=True):
                rows.append(d_i * max(1.0, self.tau * max(size(w_i), 1e-8) / max(size(d_i), 1e-8)))
            return torch.stack(rows)
        return d

    def step(self, g):
        d = self.floored(self.braked(self.update(g)))
        norm = max(size(self.w), 1e-8)
        target = max(norm - self.lr * float((d * self.w).sum()) / norm, 1e-8)
        self.w = self.w - self.lr * d
        if self.pin:
            self.w = self.w * target / max(size(self.w), 1e-8)


class UnitNormMuon(Muon):
    """nGPT's constraint: Muon's step (with its decay), then every line along the axis divided by its norm.

    axis "input": the rows of W have norm 1; "output": its columns. After steps every, 2 every, ... counted from 1.
    Ambiguities: W is not normalized at the start; a zero line stays zero.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, axis="input", every=1, **muon):
        super().__init__(w, lr, weight_decay, **muon)
        self.axis, self.every, self.t = axis, every, 0

    def step(self, g):
        super().step(g)
        self.t += 1
        if self.t % self.every == 0:
            normed = [v / size(v) if size(v) > 0 else v for v in lines(self.w, self.axis)]
            self.w = lines(torch.stack(normed), self.axis).clone()


class GeodesicMuon(Muon):
    """Per unit vector w along the axis, d its part of Muon's scaled update D (what a plain step subtracts):

    tangent = d − ⟨d,w⟩w;  U = −tangent/‖tangent‖;  w ← w cos θ + U sin θ,  θ = lr (angle "lr") or lr ‖tangent‖ (angle "tangent").
    No decay. The vectors must have norm 1 at the start (to 1e-6); nothing renormalizes them later, since the step keeps the norm.
    Ambiguity: where the tangent is nothing but rounding (‖tangent‖ ≤ 1e-12 ‖d‖, so also for vectors of one element) w stays.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, axis="input", angle="lr", **muon):
        without_decay(weight_decay)
        super().__init__(w, lr, 0.0, **muon)
        if angle not in ("lr", "tangent"):
            raise ValueError(angle)
        if any(abs(size(v) - 1) > 1e-6 for v in lines(self.w, axis)):
            raise ValueError("geodesic steps are for unit vectors")
        self.axis, self.angle = axis, angle

    def step(self, g):
        turned = []
        for w, d in zip(lines(self.w, self.axis), lines(self.update(g), self.axis), strict=True):
            tangent = d - float((d * w).sum()) * w
            length = size(tangent)
            if length <= 1e-12 * size(d):
                turned.append(w)
                continue
            theta = self.lr if self.angle == "lr" else self.lr * length
            turned.append(w * math.cos(theta) - tangent / length * math.sin(theta))
        self.w = lines(torch.stack(turned), self.axis).clone()


class FrobeniusSphereMuon(Muon):
    """Muon's step (with its decay), then W ← W ‖W₀‖_F/‖W‖_F. The step is not rescaled: that is MuonH. A zero W stays zero."""

    def __init__(self, w, lr, weight_decay=0.0, **muon):
        super().__init__(w, lr, weight_decay, **muon)
        self.radius = size(self.w)

    def step(self, g):
        super().step(g)
        self.w = self.w * self.radius / max(size(self.w), 1e-300)
