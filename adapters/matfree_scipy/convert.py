"""From SciPy objects to operators of ours, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from matfree import FunctionOperator, Operator, OperatorError, aslinearoperator, space_like
from matfree.arrays import conjugate, to_host
from matfree.protocol import Array
from matfree_scipy.fused import FusedProducts, fused_products
from matfree_scipy.sliced import sliced_products


def adapt(obj: Any) -> Operator | None:
    """A SciPy sparse matrix or LinearOperator as an operator of ours; None for other objects.

    Parameters
    ----------
    obj : sparse array or matrix of any format, or ``scipy.sparse.linalg.LinearOperator``

    Returns
    -------
    Operator or None

    Raises
    ------
    OperatorError
        The LinearOperator is batched (SciPy 1.18 allows that), or declares no dtype.

    Examples
    --------
    >>> import matfree as mf, scipy.sparse as sp
    >>> A = sp.diags_array([1.0, 2.0, 3.0])
    >>> mf.trace(A, num_probes=1, seed=0).value
    6.0
    """
    if scipy.sparse.issparse(obj):
        return SparseOperator(obj)
    if isinstance(obj, scipy.sparse.linalg.LinearOperator):
        return _from_linear_operator(obj)
    return None


@final
class SparseOperator(Operator):
    """A SciPy sparse matrix. Blocks are C-ordered, so the matrix is read once for all probes.

    CSR is used as it is. Other formats are converted to CSR, once, which copies the
    matrix: their own block products are slower or missing. Integers and booleans become
    float64, 16-bit numbers float32. The transpose is made when the adjoint is first used.

    Parameters
    ----------
    matrix : (m, n) sparse array or matrix
    """

    def __init__(self, matrix: Any) -> None:
        if matrix.ndim != 2:
            raise OperatorError(f"a matrix has 2 dimensions: got shape {matrix.shape}.")
        m, n = matrix.shape
        example = np.empty(0, dtype=matrix.dtype)
        super().__init__(space_like(example, m), space_like(example, n))
        csr = scipy.sparse.csr_array(matrix)
        self.matrix = csr if csr.dtype == self.dtype else csr.astype(self.dtype)
        self._transpose: Any = None
        ways = (fused_products(self.matrix), sliced_products(self.matrix))
        self._ways = [way for way in ways if way is not None]
        """Those that are the faster ones for wide blocks, before those for narrow ones."""
        if self._ways:
            self.lanczos_step = partial(_first_made, self._ways, "lanczos_step")
            self.quadratic_forms = partial(_first_made, self._ways, "quadratic_forms")

    def _apply(self, X: Array) -> Array:
        Y = _first_made(self._ways, "matmat", X)
        return self.matrix @ X if Y is None else Y

    def _apply_adjoint(self, X: Array) -> Array:
        if self._transpose is None:
            self._transpose = self.matrix.T.tocsr()
        xp = self.space.xp
        return conjugate(xp, self._transpose @ conjugate(xp, X))

    def __repr__(self) -> str:
        plain = super().__repr__()
        compiled = any(isinstance(way, FusedProducts) for way in self._ways)
        return f"{plain[:-1]}, products compiled by numba>" if compiled else plain


def _first_made(ways: list[Any], name: str, *blocks: Array) -> Any:
    """What the first of the ways makes that suits the blocks; None where none does."""
    made = (getattr(way, name)(*blocks) for way in ways)
    return next((found for found in made if found is not None), None)


def to_scipy(operator: Any) -> Any:
    """An operator of ours (or anything the front door takes) as a SciPy LinearOperator.

    SciPy's own ``aslinearoperator`` drops ``matmat``, so that blocks fall apart into
    columns; this one keeps it. SciPy's solvers work on NumPy arrays: where the operator's
    vectors are another library's, every product copies its argument there and its result
    back.

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


def _on_host(apply: Callable[[Array], Array], space: Any) -> Callable[[Any], Any]:
    """A product that takes and returns NumPy arrays."""
    if space.xp.__name__.endswith("numpy"):
        return apply

    def product(x: Any) -> Any:
        return to_host(apply(space.asarray(np.ascontiguousarray(x))))

    return product


def _from_linear_operator(operator: Any) -> Operator:
    """SciPy's LinearOperator: matmat for blocks, and matvec only ever with (n,).

    SciPy 1.17 lets matvec take (n, 1); 1.18 deprecates that, and reads a 2-D argument of
    matvec as a batch of rows. With blocks through matmat and vectors of shape (n,) both
    mean the same.
    """
    shape = tuple(operator.shape)
    if len(shape) != 2:
        raise OperatorError(
            f"an operator has shape (m, n): got a batched LinearOperator of shape {shape}; "
            "apply its members one by one."
        )
    if operator.dtype is None:
        raise OperatorError(
            "the LinearOperator declares no dtype, so nothing tells its precision; construct it "
            "with dtype=np.float64, or whatever its products have."
        )

    def rmatmat(X: Array) -> Any:
        try:
            return operator.rmatmat(X)
        except TypeError:  # SciPy calls None where there is no adjoint;
            operator.rmatvec(X[:, 0])  # this says so: NotImplementedError
            raise

    example = np.empty(0, dtype=operator.dtype)
    space = space_like(example, shape[0])
    return FunctionOperator(
        operator.matvec,
        space=space,
        domain=space if shape[0] == shape[1] else space_like(example, shape[1]),
        matmat=operator.matmat,
        rmatvec=operator.rmatvec,
        rmatmat=rmatmat,
        name=type(operator).__name__,
    )
