"""Products and Lanczos steps of a CSR matrix by loops that numba compiles, if it is installed.

The loops read the matrix once for all columns of a block. See ``chunked_products``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, final

import numpy as np

from matfree.protocol import Array
from matfree_scipy.chunked_products import ChunkedProducts, LeastColumns
from matfree_scipy.compilation import compiled
from matfree_scipy.compiled_signs import use_compiled_signs
from matfree_scipy.threads import over_chunks

MIN_ENTRIES = 1 << 19
"""Stored entries from which one or two seconds of compilation are soon saved."""

_CHUNK_ROWS = 1024  # fixed, so that the order of summation does not depend on the threads


def compiled_products(matrix: Any) -> CompiledProducts | None:
    """The compiled products of a CSR matrix; None without numba or for small matrices."""
    if matrix.nnz < MIN_ENTRIES or importlib.util.find_spec("numba") is None:
        return None
    return CompiledProducts(matrix)


@final
class CompiledProducts(ChunkedProducts):
    """Products by compiled loops. A loop is compiled when it is first used.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    least_columns = LeastColumns(matmat=8, lanczos_step=4, quadratic_forms=2)

    def __init__(self, matrix: Any) -> None:
        super().__init__(matrix)
        self._arrays = (matrix.indptr, matrix.indices, matrix.data)

    def _num_chunks(self, X: Array) -> int:
        return -(-int(self.matrix.shape[0]) // _CHUNK_ROWS)

    def _partial_sums(self, X: Array) -> Any:
        use_compiled_signs()  # numba is in use, and probes are likely to follow
        return super()._partial_sums(X)

    def _multiply(self, X: Array, Y: Array) -> None:
        sums = np.empty(X.shape[1], dtype=self.wide)
        self._run(compiled(multiply, add_row), *self._arrays, X, Y, sums)

    def _form_sums(self, X: Array, sums: Array) -> None:
        self._run(compiled(form_sums, add_row), *self._arrays, X, sums)

    def _first_pass(self, V: Array, W: Array, beta: Array, scale: Array, sums: Array) -> None:
        self._run(compiled(first_pass, add_row), *self._arrays, V, W, beta, scale, sums)

    def _second_pass(self, V: Array, W: Array, factors: Array, sums: Array) -> None:
        self._run(compiled(second_pass), V, W, factors, sums)

    def _run(self, kernel: Callable[..., None], *arrays: Array) -> None:
        over_chunks(self._num_chunks(arrays[0]), kernel, *arrays)


def add_row(indptr: Any, indices: Any, data: Any, X: Any, i: int, sums: Any) -> None:
    """sums = (A X)[i], two entries at a time, so that the sums are loaded half as often."""
    for c in range(X.shape[1]):
        sums[c] = 0.0
    p, end = indptr[i], indptr[i + 1]
    if (end - p) % 2 == 1:
        a, x = data[p], X[np.uintp(indices[p])]
        for c in range(X.shape[1]):
            sums[c] += a * x[c]
        p += 1
    while p < end:
        a, x = data[p], X[np.uintp(indices[p])]
        b, y = data[p + 1], X[np.uintp(indices[p + 1])]
        for c in range(X.shape[1]):
            sums[c] += a * x[c] + b * y[c]
        p += 2


def multiply(
    indptr: Any, indices: Any, data: Any, X: Any, Y: Any, wide: Any, first: int, last: int
) -> None:
    """Y = A X in some chunks of rows; ``wide`` determines the type of the sums."""
    sums = np.empty_like(wide)
    for i in range(first * _CHUNK_ROWS, min(last * _CHUNK_ROWS, Y.shape[0])):
        add_row(indptr, indices, data, X, i, sums)
        y = Y[i]
        for c in range(X.shape[1]):
            y[c] = sums[c]


def form_sums(
    indptr: Any, indices: Any, data: Any, X: Any, partial: Any, first: int, last: int
) -> None:
    """The sums of conj(X) (A X) over each of some chunks of rows."""
    sums = np.empty_like(partial[0])
    for chunk in range(first, last):
        dots = partial[chunk]
        dots[:] = 0.0
        for i in range(chunk * _CHUNK_ROWS, min((chunk + 1) * _CHUNK_ROWS, X.shape[0])):
            add_row(indptr, indices, data, X, i, sums)
            x = X[i]
            for c in range(X.shape[1]):
                dots[c] += np.conj(x[c]) * sums[c]


def first_pass(
    indptr: Any, indices: Any, data: Any, V: Any, W: Any, beta: Any, scale: Any, partial: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """W = A V diag(scale) - W diag(beta) in some chunks of rows, and the sums of conj(V) W."""
    sums = np.empty_like(partial[0])
    for chunk in range(first, last):
        dots = partial[chunk]
        dots[:] = 0.0
        for i in range(chunk * _CHUNK_ROWS, min((chunk + 1) * _CHUNK_ROWS, V.shape[0])):
            add_row(indptr, indices, data, V, i, sums)
            v, w = V[i], W[i]
            for c in range(V.shape[1]):
                remainder = scale[c] * sums[c] - beta[c] * w[c]
                w[c] = remainder
                dots[c] += np.conj(v[c]) * remainder


def second_pass(V: Any, W: Any, factors: Any, partial: Any, first: int, last: int) -> None:
    """W -= V diag(factors) in some chunks of rows, and the sums of |W|^2 over each."""
    for chunk in range(first, last):
        squares = partial[chunk]
        squares[:] = 0.0
        for i in range(chunk * _CHUNK_ROWS, min((chunk + 1) * _CHUNK_ROWS, V.shape[0])):
            v, w = V[i], W[i]
            for c in range(V.shape[1]):
                remainder = w[c] - factors[c] * v[c]
                w[c] = remainder
                squares[c] += np.conj(remainder) * remainder
