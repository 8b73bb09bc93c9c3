"""The kernel behind `symmetric_product`: one program for each tile on or below the diagonal. Needs Triton."""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor
from triton import knobs  # pyright: ignore[reportMissingImports]

INTERPRETED: bool = knobs.runtime.interpret

# One BLOCK_K, so that a tile size chosen by timing leaves the order of summation alone. The interpreter has nothing to time.
_CONFIGS = [
    triton.Config({"BLOCK": block, "BLOCK_K": 64}, num_warps=warps, num_stages=stages)
    for block, warps, stages in ((64, 4, 3), (128, 4, 3), (128, 8, 4))
][: 1 if INTERPRETED else None]


def launch(a: Tensor, b: Tensor, add: Tensor | None, beta: float, alpha: float, out: Tensor) -> None:
    """out = alpha·ab + beta·add, checked by the caller."""
    batch, m, k = a.shape
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    plus = out if add is None else add  # some pointer has to be passed

    def grid(config: dict[str, int]) -> tuple[int]:
        tiles = -(-m // config["BLOCK"])
        return (batch * (tiles * (tiles + 1) // 2),)

    with torch.cuda.device_of(a):  # Triton launches on the current device
        _triangle[grid](  # pyright: ignore[reportIndexIssue]
            a, b, plus, out, m, k, beta, alpha, *a.stride(), *b.stride(), *plus.stride(), *out.stride(),
            HAS_ADD=add is not None, PRECISION=precision, WIDEN=INTERPRETED and a.dtype == torch.bfloat16,
        )  # fmt: skip


@triton.autotune(configs=_CONFIGS, key=["m", "k"])
@triton.jit
def _triangle(
    a, b, add, out, m, k, beta, alpha,
    a_batch, a_row, a_col, b_batch, b_row, b_col, add_batch, add_row, add_col, out_batch, out_row, out_col,
    HAS_ADD: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The p-th tile of the triangle, row by row, is (i, j) with p = i(i + 1)/2 + j. The root is rounded: i is put right.
    tiles = tl.cdiv(m, BLOCK)
    per_matrix = tiles * (tiles + 1) // 2
    p = tl.program_id(0) % per_matrix
    i = ((tl.sqrt(8.0 * p.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > p, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= p, i + 1, i)
    j = p - i * (i + 1) // 2

    # 64 bits: a stack can have more elements than 32 bits count.
    batch = (tl.program_id(0) // per_matrix).to(tl.int64)
    rows = (i * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    cols = (j * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inner = tl.arange(0, BLOCK_K).to(tl.int64)
    a_tile = a + batch * a_batch + rows[:, None] * a_row + inner[None, :] * a_col
    b_tile = b + batch * b_batch + inner[:, None] * b_row + cols[None, :] * b_col
    c = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        left = inner < k - start
        x = tl.load(a_tile, mask=(rows < m)[:, None] & left[None, :], other=0.0)
        y = tl.load(b_tile, mask=left[:, None] & (cols < m)[None, :], other=0.0)
        if WIDEN:  # the interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584)
            x, y = x.to(tl.float32), y.to(tl.float32)
        c = tl.dot(x, y, c, input_precision=PRECISION)
        a_tile += BLOCK_K * a_col
        b_tile += BLOCK_K * b_row
    c *= alpha

    inside = (rows < m)[:, None] & (cols < m)[None, :]
    if HAS_ADD:
        plus = tl.load(add + batch * add_batch + rows[:, None] * add_row + cols[None, :] * add_col, mask=inside, other=0.0)
        c += beta * plus.to(tl.float32)
    if i == j:  # rounding is not symmetric: the diagonal tile mirrors its own lower half
        c = tl.where(rows[:, None] >= cols[None, :], c, tl.trans(c))
    c = c.to(out.dtype.element_ty)
    out += batch * out_batch
    tl.store(out + rows[:, None] * out_row + cols[None, :] * out_col, c, mask=inside)
    if i != j:
        mirrored = (cols < m)[:, None] & (rows < m)[None, :]
        tl.store(out + cols[:, None] * out_row + rows[None, :] * out_col, tl.trans(c), mask=mirrored)
