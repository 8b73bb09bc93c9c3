"""The scan of Mamba-2, state-space duality (SSD; arXiv 2405.21060, section 6): products of matrices inside chunks, a recurrence
from chunk to chunk. Per head, with a state H (n, p):

    H_t = exp(dt_t A) H_{t-1} + dt_t B_t x_tᵀ        y_t = C_tᵀ H_t + D x_t

Letters of shapes: b sequences, t positions, h heads, p dimensions per head, g groups of heads that share B and C, n state size;
inside, c chunks of q positions each, r = h / g heads per group.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = find_spec("mamba_ssm") is not None  # the extra "mamba": Triton kernels, for CUDA alone


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64: what decays are computed in, whatever the model's type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ssd(
    x: Tensor,  # (b, t, h, p)
    dt: Tensor,  # (b, t, h), positive, at least float32
    A: Tensor,  # (h,), negative, at least float32
    B: Tensor,  # (b, t, g, n)
    C: Tensor,  # (b, t, g, n)
    D: Tensor,  # (h,), at least float32
    state: Tensor | None = None,  # (b, h, p, n), at least float32: what came before; None: nothing
    documents: Tensor | None = None,  # (b, t) int64, rising along a row: each starts from nothing, the first one from `state`
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (b, t, h, p) in the type of x, and the state (b, h, p, n) after the last position, at least float32.

    By mamba-ssm's kernels where they are installed and x is on a CUDA device, in float32 or less; by `chunked_scan` elsewhere.
    Raises ValueError for shapes that do not fit.
    """
    heads, groups = x.shape[2], B.shape[2]
    if not x.shape[1]:
        raise ValueError("expected at least one position, got x (b, 0, h, p)")
    if heads % groups or x.shape[:2] != B.shape[:2] or B.shape != C.shape or dt.shape != x.shape[:3]:
        raise ValueError(
            "expected x (b, t, h, p), dt (b, t, h), B and C (b, t, g, n) with g a divisor of h, "
            f"got {tuple(x.shape)}, {tuple(dt.shape)}, {tuple(B.shape)} and {tuple(C.shape)}"
        )
    if KERNELS and x.is_cuda and x.dtype != torch.float64:
        return kernel_scan(x, dt, A, B, C, D, state, documents, chunk=chunk)
    return chunked_scan(x, dt, A, B, C, D, state, documents, chunk=chunk)


def kernel_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same by mamba-ssm's Triton kernels."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # pyright: ignore[reportMissingImports]

    scan: Any = mamba_chunk_scan_combined
    seq_idx = None if documents is None else documents.to(torch.int32).contiguous()
    return scan(x, dt, A, B, C, chunk_size=chunk, D=D, initial_states=state, seq_idx=seq_idx, return_final_states=True)


def ssd_step(
    x: Tensor,  # (b, h, p)
    dt: Tensor,  # (b, h)
    A: Tensor,  # (h,)
    B: Tensor,  # (b, g, n)
    C: Tensor,  # (b, g, n)
    D: Tensor,  # (h,)
    state: Tensor,  # (b, h, p, n)
) -> tuple[Tensor, Tensor]:
    """One position of the recurrence, in at least float32: y (b, h, p) in the type of x, and the new state."""
    B, C = (at_least_float32(u).repeat_interleave(x.shape[1] // u.shape[1], dim=1) for u in (B, C))  # (b, h, n)
    u = at_least_float32(x)
    state = state.contiguous()  # a scan's is not, and the products of all later steps would copy it
    state = (state * torch.exp(dt * A)[..., None, None]).addcmul_((dt[..., None] * u)[..., None], B[:, :, None])
    y = torch.einsum("bhpn,bhn->bhp", state, C) + D[:, None] * u
    return y.to(x.dtype), state


def chunked_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The scan in plain torch, any device. Arguments and result as in `ssd`. Memory grows linearly with t.

    Decays and the states are computed in at least float32, the products in the type of x.
    """
    (b, t, h, p), (g, n), dtype = x.shape, B.shape[2:], x.dtype
    r, q = h // g, min(chunk, t)
    c = -(-t // q)
    if c * q > t:  # positions with dt = 0 neither decay nor add
        x, dt, B, C = (F.pad(u, (0, 0) * (u.ndim - 2) + (0, c * q - t)) for u in (x, dt, B, C))
        documents = None if documents is None else F.pad(documents[:, None], (0, c * q - t), mode="replicate")[:, 0]
    x, dt = x.view(b, c, q, h, p), dt.view(b, c, q, h)
    B, C = (u.view(b, c, q, g, n).transpose(2, 3) for u in (B, C))  # (b, c, g, q, n)
    dt = dt.transpose(2, 3).reshape(b, c, g, r, q)
    a = dt * A.view(g, r, 1)
    into = a.cumsum(-1)  # (b, c, g, r, q): from the chunk's start to a position, itself included
    if documents is not None:
        documents = documents.view(b, c, q)
        into = into.masked_fill(_begun_here(documents)[:, :, None, None], -torch.inf)  # what came before is not seen

    # Inside a chunk: y_t = D x_t + Σ_{s ≤ t} (C_t · B_s) exp(a_{s+1} + ... + a_t) dt_s x_s, with C·Bᵀ once per group.
    scores = at_least_float32(C @ B.mT)
    weights, left = _Weights.apply(a, dt, scores, D.view(g, r), documents)  # pyright: ignore[reportGeneralTypeIssues]
    inside = weights.view(b, c, h, q, q).to(dtype) @ x.transpose(2, 3)  # (b, c, h, q, p)

    # What each chunk adds to the state: Σ_s exp(a_{s+1} + ... + a_q) dt_s B_s x_sᵀ; then from chunk to chunk.
    kept = (x * left.view(b, c, h, q).transpose(2, 3)[..., None]).to(dtype)  # (b, c, q, h, p)
    added = at_least_float32(B.mT @ kept.view(b, c, q, g, r * p).transpose(2, 3))  # (b, c, g, n, r p)
    decay = torch.exp(into[..., -1:]).expand(b, c, g, r, p).reshape(b, c, g, 1, r * p)
    first = torch.zeros_like(added[:, 0]) if state is None else state.view(b, g, r * p, n).mT
    starts, last = _PassOn.apply(added, decay, first)  # pyright: ignore[reportGeneralTypeIssues]

    # What the state at a chunk's start gives to its positions.
    before = (C @ starts.to(dtype)).transpose(2, 3).reshape(b, c, q, h, p)
    y = (before * torch.exp(into).view(b, c, h, q).transpose(2, 3)[..., None]).add_(inside.transpose(2, 3))
    return y.to(dtype).reshape(b, c * q, h, p)[:, :t], last.mT.reshape(b, h, p, n)


class _Weights(torch.autograd.Function):
    """The weight of position s (column) in y_t (row): exp(a_{s+1} + ... + a_t) dt_s (C_t · B_s), and D more where s = t.

    a ≤ 0 and dt (b, c, g, r, q), scores C·Bᵀ (b, c, g, q, q), D (g, r) -> the weights (b, c, g, r, q, q), and those of the state at
    the chunk's end (b, c, g, r, q): the last row, without C·Bᵀ and D.

    The sums of a are differences of cumulative sums, taken in float64: in float32 a large decay before position s would swallow
    the small ones after it. What lies above the diagonal is masked before the exponential, which could overflow there; so is, with
    documents (b, c, q), what lies in another one.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, dt: Tensor, scores: Tensor, D: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
        dt = dt + 1e-30  # what the gradient divides by; nothing is added to any dt but 0
        total = a.double().cumsum(-1) if documents is None else _cumsum_within(a.double(), documents[:, :, None, None])
        sums = (total[..., :, None] - total[..., None, :]).to(a.dtype)
        unseen = torch.ones(a.shape[-1], a.shape[-1], dtype=torch.bool, device=a.device).triu(1)
        if documents is not None:
            unseen = unseen | (documents[..., :, None] != documents[..., None, :])[:, :, None, None]
        decays = sums.masked_fill_(unseen, -torch.inf).exp_().mul_(dt[..., None, :])
        weights = decays * scores[:, :, :, None]
        weights.diagonal(dim1=-2, dim2=-1).add_(D[..., None])
        left = decays[..., -1, :].contiguous()
        ctx.save_for_backward(decays, dt, scores, left)
        return weights, left

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (decays, dt, scores, left), (of_weights, of_left) = ctx.saved_tensors, grads
        of_sums = of_weights * decays
        of_scores = of_sums.sum(3)
        of_sums.mul_(scores[:, :, :, None])  # of the logarithm of each weight
        at_end = of_left * left
        of_dt = (of_sums.sum(-2) + at_end) / dt
        # a_t is in the sums of rows t and later, columns before t. The diagonal's sums are empty; what is left is a difference of
        # large terms where decays are large, so it is taken in float64.
        of_sums.diagonal(dim1=-2, dim2=-1).zero_()
        of_end = at_end.double()
        of_end[..., -1] = 0
        rows, columns = of_sums.sum(-1, dtype=torch.float64), of_sums.sum(-2, dtype=torch.float64) + of_end
        rows[..., -1] += of_end.sum(-1)
        of_a = (rows - columns).flip(-1).cumsum(-1).flip(-1).to(dt.dtype)
        return of_a, of_dt, of_scores, of_weights.diagonal(dim1=-2, dim2=-1).sum((0, 1, -1)), None


def _begun_here(documents: Tensor) -> Tensor:
    """documents (b, c, q) -> (b, c, q) bool: the position's document began in its own chunk, after the first chunk's first one."""
    before = torch.cat([documents[:, :1, :1], documents[:, :-1, -1:]], dim=1)  # (b, c, 1): of the last position before
    return documents != before


def _cumsum_within(a: Tensor, documents: Tensor) -> Tensor:
    """a.cumsum(-1) that begins again with each document: sums across would round by what other documents hold."""
    goes_on = documents[..., 1:] == documents[..., :-1]
    sums = [a[..., 0]]
    for i in range(1, a.shape[-1]):
        sums.append(torch.where(goes_on[..., i - 1], sums[-1], 0) + a[..., i])
    return torch.stack(sums, dim=-1)


class _PassOn(torch.autograd.Function):
    """From chunk to chunk, H_{i+1} = decay_i H_i + added_i: (b, c, ...), (b, c, ...), (b, ...) -> the states (b, c, ...) at
    each chunk's start and the one (b, ...) at the end. A function of its own, since autograd's gradient of one chunk of a tensor
    is as large as the tensor, and the time would grow with the square of the number of chunks."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, decay: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        starts, last = torch.empty_like(added), torch.empty_like(first)
        starts[:, 0] = first
        for i in range(added.shape[1]):
            following = starts[:, i + 1] if i + 1 < added.shape[1] else last
            torch.addcmul(added[:, i], decay[:, i], starts[:, i], out=following)
        ctx.save_for_backward(starts, decay)
        ctx.set_materialize_grads(False)
        return starts, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (starts, decay), (of_starts, of_last) = ctx.saved_tensors, grads
        onward = torch.zeros_like(starts[:, 0]) if of_last is None else of_last  # the gradient at what follows chunk i
        added = torch.empty_like(starts)  # its gradient is that at the state after it
        for i in reversed(range(starts.shape[1])):
            added[:, i] = onward
            onward = decay[:, i] * onward if of_starts is None else torch.addcmul(of_starts[:, i], decay[:, i], onward)
        return added, (added * starts).sum_to_size(decay.shape), onward
