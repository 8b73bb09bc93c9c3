"""Muown, SOAP-Muon, the plain optimizers, two wrappers and QK-Clip: one matrix at a time, float64."""

from __future__ import annotations

import torch

from .muon import Muon, shape_factor
from .orthogonal import keller


def row_norms(x):
    return (x * x).sum(dim=1, keepdim=True).sqrt()


class Muown:
    """arXiv 2605.10797, single-device form. Rows W_i = g_i R_i/‖R_i‖; g and r = ‖R_i‖ start at ‖W_i‖; R = r W/g is not stored.

    u = W/g; R = r u; ∇g = rowsum(G ⊙ u); ∇R = (g/r)(G − u ∇g); M ← μM + ∇R (heavy ball); X = ∇R + μM (Nesterov) or M;
    R' = R − lr 0.2 sqrt(max(m, n)) orth(X); g ← Adam(g, ∇g), same lr, bias-corrected; W ← g R'/‖R'_i‖; r ← ‖R'_i‖.
    With wd ≠ 0, after that: W ← W − lr wd W_before, then g ← ‖W_i‖ (r stays). Zero rows are not defined by the source.
    """

    def __init__(
        self, w, lr, weight_decay=0.0, *, momentum=0.95, nesterov=True, orth=keller, betas=(0.9, 0.95), eps=1e-8,
        scale="match_adamw_rms",
    ):  # fmt: skip
        self.w, self.lr, self.wd, self.mu, self.nesterov = w.detach().double().clone(), lr, weight_decay, momentum, nesterov
        self.orth, self.betas, self.eps, self.scale = orth, betas, eps, scale
        self.g = row_norms(self.w)
        self.r = row_norms(self.w)
        self.m = torch.zeros_like(self.w)
        self.m_g, self.v_g, self.t = torch.zeros_like(self.g), torch.zeros_like(self.g), 0

    def step(self, gradient):
        gradient = gradient.double()
        before = self.w
        u = self.w / self.g
        big_r = self.r * u
        grad_g = (gradient * u).sum(dim=1, keepdim=True)
        grad_r = (self.g / self.r) * (gradient - u * grad_g)
        self.m = self.mu * self.m + grad_r
        x = grad_r + self.mu * self.m if self.nesterov else self.m
        big_r = big_r - self.lr * shape_factor(self.scale, *self.w.shape) * self.orth(x)
        self.t += 1
        b1, b2 = self.betas
        self.m_g = b1 * self.m_g + (1 - b1) * grad_g
        self.v_g = b2 * self.v_g + (1 - b2) * grad_g**2
        m_hat, v_hat = self.m_g / (1 - b1**self.t), self.v_g / (1 - b2**self.t)
        self.g = self.g - self.lr * m_hat / (v_hat.sqrt() + self.eps)
        self.r = row_norms(big_r)
        self.w = self.g * big_r / self.r
        if self.wd != 0:
            self.w = self.w - self.lr * self.wd * before
            self.g = row_norms(self.w)


class SOAPMuon(Muon):
    """modded-nanogpt PR 278 without floor and contra: Muon whose momentum passes through SOAP's preconditioner (arXiv 2409.11321).

    Step 1 has no bases: P = U. Later Z = Q_Lᵀ U Q_R; V ← βV + (1−β)Z² (from zero, no bias correction);
    P = Q_L [Z/(sqrt(V) + eps)] Q_Rᵀ; P ← P ‖U‖/max(‖P‖, 1e-8). D = shape factor · orth(P); W ← (1 − lr wd)W − lr D.
    After it, with the raw G: L ← βL + (1−β)GGᵀ, R ← βR + (1−β)GᵀG, from zero. Step 1 (k = 0): Q_L, Q_R = eigenvectors of
    L + 1e-30 I, R + 1e-30 I, largest first. Step k + 1 with k > 0 divisible by `every`: order = descending diag(QᵀLQ); Q's columns
    and V's rows (for R: columns) permuted; Q = the orthogonal factor of LQ. V is not rotated.
    P does not depend on the signs of Q's columns; but while L or R is singular (after step 1, always for a matrix that is not
    square) the basis of its null space is arbitrary, and P depends on it: that of `complement`.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, beta=0.90, every=10, eps=1e-8, **muon):
        super().__init__(w, lr, weight_decay, **muon)
        m, n = self.w.shape
        self.beta, self.every, self.eps, self.k = beta, every, eps, 0
        self.l, self.r = torch.zeros(m, m, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
        self.v, self.q_l, self.q_r = torch.zeros_like(self.w), None, None

    def preconditioned(self, u):
        if self.q_l is None:
            return u
        z = self.q_l.T @ u @ self.q_r
        self.v = self.beta * self.v + (1 - self.beta) * z * z
        p = self.q_l @ (z / (self.v.sqrt() + self.eps)) @ self.q_r.T
        return p * torch.linalg.matrix_norm(u) / max(float(torch.linalg.matrix_norm(p)), 1e-8)

    def update(self, g):
        return shape_factor(self.scale, *self.w.shape) * self.orth(self.preconditioned(self.direction(g)))

    def step(self, g):
        super().step(g)
        g = g.double()
        self.l = self.beta * self.l + (1 - self.beta) * g @ g.T
        self.r = self.beta * self.r + (1 - self.beta) * g.T @ g
        if self.q_l is None:
            self.q_l, self.q_r = descending_eigenvectors(self.l), descending_eigenvectors(self.r)
        elif self.k > 0 and self.k % self.every == 0:
            self.q_l, order = power_step(self.l, self.q_l)
            self.v = self.v[order, :]
            self.q_r, order = power_step(self.r, self.q_r)
            self.v = self.v[:, order]
        self.k += 1


def descending_eigenvectors(s):
    values, vectors = torch.linalg.eigh(s + 1e-30 * torch.eye(len(s), dtype=s.dtype))
    kept = vectors[:, values > 1e-9 * values.max()].flip(1)
    return torch.cat([kept, complement(kept, len(s) - kept.shape[1])], dim=1)


def complement(kept, count):
    """The projections of e_0, e_1, ... onto what is orthogonal to kept (n, r), made orthonormal one after the other, but for those
    that leave less than 1e-3."""
    basis = list(kept.T)
    for i in range(len(kept)):
        v = torch.zeros(len(kept), dtype=kept.dtype)
        v[i] = 1.0
        for _ in range(2):
            for other in basis:
                v = v - other * (other @ v)
        if len(basis) < kept.shape[1] + count and v.norm() > 1e-3:
            basis.append(v / v.norm())
    return torch.stack(basis[kept.shape[1] :], 1) if count else kept[:, :0]


def power_step(s, q):
    order = torch.argsort(torch.diag(q.T @ s @ q), descending=True)
    return torch.linalg.qr(s @ q[:, order]).Q, order


class Lion:
    """arXiv 2302.06675: c = β₁m + (1−β₁)g; w ← w − lr (sign(c) + wd w); m ← β₂m + (1−β₂)g."""

    def __init__(self, w, lr, weight_decay=0.0, *, betas=(0.9, 0.99)):
        self.w, self.lr, self.wd, (self.b1, self.b2) = w.detach().double().clone(), lr, weight_decay, betas
        self.m = torch.zeros_like(self.w)

    def step(self, g):
        g = g.double()
        c = self.b1 * self.m + (1 - self.b1) * g
        self.w = self.w - self.lr * (torch.sign(c) + self.wd * self.w)
        self.m = self.b2 * self.m + (1 - self.b2) * g


class SGD:
    """torch.optim.SGD: g ← g + wd w (coupled); b = g at first, then b ← μb + (1 − dampening)g; w ← w − lr b, or with
    Nesterov w − lr (g + μb). Without momentum w − lr g.
    """

    def __init__(self, w, lr, weight_decay=0.0, *, momentum=0.0, dampening=0.0, nesterov=False):
        self.w, self.lr, self.wd = w.detach().double().clone(), lr, weight_decay
        self.mu, self.dampening, self.nesterov, self.b = momentum, dampening, nesterov, None

    def step(self, g):
        g = g.double() + self.wd * self.w
        if self.mu != 0:
            self.b = g if self.b is None else self.mu * self.b + (1 - self.dampening) * g
            g = g + self.mu * self.b if self.nesterov else self.b
        self.w = self.w - self.lr * g


class AdamW:
    """arXiv 1711.05101 as in torch: decay lr wd w first, then lr m̂/(sqrt(v̂) + eps), both moments bias-corrected."""

    def __init__(self, w, lr, weight_decay=0.0, *, betas=(0.9, 0.999), eps=1e-8):
        self.w, self.lr, self.wd, (self.b1, self.b2), self.eps = w.detach().double().clone(), lr, weight_decay, betas, eps
        self.m, self.v, self.t = torch.zeros_like(self.w), torch.zeros_like(self.w), 0

    def step(self, g):
        g = g.double()
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat, v_hat = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        self.w = (1 - self.lr * self.wd) * self.w - self.lr * m_hat / (v_hat.sqrt() + self.eps)


class EMANesterov:
    """arXiv 2605.25395 around another optimizer A: x₊ = A(x + β m), m ← γm + (1−γ)(x₊ − x), m = 0 at first.

    The gradient and the inner step are at the shifted point, and the shift stays in. β = lookahead · lr/lr₀ with lr the inner
    optimizer's present rate and lr₀ the one it had when it was wrapped; β = 0 unless start ≤ t < stop, where t counts steps from
    0 (stop None: no end). m is gathered always. Not for Muown, whose g would no longer be the length of a shifted row.
    """

    def __init__(self, inner, *, lookahead=0.5, gamma=0.99, start=0, stop=None):
        self.inner, self.lookahead, self.gamma, self.start, self.stop = inner, lookahead, gamma, start, stop
        self.lr0, self.m, self.t = inner.lr, torch.zeros_like(inner.w), 0

    @property
    def w(self):
        return self.inner.w

    def step(self, grad_fn):
        x = self.inner.w.clone()
        active = self.t + 1 > self.start and (self.stop is None or self.t < self.stop)
        beta = self.lookahead * self.inner.lr / self.lr0 if active else 0.0
        self.inner.w = x + beta * self.m
        self.inner.step(grad_fn(self.inner.w.clone()))
        self.m = self.gamma * self.m + (1 - self.gamma) * (self.inner.w - x)
        self.t += 1


class TailEMA:
    """modded-nanogpt PR 325: e = w at step t = start, then e ← e + (w − e)/tau; weights for evaluation (1 − lam)w + lam e.

    Training never sees e. The caller names the step t (whether it counts from 0 or from 1 is not said). Before start: w itself.
    """

    def __init__(self, start, tau, lam):
        self.start, self.tau, self.lam, self.e = start, tau, lam, None

    def observe(self, t, w):
        if t == self.start:
            self.e = w.detach().double().clone()
        elif t > self.start:
            self.e = self.e + (w.double() - self.e) / self.tau

    def evaluate(self, w):
        return w.double().clone() if self.e is None else (1 - self.lam) * w.double() + self.lam * self.e


def qk_clip(w_q, w_k, s_max_per_head, tau=100.0, alpha=0.5):
    """QK-Clip (arXiv 2507.20534), multi-head attention: per head h, γ = min(1, tau/S_h); W_q^h γ^alpha, W_k^h γ^(1−alpha).

    S_h is the largest logit with the softmax scale in it. Only heads with S_h > tau change (so a negative S_h changes nothing).
    Head h owns rows h d .. (h+1) d − 1 of both matrices. Returns new matrices.
    """
    w_q, w_k = w_q.detach().double().clone(), w_k.detach().double().clone()
    heads = len(s_max_per_head)
    for w, power in ((w_q, alpha), (w_k, 1 - alpha)):
        d = w.shape[0] // heads
        for h, s in enumerate(s_max_per_head):
            if float(s) > tau:
                w[h * d : (h + 1) * d] *= (tau / float(s)) ** power
    return w_q, w_k
