r"""Products and Lanczos steps of a CSR matrix, compiled by numba where it is installed.

A step of the recurrence for a block of vectors is bound by memory: written with arrays it
reads and writes the block some ten times. Compiled, it is two passes,

    W = A U - V_previous diag(beta)    with    alpha_j = <u_j, w_j>    on the way,
    R = W - U diag(alpha)              with    ||r_j||                 on the way,

for unit vectors U = V diag(scale) that are held up to their lengths. The first pass reads the
matrix once for all columns, and both write over V_previous.

Threads take chunks of rows. Each chunk's sums are kept apart and added up in their order,
so the numbers do not depend on how many threads there were.
"""

from __future__ import annotations

import importlib.util
from typing import Any, final

import numpy as np

from matfree.protocol import Array
from matfree_scipy.compiled import compiled
from matfree_scipy.signs import use_compiled_signs
from matfree_scipy.threads import over_chunks

WORTH_COMPILING = 1 << 19
"""Stored entries from which a second or two of compiling, once, is soon earned back."""

_CHUNK = 1024  # rows whose sums are added up together, in this order whatever the threads
_NARROW_STEP, _NARROW_PRODUCT, _NARROW_FORMS = (
    4,
    8,
    2,
)  # columns from which the compiled loops are the faster


def fused_products(matrix: Any) -> FusedProducts | None:
    """The compiled products of a CSR matrix, where numba is installed and it is worth it."""
    if matrix.nnz < WORTH_COMPILING or importlib.util.find_spec("numba") is None:
        return None
    return FusedProducts(matrix)


@final
class FusedProducts:
    """What numba does for a CSR matrix; None is returned where SciPy does it as well.

    Nothing is compiled before the first product that is worth it. Sums over a row and over
    rows are double precision, whatever the type of the matrix.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    def __init__(self, matrix: Any) -> None:
        self.parts = (matrix.indptr, matrix.indices, matrix.data)
        self.rows = matrix.shape[0]
        self.chunks = -(-self.rows // _CHUNK)
        self.wide = np.result_type(matrix.dtype, np.float64)

    def matmat(self, X: Array) -> Array | None:
        """A @ X, for a block (n, k) in C order."""
        if X.shape[1] < _NARROW_PRODUCT or not X.flags.c_contiguous:
            return None
        Y = np.empty((self.rows, X.shape[1]), dtype=X.dtype)
        sums = np.zeros(X.shape[1], dtype=self.wide)
        over_chunks(self.chunks, compiled(product), *self.parts, X, Y, sums)
        return Y

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, its remainder written over ``previous``."""
        usable = V.flags.c_contiguous and previous.flags.c_contiguous
        if V.shape[1] < _NARROW_STEP or not usable:
            return None
        partial = self._partial_sums(V)
        over_chunks(
            self.chunks, compiled(first_pass), *self.parts, V, previous, beta, scale, partial
        )
        alpha = partial.sum(axis=0) * scale
        over_chunks(self.chunks, compiled(second_pass), V, previous, alpha * scale, partial)
        return previous, alpha, np.sqrt(partial.sum(axis=0).real)

    def quadratic_forms(self, X: Array) -> Array | None:
        """x_j^H A x_j for the columns of a block, without the block A @ X."""
        if X.shape[1] < _NARROW_FORMS or not X.flags.c_contiguous:
            return None
        partial = self._partial_sums(X)
        over_chunks(self.chunks, compiled(quadratic_forms), *self.parts, X, partial)
        return partial.sum(axis=0)

    def _partial_sums(self, X: Array) -> Any:
        """A sum for each chunk of rows and each column; signs are then compiled as well."""
        use_compiled_signs()
        return np.zeros((self.chunks, X.shape[1]), dtype=self.wide)


def product(
    indptr: Any, indices: Any, data: Any, X: Any, Y: Any, wide: Any, first: int, last: int
) -> None:
    """Y = A X in some chunks of rows; ``wide`` tells the type of the sums."""
    k = X.shape[1]
    sums = np.empty_like(wide)
    for i in range(first * _CHUNK, min(last * _CHUNK, Y.shape[0])):
        for c in range(k):
            sums[c] = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            a, x = data[p], X[np.uintp(indices[p])]
            for c in range(k):
                sums[c] += a * x[c]
        y = Y[i]
        for c in range(k):
            y[c] = sums[c]


def quadratic_forms(
    indptr: Any, indices: Any, data: Any, X: Any, partial: Any, first: int, last: int
) -> None:
    """The sums of conj(X) (A X) over some chunks of rows."""
    k = X.shape[1]
    sums = np.empty_like(partial[0])
    for chunk in range(first, last):
        dots = partial[chunk]
        for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, X.shape[0])):
            for c in range(k):
                sums[c] = 0.0
            for p in range(indptr[i], indptr[i + 1]):
                a, x = data[p], X[np.uintp(indices[p])]
                for c in range(k):
                    sums[c] += a * x[c]
            own = X[i]
            for c in range(k):
                dots[c] += np.conj(own[c]) * sums[c]


def first_pass(
    indptr: Any,
    indices: Any,
    data: Any,
    V: Any,
    W: Any,
    beta: Any,
    scale: Any,
    partial: Any,
    first: int,
    last: int,
) -> None:
    """W = A V diag(scale) - W diag(beta) in some chunks of rows, and the sums of conj(V) W."""
    k = V.shape[1]
    sums = np.empty_like(partial[0])
    for chunk in range(first, last):
        dots = partial[chunk]
        dots[:] = 0.0
        for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, V.shape[0])):
            w, v = W[i], V[i]
            for c in range(k):
                sums[c] = 0.0
            p, end = indptr[i], indptr[i + 1]
            if (end - p) % 2 == 1:
                a, x = data[p], V[np.uintp(indices[p])]
                for c in range(k):
                    sums[c] += a * x[c]
                p += 1
            while p < end:  # two entries at a time: the sums are fetched half as often
                a, x = data[p], V[np.uintp(indices[p])]
                b, y = data[p + 1], V[np.uintp(indices[p + 1])]
                for c in range(k):
                    sums[c] += a * x[c] + b * y[c]
                p += 2
            for c in range(k):
                remainder = scale[c] * sums[c] - beta[c] * w[c]
                w[c] = remainder
                dots[c] += np.conj(v[c]) * remainder


def second_pass(V: Any, W: Any, factors: Any, partial: Any, first: int, last: int) -> None:
    """W -= V diag(factors) in some chunks of rows, and the sums of |W|^2 over each."""
    k = V.shape[1]
    for chunk in range(first, last):
        squares = partial[chunk]
        squares[:] = 0.0
        for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, V.shape[0])):
            w, v = W[i], V[i]
            for c in range(k):
                remainder = w[c] - factors[c] * v[c]
                w[c] = remainder
                squares[c] += np.conj(remainder) * remainder
