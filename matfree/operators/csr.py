"""Sparse matrices in CSR format, whose kernels an adapter provides."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from matfree.arrays import conjugate
from matfree.operators.algebra import Operator
from matfree.operators.base import spaces_like
from matfree.protocol import Array
from matfree.spaces import VectorSpace


class CsrKernels(Protocol):
    """What an array library computes with one CSR matrix."""

    fused: bool
    """Whether ``lanczos_step`` and ``quadratic_forms`` may be faster than ``matmat``."""
    description: str
    """What ``repr`` of the operator says about the kernels; empty for the library's own."""

    def matmat(self, X: Array) -> Array:
        """A @ X for a block (n, k), in C order."""

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One fused step of the Lanczos recurrence; see ``LinearOperator``."""

    def quadratic_forms(self, X: Array) -> Array | None:
        """The numbers x_j^H A x_j; see ``LinearOperator``."""


class CsrOperator(Operator):
    """A CSR matrix of any array library. The transpose is computed when it is first needed.

    Parameters
    ----------
    matrix : (m, n) sparse matrix in CSR format
    example : array
        It fixes the library, device and data type of the vectors; see ``space_like``.
    """

    def __init__(self, matrix: Any, example: Array) -> None:
        super().__init__(*spaces_like(example, matrix.shape))
        self.matrix = matrix if matrix.dtype == self.dtype else matrix.astype(self.dtype)
        self._kernels = self._kernels_for(self.matrix, self.space)
        self._transpose_kernels: CsrKernels | None = None
        if self._kernels.fused:  # methods of the kernels: those of self would form a cycle
            self.lanczos_step = self._kernels.lanczos_step
            self.quadratic_forms = self._kernels.quadratic_forms

    @abstractmethod
    def _kernels_for(self, matrix: Any, space: VectorSpace) -> CsrKernels:
        """The kernels of a CSR matrix whose products are vectors of ``space``."""

    def _apply(self, X: Array) -> Array:
        return self._kernels.matmat(X)

    def _apply_adjoint(self, X: Array) -> Array:
        if self._transpose_kernels is None:
            self._transpose_kernels = self._kernels_for(self.matrix.T.tocsr(), self.domain)
        # A^H X = conj(A^T conj(X)): the block is conjugated, because the matrix would be copied.
        xp = self.space.xp
        return conjugate(xp, self._transpose_kernels.matmat(conjugate(xp, X)))

    def __reduce__(self) -> tuple[Any, ...]:
        """The operator as its class and matrix: kernels are not sent to other processes."""
        return type(self), (self.matrix,)

    def __repr__(self) -> str:
        plain, description = super().__repr__(), self._kernels.description
        return f"{plain[:-1]}, {description}>" if description else plain
