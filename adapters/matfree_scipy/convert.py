"""Conversion from SciPy objects to matfree operators, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from matfree import Operator, VectorSpace, aslinearoperator
from matfree.arrays import to_host
from matfree.operators.base import require_matrix
from matfree.operators.csr import CsrOperator, require_valid_indices
from matfree.operators.declared import from_declaration
from matfree.protocol import Array
from matfree_scipy.strategies import CsrStrategies


def adapt(obj: Any) -> Operator | None:
    """Convert a SciPy sparse matrix or LinearOperator to an operator.

    Parameters
    ----------
    obj : sparse array or matrix of any format, or ``scipy.sparse.linalg.LinearOperator``

    Returns
    -------
    Operator or None
        None for other objects, and for a LinearOperator without a dtype.

    Raises
    ------
    OperatorError
        The matrix does not have two dimensions, an index of it is out of range, or the
        LinearOperator is batched, which SciPy 1.18 allows.

    Examples
    --------
    >>> import matfree as mf, scipy.sparse as sp
    >>> A = sp.diags_array([1.0, 2.0, 3.0])
    >>> mf.trace(A, num_probes=1, seed=0).value
    6.0
    """
    if scipy.sparse.issparse(obj):
        return SparseOperator(obj)
    if isinstance(obj, scipy.sparse.linalg.LinearOperator) and obj.dtype is not None:
        # SciPy 1.17 lets matvec take (n, 1); 1.18 deprecates that and reads a 2-D argument of
        # matvec as a batch of rows. Blocks through matmat and vectors of shape (n,) mean the
        # same in both.
        _require_valid_operands(obj)
        return from_declaration(obj)
    return None


@final
class SparseOperator(CsrOperator):
    """A SciPy sparse matrix. Blocks are in C order, so the matrix is read once for all columns.

    A CSR matrix is used without a copy. Other formats are converted to CSR, because their own
    block products are slower or missing. Integers and booleans become float64, 16-bit numbers
    float32.

    Parameters
    ----------
    matrix : (m, n) sparse array or matrix
    """

    def __init__(self, matrix: Any) -> None:
        require_matrix(matrix)
        require_valid_indices(matrix)  # before the conversion, which reads the indices too
        super().__init__(scipy.sparse.csr_array(matrix), np.empty(0, dtype=matrix.dtype))

    def _kernels_for(self, matrix: Any, space: VectorSpace) -> CsrStrategies:
        return CsrStrategies(matrix)


def _require_valid_operands(operator: Any) -> None:
    """Refuse sparse matrices with indices out of range among the operands of a LinearOperator."""
    for operand in getattr(operator, "args", ()):
        if scipy.sparse.issparse(operand):
            require_valid_indices(operand)
        elif isinstance(operand, scipy.sparse.linalg.LinearOperator):
            _require_valid_operands(operand)


def to_scipy(operator: Any) -> Any:
    """Convert an operator to a SciPy LinearOperator.

    SciPy's own ``aslinearoperator`` does not pass on ``matmat``, so that blocks are multiplied
    column by column; this function does. SciPy's solvers work on NumPy arrays: if the vectors
    of the operator belong to another library, every call copies its argument to that library
    and its result back.

    Parameters
    ----------
    operator : anything ``matfree.aslinearoperator`` accepts

    Returns
    -------
    scipy.sparse.linalg.LinearOperator

    Examples
    --------
    >>> import numpy as np, scipy.sparse.linalg
    >>> from matfree_scipy import to_scipy
    >>> A = to_scipy(np.diag([1.0, 2.0, 3.0, 4.0, 5.0]))
    >>> scipy.sparse.linalg.eigsh(A, k=1, return_eigenvectors=False)
    array([5.])
    """
    ours = aslinearoperator(operator)
    dtype = to_host(ours.space.zeros(0)).dtype
    return scipy.sparse.linalg.LinearOperator(
        ours.shape,
        matvec=_on_host(ours.matvec, ours.domain),
        matmat=_on_host(ours.matmat, ours.domain),
        rmatvec=_on_host(ours.rmatvec, ours.space),
        rmatmat=_on_host(ours.rmatmat, ours.space),
        dtype=dtype,
    )


def _on_host(apply: Callable[[Array], Array], space: VectorSpace) -> Callable[[Any], Any]:
    """A map of NumPy arrays to NumPy arrays, from one on the vectors of ``space``."""
    if space.xp.__name__.endswith("numpy"):
        return apply

    def apply_on_host(x: Any) -> Any:
        return to_host(apply(space.asarray(np.ascontiguousarray(x))))

    return apply_on_host
