r"""Products and Lanczos steps of a CSR matrix by kernels of our own, on the device.

A step of the recurrence for a block of vectors is bound by memory. For unit vectors
U = V diag(scale) that are held up to their lengths it is two passes,

    W = A U - V_previous diag(beta)    with    alpha_j = <u_j, w_j>    on the way,
    R = W - U diag(alpha)              with    ||r_j||                 on the way,

both written over V_previous, and two small kernels that add up the sums. The first reads the
matrix, V and V_previous and writes W, the second reads V and W and writes R: for n rows and k
columns of s bytes each, in all

    6 n k s + (stored entries) (s + bytes of an index) + n (bytes of an index)

where what neighbouring rows need of V is found in the caches. By cuSPARSE's product and array
operations it is some twenty passes over a block: that product takes and gives blocks in Fortran
order, so each is turned twice, and every operation on arrays reads its operands and writes its
result.

Sums are double precision, over a row and over rows. Those of a chunk of rows are kept apart and
added up in their order, so the same numbers come out every time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.protocol import Array, DType
from matfree.spaces import VectorSpace
from matfree_cupy.kernels import THREADS, kernel, numbers, require_current

SOURCE = Path(__file__).with_name("csr.cu")
"""The kernels: CUDA, and plain C for those who test them without a device."""

ROWS = 256
"""Rows of a chunk, which a block of threads has: enough chunks to fill a device at n = 1e6."""

NARROWEST = 4
"""Columns of a block from which threads that take one each read neighbouring memory."""

_WIDEST_TILE = 64  # columns of a block of threads: of 256 threads at least 4 of 5 have work then
_LONG, _TIMES_THE_MEAN = 1024, 16  # a row is one thread's work for each column
_NUMBERS = {
    "float32": ("float", 1),
    "float64": ("double", 1),
    "complex64": ("float", 2),
    "complex128": ("double", 2),
}
_INDICES = {"int32": "u32", "int64": "u64"}


def options(dtype: DType, index_type: DType) -> tuple[str, ...]:
    """What the kernels for a kind of matrix are compiled with."""
    real, parts = _NUMBERS[np.dtype(dtype).name]
    chosen = {"REAL": real, "PARTS": parts, "INDEX": _INDICES[np.dtype(index_type).name]}
    return tuple(f"-D{k}={v}" for k, v in {**chosen, "THREADS": THREADS, "ROWS": ROWS}.items())


@final
class CsrProducts:
    """What is computed with a CSR matrix; None or cuSPARSE's answer where that is no slower.

    Cost
    ----
    One number, the entries of the longest row, is brought to the host when it is made.

    Parameters
    ----------
    matrix : (m, n) ``cupyx`` CSR matrix, of a real or complex floating-point type
    space : of vectors of m entries
    """

    def __init__(self, matrix: Any, space: VectorSpace) -> None:
        self.matrix, self.space, self.rows = matrix, space, int(matrix.shape[0])
        self.chunks = -(-self.rows // ROWS)
        self.wide = np.result_type(matrix.dtype, np.float64)
        self._options = options(matrix.dtype, matrix.indices.dtype)
        self.compiled = self._suits()
        """Whether blocks that are wide enough go through kernels of ours."""

    def product(self, X: Array) -> Array:
        """A @ X, for a block (n, k), in C order."""
        require_current(self.space.device)
        if not self._takes(X):
            return self.space.xp.asarray(self.matrix @ X, order="C")
        Y = self._empty((self.rows, X.shape[1]), X.dtype)
        self._launch("product", X.shape[1], *self._parts, X, Y)
        return Y

    def quadratic_forms(self, X: Array) -> Array | None:
        """x_j^H A x_j for the columns of a block, without the block A @ X."""
        require_current(self.space.device)
        if not self._takes(X):
            return None
        partial = self._partial_sums(X)
        self._launch("quadratic_forms", X.shape[1], *self._parts, X, partial)
        return self._added_up("add_up", partial, self.wide)

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, its remainder written over ``previous``."""
        require_current(self.space.device)
        if not (self._takes(V) and self._takes(previous)):
            return None
        xp, k = self.space.xp, V.shape[1]
        beta, scale = (xp.asarray(x, dtype=xp.float64, order="C") for x in (beta, scale))
        partial = self._partial_sums(V)
        self._launch("first_pass", k, *self._parts, V, previous, beta, scale, partial)
        alpha = self._added_up("add_up", partial, self.wide)
        self._launch("second_pass", k, V, previous, alpha, scale, partial)
        return previous, alpha, self._added_up("add_up_lengths", partial, np.float64)

    def _suits(self) -> bool:
        """Whether the kernels are made for this matrix."""
        indptr, indices, _ = self._parts
        if self.rows == 0 or indptr.dtype != indices.dtype:
            return False
        longest = int((indptr[1:] - indptr[:-1]).max())
        return longest <= _LONG + _TIMES_THE_MEAN * int(indices.shape[0]) // self.rows

    def _takes(self, X: Array) -> bool:
        return self.compiled and X.shape[1] >= NARROWEST and bool(X.flags.c_contiguous)

    @property
    def _parts(self) -> tuple[Array, Array, Array]:
        """The matrix as it is now: CuPy adds up its duplicates when cuSPARSE first needs that."""
        return self.matrix.indptr, self.matrix.indices, self.matrix.data

    def _empty(self, shape: tuple[int, ...], dtype: DType) -> Array:
        return self.space.xp.empty(shape, dtype=dtype)

    def _partial_sums(self, X: Array) -> Array:
        """Room for the sum of each column and chunk."""
        return self._empty((X.shape[1], self.chunks), self.wide)

    def _launch(self, name: str, k: int, *arrays: Array) -> None:
        """A kernel over all chunks of rows and tiles of columns."""
        tiles = -(-k // _WIDEST_TILE)
        shape = numbers(self.rows, k, tiles)
        self._kernel(name)((self.chunks * tiles,), (THREADS,), (*arrays, *shape))

    def _added_up(self, name: str, partial: Array, dtype: DType) -> Array:
        """The sums of all chunks, a block of threads for each column."""
        k, chunks = partial.shape
        totals = self._empty((k,), dtype)
        self._kernel(name)((k,), (THREADS,), (partial, totals, *numbers(chunks)))
        return totals

    def _kernel(self, name: str) -> Any:
        return kernel(SOURCE, name, self._options)
