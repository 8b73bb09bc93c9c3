"""The published optimizers as their sources write them: one matrix at a time, float64, nothing shared with the package."""

from __future__ import annotations

import math

import torch

KELLER = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [  # arXiv 2505.16932, as published
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def quintics_by_svd(x, coefficients, safety):
    """The composition of odd polynomials acts on the singular values alone: so take them out and act on them."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / (torch.linalg.matrix_norm(x) * safety)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


class Muon:
    def __init__(self, w, lr, weight_decay, momentum=0.95, nesterov=True, coefficients=POLAR_EXPRESS, safety=1.02):
        self.w, self.lr, self.wd, self.mu, self.nesterov = w.clone(), lr, weight_decay, momentum, nesterov
        self.coefficients, self.safety = coefficients, safety
        self.m = torch.zeros_like(w)

    def orthogonalized(self, g):
        self.m = self.mu * self.m + (1 - self.mu) * g
        u = self.mu * self.m + (1 - self.mu) * g if self.nesterov else self.m
        return quintics_by_svd(u, self.coefficients, self.safety)

    def step(self, g):
        o = self.orthogonalized(g)
        rows, columns = self.w.shape
        self.w = (1 - self.lr * self.wd) * self.w - self.lr * math.sqrt(max(1, rows / columns)) * o


class NorMuon(Muon):
    """arXiv 2510.05491 in modded-nanogpt's form; axis 'output' is the paper's: one second moment a row."""

    def __init__(self, *arguments, beta2=0.95, axis="long", cautious=True, **options):
        super().__init__(*arguments, **options)
        rows, columns = self.w.shape
        self.per_row = axis == "output" or (axis == "long" and rows >= columns)
        self.s = torch.zeros(rows if self.per_row else columns, dtype=self.w.dtype)
        self.beta2, self.cautious = beta2, cautious

    def step(self, g):
        o = self.orthogonalized(g)
        rows, columns = self.w.shape
        scaled = torch.empty_like(o)
        for i in range(len(self.s)):
            line = o[i] if self.per_row else o[:, i]
            mean_square = sum(float(x) ** 2 for x in line) / len(line)
            self.s[i] = self.beta2 * self.s[i] + (1 - self.beta2) * mean_square
            new = line / math.sqrt(max(float(self.s[i]), 1e-10))
            if self.per_row:
                scaled[i] = new
            else:
                scaled[:, i] = new
        o = scaled * (torch.linalg.matrix_norm(o) / torch.linalg.matrix_norm(scaled))
        decayed = self.w * ((o * self.w >= 0) if self.cautious else 1.0)
        self.w = self.w - self.lr * self.wd * decayed - self.lr * math.sqrt(max(1, rows / columns)) * o


class AdamW:
    def __init__(self, w, lr, weight_decay, betas=(0.9, 0.95), eps=1e-8):
        self.w, self.lr, self.wd, (self.b1, self.b2), self.eps = w.clone(), lr, weight_decay, betas, eps
        self.m, self.v, self.t = torch.zeros_like(w), torch.zeros_like(w), 0

    def step(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat, v_hat = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        self.w = self.w - self.lr * self.wd * self.w
        self.w = self.w - self.lr * m_hat / (v_hat.sqrt() + self.eps)
