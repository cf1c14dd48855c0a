r"""Products and Lanczos steps of a CSR matrix by CUDA kernels.

A step of the recurrence for a block of vectors is limited by memory bandwidth. For unit vectors
U = V diag(scale), which are not stored, it takes two passes,

.. math::

    W &= A U - V_{\mathrm{previous}} \operatorname{diag}(\beta),
        \qquad \alpha_j = \langle u_j, w_j \rangle, \\
    R &= W - U \operatorname{diag}(\alpha),
        \qquad \rho_j = \lVert r_j \rVert,

which both overwrite ``previous`` and compute the inner products on the way, and two small kernels
that add the partial sums. The first pass reads the matrix, V and ``previous`` and writes W; the
second reads V and W and writes R. For n rows, k columns and s bytes per number, this is

.. math:: 6 n k s + \mathrm{nnz} \, (s + i) + n i

bytes, where i is the size of an index, if the entries of V that neighbouring rows need are found in
the caches. By cuSPARSE's product and array operations, a step takes about twenty passes over a
block: that product takes and returns blocks in Fortran order, so that two transpositions are
needed, and every array operation reads its operands and writes its result.

All sums are accumulated in double precision. The partial sums of the chunks of rows are stored
separately and added in the order of the chunks, so that the results are reproducible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.protocol import Array, DType
from matfree.spaces import VectorSpace
from matfree_cupy.kernels import THREADS, kernel, numbers, require_current

CSR_SOURCE = Path(__file__).with_name("csr.cu")
"""The kernels in CUDA, which a C compiler accepts as well."""

ROWS = 256
"""Rows per chunk, and so per block of threads: enough chunks to fill a device at n = 1e6."""

MIN_COLUMNS = 4
"""Block width from which the memory accesses of neighbouring threads coalesce."""

_MAX_TILE = 64  # columns per block of threads, so that at least 4 of 5 threads have work

# A row is processed by one thread per column, so a few very long rows would dominate the time.
_MAX_ROW_LENGTH, _MAX_TIMES_MEAN_LENGTH = 1024, 16

_NUMBERS = {
    "float32": ("float", 1),
    "float64": ("double", 1),
    "complex64": ("float", 2),
    "complex128": ("double", 2),
}
_INDICES = {"int32": "u32", "int64": "u64"}


def options(dtype: DType, index_type: DType) -> tuple[str, ...]:
    """The compiler options for a data type of numbers and one of indices."""
    real, parts = _NUMBERS[np.dtype(dtype).name]
    chosen = {"REAL": real, "PARTS": parts, "INDEX": _INDICES[np.dtype(index_type).name]}
    return tuple(f"-D{k}={v}" for k, v in {**chosen, "THREADS": THREADS, "ROWS": ROWS}.items())


@final
class CudaCsrKernels:
    """The kernels of a ``cupyx`` CSR matrix, and CuPy's product where it is not slower.

    Cost
    ----
    One synchronization at construction, for the length of the longest row.

    Parameters
    ----------
    matrix : (m, n) ``cupyx`` CSR matrix, of a real or complex floating-point type
    space : VectorSpace
        The space of A @ x.
    """

    def __init__(self, matrix: Any, space: VectorSpace) -> None:
        self.matrix, self.space, self.rows = matrix, space, int(matrix.shape[0])
        self.chunks = -(-self.rows // ROWS)
        self.wide = np.result_type(matrix.dtype, np.float64)
        self._options = options(matrix.dtype, matrix.indices.dtype)
        self.fused = self._suits_matrix()
        self.description = "with CUDA kernels" if self.fused else ""

    def matmat(self, X: Array) -> Array:
        """A @ X, for a block (n, k), in C order."""
        require_current(self.space.device)
        if not self._suits_block(X):
            return self.space.xp.asarray(self.matrix @ X, order="C")
        Y = self._empty((self.rows, X.shape[1]), X.dtype)
        self._launch("matmat", X.shape[1], *self._arrays, X, Y)
        return Y

    def quadratic_forms(self, X: Array) -> Array | None:
        """The numbers x_j^H A x_j for the columns of a block, without storing A @ X."""
        require_current(self.space.device)
        if not self._suits_block(X):
            return None
        partial = self._partial_sums(X)
        self._launch("quadratic_forms", X.shape[1], *self._arrays, X, partial)
        return self._sum_chunks("sum_chunks", partial, self.wide)

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, whose remainder overwrites ``previous``."""
        require_current(self.space.device)
        if not (self._suits_block(V) and self._suits_block(previous)):
            return None
        xp, k = self.space.xp, V.shape[1]
        beta, scale = (xp.asarray(x, dtype=xp.float64, order="C") for x in (beta, scale))
        partial = self._partial_sums(V)
        self._launch("first_pass", k, *self._arrays, V, previous, beta, scale, partial)
        alpha = self._sum_chunks("sum_chunks", partial, self.wide)
        self._launch("second_pass", k, V, previous, alpha, scale, partial)
        return previous, alpha, self._sum_chunks("sum_chunks_to_norms", partial, np.float64)

    def _suits_matrix(self) -> bool:
        """Whether the kernels are faster than CuPy's product for this matrix."""
        indptr, indices, _ = self._arrays
        if self.rows == 0 or indptr.dtype != indices.dtype:
            return False
        longest = int((indptr[1:] - indptr[:-1]).max())
        return (
            longest <= _MAX_ROW_LENGTH + _MAX_TIMES_MEAN_LENGTH * int(indices.shape[0]) // self.rows
        )

    def _suits_block(self, X: Array) -> bool:
        return self.fused and X.shape[1] >= MIN_COLUMNS and bool(X.flags.c_contiguous)

    @property
    def _arrays(self) -> tuple[Array, Array, Array]:
        """The arrays of the matrix, which change when CuPy's product sums duplicate entries."""
        return self.matrix.indptr, self.matrix.indices, self.matrix.data

    def _empty(self, shape: tuple[int, ...], dtype: DType) -> Array:
        return self.space.xp.empty(shape, dtype=dtype)

    def _partial_sums(self, X: Array) -> Array:
        """An uninitialized array for one sum per column and chunk."""
        return self._empty((X.shape[1], self.chunks), self.wide)

    def _launch(self, name: str, k: int, *arrays: Array) -> None:
        """Launch a kernel over all chunks of rows and tiles of columns."""
        tiles = -(-k // _MAX_TILE)
        shape = numbers(self.rows, k, tiles)
        self._kernel(name)((self.chunks * tiles,), (THREADS,), (*arrays, *shape))

    def _sum_chunks(self, name: str, partial: Array, dtype: DType) -> Array:
        """The sums over all chunks, computed by one block of threads per column."""
        k, chunks = partial.shape
        totals = self._empty((k,), dtype)
        self._kernel(name)((k,), (THREADS,), (partial, totals, *numbers(chunks)))
        return totals

    def _kernel(self, name: str) -> Any:
        return kernel(CSR_SOURCE, name, self._options)
