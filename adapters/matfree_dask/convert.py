"""From Dask arrays to operators of ours."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, final

import numpy as np

from matfree import Operator, OperatorError, space_like
from matfree.arrays import conjugate
from matfree.operators.streamed import vectors_a_pass
from matfree.protocol import Array


def adapt(obj: Any) -> Operator | None:
    """A 2-D Dask array as an operator of ours; None for other objects of Dask.

    Parameters
    ----------
    obj : dask.array.Array

    Returns
    -------
    Operator or None

    Raises
    ------
    OperatorError
        The array has not two dimensions, has chunks of unknown size, or its chunks are no
        NumPy arrays.

    Examples
    --------
    >>> import matfree as mf
    >>> import dask.array as da
    >>> A = da.diag(da.arange(1.0, 101.0, chunks=25))
    >>> mf.trace(A, num_probes=2, seed=0).value  # signs see a diagonal matrix exactly
    5050.0
    """
    return DaskOperator(obj) if isinstance(obj, import_module("dask.array").Array) else None


@final
class DaskOperator(Operator):
    r"""A Dask array, multiplied where its chunks are; vectors are NumPy arrays of this process.

    Each block product is one ``compute()`` on whatever scheduler is active: threads by default,
    a cluster where a ``distributed.Client`` was made. The array is never computed as a whole;
    ``persist()`` it first to keep its chunks in the workers' memory between products. Integers
    become float64, 16-bit floating point float32, chunk by chunk.

    A compute takes some milliseconds with threads and tens of them on a cluster, and where the
    chunks come from files, reading them takes longer than multiplying: all that is paid a
    product, not a vector. So ``preferred_block_size`` is large, and estimators send so many
    probes at once unless told otherwise; ``eigsh`` takes ``block_size``.

    Parameters
    ----------
    matrix : (m, n) dask.array.Array of NumPy chunks

    Cost
    ----
    One ``compute()`` a block of vectors, in either direction; 2 blocks in this process.

    Examples
    --------
    >>> import dask.array as da, matfree as mf, numpy as np
    >>> from matfree_dask import DaskOperator
    >>> A = DaskOperator(da.ones((6, 4), chunks=2))
    >>> A @ np.ones(4), A.H @ np.ones(6)
    (array([4., 4., 4., 4., 4., 4.]), array([6., 6., 6., 6.]))
    """

    def __init__(self, matrix: Any) -> None:
        if matrix.ndim != 2:
            raise OperatorError(f"a matrix has 2 dimensions: got shape {matrix.shape}.")
        if any(math.isnan(size) for size in matrix.shape):
            raise OperatorError(
                f"the Dask array has chunks of unknown size (its shape is {matrix.shape}); call "
                "its compute_chunk_sizes() first."
            )
        if type(matrix._meta) is not np.ndarray:
            raise OperatorError(
                f"the chunks of the Dask array are {type(matrix._meta).__name__}; make them NumPy "
                "arrays with map_blocks first."
            )
        m, n = (int(size) for size in matrix.shape)
        example = np.empty(0, dtype=matrix.dtype.newbyteorder("="))
        space = space_like(example, m)
        super().__init__(space, space if m == n else space_like(example, n))
        self.matrix = matrix if matrix.dtype == self.dtype else matrix.astype(self.dtype)
        self.preferred_block_size = vectors_a_pass((m, n))

    def _apply(self, X: Array) -> Array:
        return _product(self.matrix, X)

    def _apply_adjoint(self, X: Array) -> Array:
        xp = self.space.xp
        return conjugate(xp, _product(self.matrix.T, conjugate(xp, X)))


def _product(matrix: Any, X: Array) -> Array:
    """A @ X by one compute, C-ordered."""
    if not X.shape[1]:
        return np.empty((matrix.shape[0], 0), dtype=X.dtype)
    block = _handed_over(np.ascontiguousarray(X), matrix.chunks[1])
    return np.ascontiguousarray((matrix @ block).compute())


def _handed_over(X: Array, heights: tuple[int, ...]) -> Any:
    """A block of vectors as a Dask array, cut as the matrix's columns are.

    On a cluster its pieces are sent to the workers directly: within the graph they would go
    through the scheduler.
    """
    dask: Any = import_module("dask")
    da: Any = import_module("dask.array")
    client: Any = getattr(
        dask.base.get_scheduler(), "__self__", None
    )  # of its get, where it has one
    if not hasattr(client, "scatter"):
        # Without a name of its own, every block would be hashed to give it one.
        return da.from_array(X, chunks=(heights, X.shape[1]), name=False)
    ends = np.cumsum(heights)
    pieces = [X[end - height : end] for end, height in zip(ends, heights, strict=True)]
    futures = client.scatter(pieces, hash=False)
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(future), shape=piece.shape, dtype=X.dtype)
            for future, piece in zip(futures, pieces, strict=True)
        ]
    )
