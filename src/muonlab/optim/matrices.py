"""Which logical matrices a stored parameter holds. Orthogonalization, shape rule, variance axis and decay all follow it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from muonlab.names import choose

AXES = ("output", "input")


@dataclass(frozen=True)
class MatrixSpec:
    """How to see a stored tensor as its logical matrices (m, n) = (out, in).

    `batch_dims`: so many leading dimensions only count matrices: banks and expert stacks (E, m, n). What comes after the
    output dimension is flattened: a convolution (out, in, k, k) is one matrix (out, in·k·k). `transposed`: stored
    as (in, out), as Hugging Face's Conv1D does. `split`: the matrix is several that share an index, along `axis`: a
    number of equal blocks (3 for fused QKV, the number of heads, half of it for pairs of heads) or their sizes in order (grouped
    queries, Mamba's in_proj). `groups`: the blocks are interleaved: the outputs are so many equal groups, each split like
    that, and a matrix is the blocks that stand at the same place of all groups. With 12 heads, [q1 k1 v1 q2 k2 v2 …] is
    groups=12, split=3; Falcon's [q…q k v] for each of 8 pairs of keys and values is groups=8, split=(q, d, d). `norm_axis`:
    what a norm constraint runs along: "input" keeps the norm of every row (an output's weights over its inputs), "output" that
    of every column; None: this parameter is not constrained. A vector (a gain, a bias) never is.
    """

    transposed: bool = False
    batch_dims: int = 0
    split: int | tuple[int, ...] = 1
    axis: str = "output"
    groups: int = 1
    norm_axis: str | None = None

    def __post_init__(self) -> None:
        choose("axis to split", self.axis, AXES)
        if self.norm_axis is not None:
            choose("norm_axis", self.norm_axis, AXES)
        if not isinstance(self.batch_dims, int) or self.batch_dims < 0:
            raise ValueError(f"expected batch_dims to be a number of leading dimensions, got {self.batch_dims!r}")
        if isinstance(self.split, list):
            object.__setattr__(self, "split", tuple(self.split))
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"expected groups to be a number of groups of outputs, got {self.groups!r}")
        if self.groups > 1 and self.axis != "output":
            raise ValueError("groups: expected blocks interleaved along the outputs, got axis 'input'")
        sizes = self.split if isinstance(self.split, tuple) else (self.split,)
        if not sizes or any(not isinstance(s, int) or s < 1 for s in sizes):
            raise ValueError(f"expected split to be a number of blocks or their sizes, got {self.split!r}")

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """tensor as stored -> its logical matrices, each (m, n), as views; those of several groups, copies. Raises ValueError where
        it does not fit."""
        if tensor.ndim == 2 and self.split == 1 and not self.batch_dims:  # by far the most frequent case, kept short
            return [tensor.mT if self.transposed else tensor]
        if tensor.ndim - self.batch_dims < 2:
            wanted = "a parameter (out, in)" if not self.batch_dims else f"{self.batch_dims} batch dimensions and a matrix"
            raise ValueError(
                f"expected {wanted}, got shape {tuple(tensor.shape)}: give it to a group with an elementwise rule such as 'adamw'"
            )
        if self.transposed and tensor.ndim - self.batch_dims != 2:
            raise ValueError(f"transposed: expected a matrix (in, out), got shape {tuple(tensor.shape)}")
        count = math.prod(tensor.shape[: self.batch_dims])
        stacked = tensor.reshape(count, tensor.shape[self.batch_dims], math.prod(tensor.shape[self.batch_dims + 1 :]))
        whole = (stacked.mT if self.transposed else stacked).unbind(0)
        if self.split == 1:
            return list(whole)
        if self.groups > 1:
            return [block.reshape(-1, block.shape[-1]) for matrix in whole for block in self._interleaved(matrix)]
        dim = 0 if self.axis == "output" else 1
        return [block for matrix in whole for block in matrix.split(self._sizes(matrix.shape[dim]), dim)]

    def write(self, tensor: Tensor, which: Sequence[int], matrices: Sequence[Tensor]) -> None:
        """Brings matrices of several groups back to their places in `tensor`; which: their numbers among all."""
        stored = tensor.reshape(-1, *tensor.shape[self.batch_dims :])
        whole = (stored.mT if self.transposed else stored.flatten(2)).unbind(0)
        places = [place for matrix in whole for place in self._interleaved(matrix)]
        for i, matrix in zip(which, matrices, strict=True):
            places[i].copy_(matrix.reshape(places[i].shape))

    def _interleaved(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """(out, n) -> its blocks (groups, size, n), as views."""
        if matrix.shape[0] % self.groups:
            raise ValueError(f"groups {self.groups}: expected a divisor of the {matrix.shape[0]} outputs")
        apart = matrix.unflatten(0, (self.groups, -1))
        return apart.split(self._sizes(apart.shape[1]), 1)

    def _sizes(self, length: int) -> list[int]:
        if isinstance(self.split, tuple):
            sizes = list(self.split)
        else:
            sizes = [length // self.split] * self.split
        if sum(sizes) != length:
            of = f" of each of {self.groups} groups" if self.groups > 1 else ""
            raise ValueError(f"split {self.split} does not fit {length} {self.axis}s{of}: they must add up to it")
        return sizes

    def shapes(self, tensor: Tensor) -> list[tuple[int, int]]:
        """The shapes of its matrices, in order."""
        return [(int(x.shape[0]), int(x.shape[1])) for x in self.matrices(tensor)]

    @property
    def norm_dim(self) -> int | None:
        """The dimension of a logical matrix that a norm runs along: -1 for "input", -2 for "output"."""
        return None if self.norm_axis is None else (-1 if self.norm_axis == "input" else -2)

    def stored_norm_dim(self, ndim: int) -> int | tuple[int, ...] | None:
        """The same of the parameter as stored, with ndim dimensions. A vector has no inputs and outputs: None."""
        own = ndim - self.batch_dims
        if self.norm_axis is None or own < 2:
            return None
        if own == 2:
            return -1 if (self.norm_axis == "input") != self.transposed else -2
        return -own if self.norm_axis == "output" else tuple(range(1 - own, 0))  # a convolution's inputs: in·k·k

    def __str__(self) -> str:
        parts = ["transposed"] if self.transposed else []
        parts += [f"bank of {self.batch_dims} dim"] if self.batch_dims else []
        parts += [f"split {self.split} along {self.axis}"] if self.split != 1 and self.groups == 1 else []
        parts += [f"{self.groups} groups of {self.split}"] if self.split != 1 and self.groups > 1 else []
        parts += [f"unit along {self.norm_axis}"] if self.norm_axis else []
        return ", ".join(parts)


PLAIN = MatrixSpec()
