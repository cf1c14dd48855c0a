"""Sparse matrices in CSR format, whose kernels an adapter provides."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from array_api_compat import array_namespace

from matfree.arrays import conjugate, is_complex
from matfree.errors import OperatorError
from matfree.operators.algebra import Operator
from matfree.operators.base import spaces_like
from matfree.operators.form_variance import sum_of_squares, variance_of_forms
from matfree.protocol import Array, ProbeKind
from matfree.spaces import VectorSpace

_LEAST_SIZE = 1 << 14
"""The least n for which the variance of quadratic forms is computed from the entries, because
quadratic forms without products are faster."""


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

    holds_entries = True

    def __init__(self, matrix: Any, example: Array) -> None:
        super().__init__(*spaces_like(example, matrix.shape))
        self.matrix = matrix if matrix.dtype == self.dtype else matrix.astype(self.dtype)
        self._kernels = self._kernels_for(self.matrix, self.space)
        self._transpose_kernels: CsrKernels | None = None
        if self._kernels.fused:  # methods of the kernels: those of self would form a cycle
            self.lanczos_step = self._kernels.lanczos_step
            self.quadratic_forms = self._kernels.quadratic_forms

    def largest_entry(self) -> float:
        """The largest absolute entry."""
        data, xp = self.matrix.data, self.space.xp
        if not data.shape[0]:
            return 0.0
        if is_complex(xp, self.dtype):
            return float(xp.max(xp.abs(data)))
        return max(float(xp.max(data)), -float(xp.min(data)))

    def form_variance(self, kind: ProbeKind) -> float | None:
        """The variance of w^H A w; see ``matfree.operators.form_variance``."""
        matrix, (m, n) = self.matrix, self.shape
        # Smaller matrices get the error of a dense one, so that it is independent of the format.
        # Entries that are stored in parts have other squares.
        if m != n or n < _LEAST_SIZE or not matrix.has_canonical_format:
            return None
        squares = sum_of_squares(self.space, matrix.data[:, None])
        return variance_of_forms(self.space, squares, matrix.diagonal()[:, None], kind)

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


def require_valid_indices(matrix: Any) -> None:
    """Refuse a sparse matrix of SciPy or CuPy with indices out of range, whatever its format.

    Compiled products and conversions do not check indices: they would read memory that does not
    belong to the vectors.

    Cost
    ----
    One pass over the indices, which is less than one matvec.

    Raises
    ------
    OperatorError
        An index is out of range, or the pointers of the rows (of the columns) do not ascend.
    """
    m, n = matrix.shape
    if matrix.format == "coo":
        require_indices(matrix.row, m, "row")
        require_indices(matrix.col, n, "column")
    elif matrix.format in ("csr", "csc", "bsr"):
        lines, across, index, pointer = m, n, "column", "row"
        if matrix.format == "csc":
            lines, across, index, pointer = n, m, "row", "column"
        height, width = matrix.blocksize if matrix.format == "bsr" else (1, 1)
        _require_pointers(matrix, lines // height, pointer)
        require_indices(matrix.indices, across // width, index)


def require_indices(indices: Array, size: int, what: str) -> None:
    """Raise OperatorError unless all indices of a sparse matrix are in [0, size)."""
    if not indices.shape[0]:
        return
    xp = array_namespace(indices)
    least, most = int(xp.min(indices)), int(xp.max(indices))
    if least < 0 or most >= size:
        wrong = least if least < 0 else most
        raise OperatorError(
            f"the sparse matrix has the {what} index {wrong}, which is not in [0, {size}): the "
            "file or the code that it comes from is damaged; build the matrix again."
        )


def _require_pointers(matrix: Any, lines: int, what: str) -> None:
    """Raise OperatorError unless the pointers ascend from 0 to at most the number of indices."""
    pointers, num_indices = matrix.indptr, matrix.indices.shape[0]
    fits = pointers.shape[0] == lines + 1 and matrix.data.shape[0] >= num_indices
    fits = fits and int(pointers[0]) == 0 and int(pointers[-1]) <= num_indices
    if not fits or not bool(array_namespace(pointers).all(pointers[1:] >= pointers[:-1])):
        raise OperatorError(
            f"the {what} pointers of the sparse matrix must be {lines + 1} numbers that ascend "
            f"from 0 to at most {num_indices}, its number of indices, with as many entries: the "
            "file or the code that it comes from is damaged; build the matrix again."
        )
