r"""Products and Lanczos steps of a CSR matrix, chunk of rows by chunk of rows.

A step of the recurrence for a block of vectors is limited by memory bandwidth. Array operations
read and write the block about ten times. Chunk by chunk it takes two passes over the block,

.. math::

    W &= A U - V_{\mathrm{previous}} \operatorname{diag}(\beta),
        \qquad \alpha_j = \langle u_j, w_j \rangle, \\
    R &= W - U \operatorname{diag}(\alpha),
        \qquad \rho_j = \lVert r_j \rVert,

where each pass computes the inner products on the way. The unit vectors U = V diag(scale) are
not stored, and both W and R overwrite ``previous``.

Threads share the chunks. The partial sums of every chunk are stored separately and added in the
order of the chunks, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from matfree.protocol import Array


class LeastColumns(NamedTuple):
    """The block widths from which a strategy is the fastest, for each computation."""

    matmat: int
    lanczos_step: int
    quadratic_forms: int


class ChunkedProducts(ABC):
    """A strategy for multiplying a CSR matrix; a method returns None if it is not the fastest.

    Sums over rows are accumulated in double precision for every data type.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    least_columns: LeastColumns

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.wide = np.result_type(matrix.dtype, np.float64)

    def matmat(self, X: Array) -> Array | None:
        """A @ X, for a block (n, k) in C order."""
        if not _suits(X, self.least_columns.matmat):
            return None
        Y = np.empty((self.matrix.shape[0], X.shape[1]), dtype=X.dtype)
        self._multiply(X, Y)
        return Y

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, whose remainder overwrites ``previous``."""
        least = self.least_columns.lanczos_step
        if not (_suits(V, least) and _suits(previous, least)):
            return None
        sums = self._partial_sums(V)
        self._first_pass(V, previous, beta, scale, sums)
        alpha = sums.sum(axis=0) * scale
        self._second_pass(V, previous, alpha * scale, sums)
        return previous, alpha, np.sqrt(sums.sum(axis=0).real)

    def quadratic_forms(self, X: Array) -> Array | None:
        """The numbers x_j^H A x_j for the columns of a block, without storing A @ X."""
        if not _suits(X, self.least_columns.quadratic_forms):
            return None
        sums = self._partial_sums(X)
        self._form_sums(X, sums)
        return sums.sum(axis=0)

    def _partial_sums(self, X: Array) -> Any:
        """An uninitialized array for one sum per chunk and column."""
        return np.empty((self._num_chunks(X), X.shape[1]), dtype=self.wide)

    @abstractmethod
    def _num_chunks(self, X: Array) -> int:
        """The number of chunks for blocks as wide as X."""

    @abstractmethod
    def _multiply(self, X: Array, Y: Array) -> None:
        """Y = A X."""

    @abstractmethod
    def _form_sums(self, X: Array, sums: Array) -> None:
        """The sums of conj(X) (A X) over each chunk."""

    @abstractmethod
    def _first_pass(self, V: Array, W: Array, beta: Array, scale: Array, sums: Array) -> None:
        """W = A V diag(scale) - W diag(beta), and the sums of conj(V) W over each chunk."""

    @abstractmethod
    def _second_pass(self, V: Array, W: Array, factors: Array, sums: Array) -> None:
        """W -= V diag(factors), and the sums of |W|^2 over each chunk."""


def _suits(X: Array, least_columns: int) -> bool:
    return X.shape[1] >= least_columns and bool(X.flags.c_contiguous)
