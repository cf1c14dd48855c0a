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

    CSR is used as it is (CuPy adds up its duplicate entries in place at the first product);
    CSC, COO and DIA are converted to CSR on the device, which copies the matrix. The transpose
    is made when the adjoint is first used. CuPy's product takes and gives blocks in Fortran
    order, so that each block is turned twice, on the device.

    Parameters
    ----------
    matrix : (m, n) ``cupyx`` sparse matrix
    """

    def __init__(self, matrix: Any) -> None:
        m, n = matrix.shape
        csr = matrix.tocsr()
        super().__init__(space_like(csr.data, m), space_like(csr.data, n))
        self.matrix = csr if csr.dtype == self.dtype else csr.astype(self.dtype)
        self._transpose: Any = None

    def _apply(self, X: Array) -> Array:
        require_current(self.space.device)
        return self.space.xp.asarray(self.matrix @ X, order="C")

    def _apply_adjoint(self, X: Array) -> Array:
        xp = self.space.xp
        require_current(self.space.device)
        if self._transpose is None:
            self._transpose = self.matrix.T.tocsr()
        return conjugate(xp, xp.asarray(self._transpose @ conjugate(xp, X), order="C"))


def _require_matrix(obj: Any, device: Any) -> None:
    if len(obj.shape) != 2:
        raise OperatorError(f"a matrix has 2 dimensions: got shape {tuple(obj.shape)}.")
    require_current(device)


def require_current(device: Any) -> None:
    """Refuse to work on a device that is not the current one."""
    current = import_module("cupy").cuda.Device()
    if device != current:
        raise OperatorError(
            f"the matrix lies on CUDA device {device.id}, and the current one is {current.id}, "
            "where CuPy would put the vectors: run the whole computation inside "
            f"`with cupy.cuda.Device({device.id}):`."
        )


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
