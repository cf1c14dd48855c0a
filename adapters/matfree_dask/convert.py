"""Conversion from Dask arrays to matfree operators."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, final

import numpy as np

from matfree import Operator, OperatorError
from matfree.arrays import conjugate
from matfree.operators.base import require_matrix, spaces_like
from matfree.operators.streamed import vectors_per_pass
from matfree.protocol import Array


def adapt(obj: Any) -> Operator | None:
    """Convert a 2-D Dask array to an operator.

    Parameters
    ----------
    obj : dask.array.Array

    Returns
    -------
    Operator or None
        None for other objects of Dask.

    Raises
    ------
    OperatorError
        The array does not have two dimensions, has chunks of unknown size, or has chunks that
        are not NumPy arrays.

    Examples
    --------
    >>> import matfree as mf
    >>> import dask.array as da
    >>> A = da.diag(da.arange(1.0, 101.0, chunks=25))
    >>> mf.trace(A, num_probes=2, seed=0).value  # signs are exact for a diagonal matrix
    5050.0
    """
    return DaskOperator(obj) if isinstance(obj, import_module("dask.array").Array) else None


@final
class DaskOperator(Operator):
    """A Dask array, multiplied where its chunks are; vectors are NumPy arrays of this process.

    Each block of matvecs is one ``compute()`` on the active scheduler: threads by default, or a
    cluster if a ``distributed.Client`` exists. The array is never computed as a whole. Call its
    ``persist()`` first to keep the chunks in the workers' memory between blocks. Each chunk is
    converted when it is used: integers to float64, 16-bit floating point to float32.

    A compute takes a few milliseconds with threads and tens of milliseconds on a cluster, and
    chunks in files take longer to read than to multiply. These costs arise once per block of
    vectors. ``preferred_block_size`` is therefore large, and estimators use it as the default
    of their ``block_size``; for ``eigsh``, pass ``block_size``.

    Parameters
    ----------
    matrix : (m, n) dask.array.Array of NumPy chunks

    Cost
    ----
    One ``compute()`` per block of vectors, in either direction; 2 blocks in this process.

    Examples
    --------
    >>> import dask.array as da, matfree as mf, numpy as np
    >>> from matfree_dask import DaskOperator
    >>> A = DaskOperator(da.ones((6, 4), chunks=2))
    >>> A @ np.ones(4), A.H @ np.ones(6)
    (array([4., 4., 4., 4., 4., 4.]), array([6., 6., 6., 6.]))
    """

    def __init__(self, matrix: Any) -> None:
        require_matrix(matrix)
        if any(math.isnan(size) for size in matrix.shape):
            raise OperatorError(
                f"the Dask array has chunks of unknown size (its shape is {matrix.shape}); call "
                "its compute_chunk_sizes() first."
            )
        if type(matrix._meta) is not np.ndarray:
            raise OperatorError(
                f"the chunks of the Dask array are of type {type(matrix._meta).__name__}; convert "
                "them to NumPy arrays with map_blocks first."
            )
        m, n = (int(size) for size in matrix.shape)
        super().__init__(*spaces_like(np.empty(0, matrix.dtype.newbyteorder("=")), (m, n)))
        self.matrix = matrix if matrix.dtype == self.dtype else matrix.astype(self.dtype)
        self.preferred_block_size = vectors_per_pass((m, n))

    def _apply(self, X: Array) -> Array:
        return _compute_product(self.matrix, X)

    def _apply_adjoint(self, X: Array) -> Array:
        xp = self.space.xp
        return conjugate(xp, _compute_product(self.matrix.T, conjugate(xp, X)))


def _compute_product(matrix: Any, X: Array) -> Array:
    """A @ X by one compute, in C order."""
    if not X.shape[1]:
        return np.empty((matrix.shape[0], 0), dtype=X.dtype)
    block = _as_dask_array(np.ascontiguousarray(X), matrix.chunks[1])
    return np.ascontiguousarray((matrix @ block).compute())


def _as_dask_array(X: Array, heights: tuple[int, ...]) -> Any:
    """A block of vectors as a Dask array, chunked like the columns of the matrix.

    On a cluster, its chunks are sent to the workers directly: as a part of the graph, they would
    pass through the scheduler.
    """
    dask: Any = import_module("dask")
    da: Any = import_module("dask.array")
    # On a cluster, the scheduler is the bound method ``get`` of a Client.
    client: Any = getattr(dask.base.get_scheduler(), "__self__", None)
    if not hasattr(client, "scatter"):
        # name=False gives the block a random name; otherwise Dask would hash its contents.
        return da.from_array(X, chunks=(heights, X.shape[1]), name=False)
    ends = np.cumsum(heights)
    chunks = [X[end - height : end] for end, height in zip(ends, heights, strict=True)]
    futures = client.scatter(chunks, hash=False)
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(future), shape=chunk.shape, dtype=X.dtype)
            for future, chunk in zip(futures, chunks, strict=True)
        ]
    )
