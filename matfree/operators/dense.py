"""A matrix that is given: any 2-D array of the array API standard."""

from __future__ import annotations

from typing import final

from matfree.arrays import conjugate
from matfree.operators.algebra import Operator
from matfree.protocol import Array
from matfree.spaces import space_like


@final
class DenseOperator(Operator):
    """A 2-D array as an operator, on its own device.

    Integers and booleans become the library's double precision, once; 16-bit floating
    point becomes 32-bit, because sums over rows would otherwise lose everything.

    Parameters
    ----------
    matrix : (m, n) array

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.DenseOperator(np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> A, A.H @ np.ones(2)
    (<2x2 DenseOperator of dtype float64>, array([4., 6.]))
    """

    def __init__(self, matrix: Array) -> None:
        m, n = matrix.shape
        super().__init__(space_like(matrix, m), space_like(matrix, n))
        same = matrix.dtype == self.dtype
        self.matrix = matrix if same else self.space.xp.astype(matrix, self.dtype)

    def _apply(self, X: Array) -> Array:
        return self.matrix @ X

    def _apply_adjoint(self, X: Array) -> Array:
        return conjugate(self.space.xp, self.matrix.T @ conjugate(self.space.xp, X))

    def to_dense(self, *, columns: range | None = None) -> Array:
        """The matrix, or some of its columns, as a copy."""
        chosen = slice(None) if columns is None else slice(columns.start, columns.stop)
        return self.space.xp.asarray(self.matrix[:, chosen], copy=True)
