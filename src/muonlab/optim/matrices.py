"""Which logical matrix a stored parameter holds. Orthogonalization, shape rule and variance axis all follow it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MatrixSpec:
    """How to see a stored tensor as its logical matrix (m, n) = (out, in).

    `transposed`: stored as (in, out), as Hugging Face's Conv1D does. A view is never a copy: what is written to it
    is written to the parameter.
    """

    transposed: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """tensor as stored -> its logical matrix (m, n), a view. Raises ValueError if it is not a matrix."""
        if tensor.ndim != 2:
            raise ValueError(
                f"expected a 2-D parameter (out, in), got shape {tuple(tensor.shape)}: "
                "give it to a group with an elementwise rule such as 'adamw'"
            )
        return tensor.mT if self.transposed else tensor


PLAIN = MatrixSpec()
