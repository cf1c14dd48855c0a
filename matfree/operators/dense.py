"""Dense matrices: 2-D arrays of any library of the array API standard."""

from __future__ import annotations

from typing import final

from matfree.arrays import conjugate
from matfree.operators.algebra import Operator
from matfree.operators.base import require_matrix, spaces_like
from matfree.operators.containers import as_plain_array
from matfree.protocol import Array


@final
class DenseOperator(Operator):
    """A 2-D array as an operator, on the device of the array.

    Integers and booleans are converted to the library's double precision, and 16-bit floating
    point to 32-bit, because sums over rows would lose all accuracy in less.

    Parameters
    ----------
    matrix : (m, n) array

    Raises
    ------
    OperatorError
        The array does not have two dimensions.

    Cost
    ----
    No copy, unless the data type is converted. A matvec costs m n multiplications.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.DenseOperator(np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> A, A.H @ np.ones(2)
    (<2x2 DenseOperator of dtype float64>, array([4., 6.]))
    """

    holds_entries = True

    def __init__(self, matrix: Array) -> None:
        matrix = as_plain_array(matrix)
        require_matrix(matrix)
        super().__init__(*spaces_like(matrix, matrix.shape))
        same = matrix.dtype == self.dtype
        self.matrix = matrix if same else self.space.xp.astype(matrix, self.dtype)

    def _apply(self, X: Array) -> Array:
        return self.matrix @ X

    def _apply_adjoint(self, X: Array) -> Array:
        # conj(A^T conj(X)) conjugates two blocks instead of a copy of the whole matrix.
        return conjugate(self.space.xp, self.matrix.T @ conjugate(self.space.xp, X))

    def to_dense(self, *, columns: range | None = None) -> Array:
        """The matrix, or some of its columns, as a copy."""
        chosen = slice(None) if columns is None else slice(columns.start, columns.stop)
        return self.space.xp.asarray(self.matrix[:, chosen], copy=True)
