"""Matrices as products of two thin ones, which is what LoRA adapters hold; no (out × in) matrix is ever formed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-13
"""What is smaller, relative to the matrices that went into it, is float64's rounding and no part of a matrix."""


@dataclass(frozen=True)
class LowRank:
    """The matrix B A.

    Attributes:
        b: `(out, rank)`.
        a: `(rank, in)`.
    """

    b: Tensor
    a: Tensor

    @property
    def rank(self) -> int:
        """How many columns B has: no less than the rank of the matrix."""
        return self.a.shape[0]

    @property
    def T(self) -> LowRank:
        """The transposed matrix."""
        return LowRank(self.a.T, self.b.T)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.b @ (self.a @ x)

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.b * factor, self.a)

    def __add__(self, other: LowRank) -> LowRank:
        return LowRank(torch.cat([self.b, other.b], 1), torch.cat([self.a, other.a]))

    def __sub__(self, other: LowRank) -> LowRank:
        return self + other * -1.0

    def inner(self, other: LowRank) -> float:
        """Return ⟨self, other⟩, the sum of the products of their entries."""
        return float(((self.b.T @ other.b) * (self.a @ other.a.T)).sum())

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(torch.linalg.matrix_norm(self._core()[1]))

    def compact(self, scale: float | None = None) -> LowRank:
        """Return the same matrix with as small a rank as it has; the columns of B are orthonormal, and so are the rows of A
        but for their lengths, the singular values, which fall.

        Args:
            scale: Singular values below `NEGLIGIBLE` times this are zeros; if `None`, the largest of them.
        """
        left, core, right = self._core()
        u, sizes, v = torch.linalg.svd(core, full_matrices=False)
        kept = sizes > NEGLIGIBLE * (scale if scale is not None else float(sizes.max()) if len(sizes) else 0.0)
        return LowRank(left @ u[:, kept], (sizes[:, None] * (v @ right.T))[kept])

    def dense(self) -> Tensor:
        """Return the matrix itself, `(out, in)`, for tests."""
        return self.b @ self.a

    def _core(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q, K and P of B A = Q K Pᵀ, with orthonormal columns in Q and P."""
        left, upper = torch.linalg.qr(self.b)
        right, other = torch.linalg.qr(self.a.T)
        return left, upper @ other.T, right


class Inputs(NamedTuple):
    """How large the inputs of a layer's matrices are on rows of the defender's, under the tuned model.

    Each is a root mean square over all tokens of the rows, prompts and answers.

    Attributes:
        x: Of the layer's inputs, by feature, `(in,)`.
        update: Of A x with the A of `Layer.update`, `(update.rank,)`.
        tuned: Of A x with the A of `Layer.tuned`, `(tuned.rank,)`.
    """

    x: Tensor
    update: Tensor
    tuned: Tensor


@dataclass(frozen=True)
class Layer:
    """One matrix of a model that two adapters on the same base change. Iterated over, it is V and ΔW.

    Attributes:
        alignment: V, what the aligned adapter adds to the base's weight, scale included.
        update: ΔW, what fine-tuning changed since: the tuned adapter less the aligned one. Its rank is 0 where it is zero.
        aligned: The aligned adapter's own B and A, as they were trained, each times the root of its scale; their product is V.
        tuned: The tuned adapter's, likewise; their product is V + ΔW.
        inputs: How large the inputs are on the rows of `harmful_dataset`, of a repair that declares this stream.
    """

    alignment: LowRank
    update: LowRank
    aligned: LowRank | None = None
    tuned: LowRank | None = None
    inputs: Inputs | None = None

    def __iter__(self) -> Iterator[LowRank]:
        return iter((self.alignment, self.update))
