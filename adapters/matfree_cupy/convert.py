"""From CuPy objects to operators of ours, and back, on the device where the data lies."""

from __future__ import annotations

from importlib import import_module
from typing import Any, final

from matfree import (
    DenseOperator,
    FunctionOperator,
    Operator,
    OperatorError,
    aslinearoperator,
    space_like,
)
from matfree.arrays import conjugate
from matfree.protocol import Array
from matfree_cupy.csr import CsrProducts
from matfree_cupy.kernels import require_current


def adapt(obj: Any) -> Operator | None:
    """A CuPy matrix, sparse matrix or LinearOperator as ours; None for other objects.

    Types are recognised by their names and their modules' names, because importing
    ``cupyx.scipy.sparse.linalg`` fails on a machine without the CUDA libraries.

    Parameters
    ----------
    obj : 2-D ``cupy.ndarray``, ``cupyx`` sparse matrix of any format, or ``cupyx``
        LinearOperator

    Returns
    -------
    Operator or None

    Raises
    ------
    OperatorError
        The matrix lies on another device than the current one. CuPy puts results on the
        current device, so an algorithm would spread its vectors over both. Or it does not have
        2 dimensions.

    Examples
    --------
    >>> import cupy as cp, matfree as mf
    >>> A = mf.aslinearoperator(cp.diag(cp.arange(1.0, 101.0)))  # it calls this
    >>> mf.trace(A, num_probes=2, seed=0).value  # signs see a diagonal matrix exactly
    5050.0
    """
    if _comes_from(obj, "cupyx.scipy.sparse.linalg", "LinearOperator"):
        return _from_linear_operator(obj)
    if any(_comes_from(obj, "cupyx.scipy.sparse", name) for name in ("spmatrix", "sparray")):
        _require_matrix(obj, obj.data.device)
        return CupySparseOperator(obj)
    if _comes_from(obj, "cupy", "ndarray"):
        _require_matrix(obj, obj.device)
        return DenseOperator(obj)
    return None


@final
class CupySparseOperator(Operator):
    """A ``cupyx`` sparse matrix, on its own device.

    CSR is used as it is; CSC, COO and DIA are converted to CSR on the device, which copies the
    matrix. The transpose is made when the adjoint is first used.

    Blocks of a few vectors and more go through kernels of our own, Lanczos steps and quadratic
    forms with them (``matfree_cupy.csr``). Others, and matrices with a few rows far longer than
    the rest, go through CuPy's product: it takes and gives blocks in Fortran order, so that each
    is turned twice, and adds up duplicate entries in place the first time.

    Parameters
    ----------
    matrix : (m, n) ``cupyx`` sparse matrix
    """

    def __init__(self, matrix: Any) -> None:
        m, n = matrix.shape
        csr = matrix.tocsr()
        super().__init__(space_like(csr.data, m), space_like(csr.data, n))
        self.matrix = csr if csr.dtype == self.dtype else csr.astype(self.dtype)
        self._products = CsrProducts(self.matrix, self.space)
        self._adjoint: CsrProducts | None = None
        if self._products.compiled:
            self.lanczos_step = self._products.lanczos_step
            self.quadratic_forms = self._products.quadratic_forms

    def _apply(self, X: Array) -> Array:
        return self._products.product(X)

    def _apply_adjoint(self, X: Array) -> Array:
        if self._adjoint is None:
            require_current(self.space.device)
            self._adjoint = CsrProducts(self.matrix.T.tocsr(), self.domain)
        xp = self.space.xp
        return conjugate(xp, self._adjoint.product(conjugate(xp, X)))

    def __repr__(self) -> str:
        plain = super().__repr__()
        return f"{plain[:-1]}, with kernels of its own>" if self._products.compiled else plain


def _require_matrix(obj: Any, device: Any) -> None:
    if len(obj.shape) != 2:
        raise OperatorError(f"a matrix has 2 dimensions: got shape {tuple(obj.shape)}.")
    require_current(device)


def to_cupyx(operator: Any) -> Any:
    """An operator of ours with CuPy vectors as a ``cupyx`` LinearOperator, with its matmat.

    Parameters
    ----------
    operator : anything ``matfree.aslinearoperator`` accepts, with CuPy vectors

    Returns
    -------
    cupyx.scipy.sparse.linalg.LinearOperator

    Raises
    ------
    ImportError
        CuPy or its CUDA libraries are missing.
    OperatorError
        The operator's vectors are not CuPy arrays.

    Examples
    --------
    >>> import cupy as cp, matfree as mf
    >>> from cupyx.scipy.sparse.linalg import cg
    >>> from matfree_cupy import to_cupyx
    >>> A = mf.aslinearoperator(lambda x: 2 * x, shape=(4, 4), like=cp.zeros(1))
    >>> solution, failed = cg(to_cupyx(A), cp.ones(4))
    >>> solution, failed
    (array([0.5, 0.5, 0.5, 0.5]), 0)
    """
    ours = aslinearoperator(operator)
    try:
        linalg = import_module("cupyx.scipy.sparse.linalg")
    except ImportError as cause:
        raise ImportError(
            "to_cupyx needs CuPy and the CUDA libraries; install matfree-nla[cupy]."
        ) from cause
    if "cupy" not in ours.space.xp.__name__:
        raise OperatorError(
            f"to_cupyx needs an operator on CuPy vectors: those of {ours!r} belong to "
            f"{ours.space.xp.__name__}."
        )
    return linalg.LinearOperator(
        ours.shape,
        matvec=ours.matvec,
        matmat=ours.matmat,
        rmatvec=ours.rmatvec,
        rmatmat=ours.rmatmat,
        dtype=ours.dtype,
    )


def _from_linear_operator(operator: Any) -> Operator:
    """A ``cupyx`` LinearOperator, on the device that is current when it is handed over."""
    shape = tuple(operator.shape)
    if len(shape) != 2:
        raise OperatorError(f"an operator has shape (m, n): got {shape}.")
    if operator.dtype is None:
        raise OperatorError(
            "the LinearOperator declares no dtype; construct it with dtype=cupy.float64, or "
            "whatever its products have."
        )
    example = import_module("cupy").empty(0, dtype=operator.dtype)
    space = space_like(example, shape[0])
    return FunctionOperator(
        operator.matvec,
        space=space,
        domain=space if shape[0] == shape[1] else space_like(example, shape[1]),
        matmat=operator.matmat,
        rmatvec=operator.rmatvec,
        rmatmat=operator.rmatmat,
        name=type(operator).__name__,
    )


def _comes_from(obj: Any, module: str, name: str) -> bool:
    """Whether one of the object's types has this name and lives in this module or below."""
    return any(
        base.__name__ == name and f"{base.__module__}.".startswith(f"{module}.")
        for base in type(obj).__mro__
    )
