"""Conversion from CuPy objects to matfree operators, and back, on the device of the data."""

from __future__ import annotations

from importlib import import_module
from typing import Any, final

from matfree import DenseOperator, Operator, OperatorError, VectorSpace, aslinearoperator
from matfree.operators.base import require_matrix
from matfree.operators.csr import CsrOperator, require_valid_indices
from matfree.operators.declared import from_declaration
from matfree_cupy.csr import CudaCsrKernels
from matfree_cupy.kernels import require_current


def adapt(obj: Any) -> Operator | None:
    """Convert a CuPy matrix, sparse matrix or LinearOperator to an operator.

    Types are recognized by their names and the names of their modules, because importing
    ``cupyx.scipy.sparse.linalg`` fails on a machine without the CUDA libraries.

    Parameters
    ----------
    obj : 2-D ``cupy.ndarray``, ``cupyx`` sparse matrix of any format, or ``cupyx``
        LinearOperator

    Returns
    -------
    Operator or None
        None for other objects, and for a LinearOperator without a dtype.

    Raises
    ------
    OperatorError
        The matrix does not have 2 dimensions, or it is not on the current device. CuPy puts
        results on the current device, so that the vectors of an algorithm would be spread over
        both devices.

    Examples
    --------
    >>> import cupy as cp, matfree as mf
    >>> A = mf.aslinearoperator(cp.diag(cp.arange(1.0, 101.0)))  # it calls this
    >>> mf.trace(A, num_probes=2, seed=0).value  # signs are exact for a diagonal matrix
    5050.0
    """
    if _comes_from(obj, "cupyx.scipy.sparse.linalg", "LinearOperator"):
        if obj.dtype is None:
            return None
        # Its dtype is NumPy's; the vectors are on the device that is current now.
        return from_declaration(obj, like=import_module("cupy").empty(0, dtype=obj.dtype))
    if any(_comes_from(obj, "cupyx.scipy.sparse", name) for name in ("spmatrix", "sparray")):
        require_matrix(obj)
        require_current(obj.data.device)
        return CupySparseOperator(obj)
    if _comes_from(obj, "cupy", "ndarray"):
        require_matrix(obj)
        require_current(obj.device)
        return DenseOperator(obj)
    return None


@final
class CupySparseOperator(CsrOperator):
    """A ``cupyx`` sparse matrix, on its own device.

    A CSR matrix is used without a copy. CSC, COO and DIA are converted to CSR on the device, which
    copies the matrix.

    Blocks of at least 4 vectors, Lanczos steps and quadratic forms use the kernels of
    ``matfree_cupy.csr``. Narrower blocks, and matrices with a few rows far longer than the
    others, use CuPy's product. It takes and returns blocks in Fortran order, so that two
    transpositions are needed, and its first call sums duplicate entries in place.

    Parameters
    ----------
    matrix : (m, n) ``cupyx`` sparse matrix
    """

    def __init__(self, matrix: Any) -> None:
        # Before the conversion, which reads the indices too.
        require_valid_indices(matrix)
        csr = matrix.tocsr()
        super().__init__(csr, csr.data)

    def _kernels_for(self, matrix: Any, space: VectorSpace) -> CudaCsrKernels:
        require_current(space.device)
        return CudaCsrKernels(matrix, space)


def to_cupyx(operator: Any) -> Any:
    """Convert an operator on CuPy vectors to a ``cupyx`` LinearOperator with a ``matmat``.

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
            "to_cupyx needs CuPy and the CUDA libraries; install cupy-cuda12x or cupy-cuda13x, "
            "whichever has the major version of the CUDA driver."
        ) from cause
    if "cupy" not in ours.space.xp.__name__:
        raise OperatorError(
            f"to_cupyx needs an operator on CuPy vectors: those of {ours!r} belong to "
            f"{ours.space.xp.__name__}; convert its data to CuPy first."
        )
    return linalg.LinearOperator(
        ours.shape,
        matvec=ours.matvec,
        matmat=ours.matmat,
        rmatvec=ours.rmatvec,
        rmatmat=ours.rmatmat,
        dtype=ours.dtype,
    )


def _comes_from(obj: Any, module: str, name: str) -> bool:
    """Whether a class of this name, defined in or below this module, is a type of the object."""
    return any(
        base.__name__ == name and f"{base.__module__}.".startswith(f"{module}.")
        for base in type(obj).__mro__
    )
