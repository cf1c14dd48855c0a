"""Products and Lanczos steps of a CSR matrix by SciPy and NumPy, slice of rows by slice of rows.

The numbers of a slice stay in the cache from the product to the last sum over them, and SciPy's
product and NumPy's arithmetic release the GIL. See ``chunked_products``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
import scipy.sparse

from matfree.protocol import Array
from matfree_scipy.chunked_products import ChunkedProducts, LeastColumns
from matfree_scipy.threads import num_threads, over_chunks

MIN_ROWS = 1 << 15
"""Rows from which slices are faster in spite of their additional calls."""

_SLICE_ENTRIES = 1 << 16  # entries of the block per slice, so that a few slices fit the cache
_MIN_HEIGHT = 1 << 10  # fewer rows would cost more in calls than they save
_MAX_HEIGHT = 1 << 13  # the rounding error of a sum over a slice grows with its height


class Slice(NamedTuple):
    """Consecutive rows of a matrix, and the submatrix of these rows."""

    rows: slice
    matrix: Any


def sliced_products(matrix: Any) -> SlicedProducts | None:
    """The products of a CSR matrix by slices; None for matrices with few rows."""
    return SlicedProducts(matrix) if matrix.shape[0] >= MIN_ROWS else None


@final
class SlicedProducts(ChunkedProducts):
    """Products by slices, which are views of the matrix.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    least_columns = LeastColumns(matmat=2, lanczos_step=4, quadratic_forms=2)

    def __init__(self, matrix: Any) -> None:
        super().__init__(matrix)
        self._slices: dict[int, list[Slice]] = {}  # by their height

    def matmat(self, X: Array) -> Array | None:
        """A @ X, for a block (n, k) in C order; on one thread, SciPy's product is as fast."""
        return None if num_threads() == 1 else super().matmat(X)

    def _num_chunks(self, X: Array) -> int:
        return len(self._slices_for(X))

    def _multiply(self, X: Array, Y: Array) -> None:
        self._run(_multiply_slice, X, Y)

    def _form_sums(self, X: Array, sums: Array) -> None:
        self._run(_form_sums, X, sums)

    def _first_pass(self, V: Array, W: Array, beta: Array, scale: Array, sums: Array) -> None:
        self._run(_first_pass, V, W, _repeat_rows(beta, V), _repeat_rows(scale, V), sums)

    def _second_pass(self, V: Array, W: Array, factors: Array, sums: Array) -> None:
        self._run(_second_pass, V, W, _repeat_rows(factors, V), sums)

    def _run(self, kernel: Callable[..., None], X: Array, *arrays: Array) -> None:
        slices = self._slices_for(X)
        over_chunks(len(slices), kernel, slices, X, *arrays)

    def _slices_for(self, X: Array) -> list[Slice]:
        """All rows of the matrix, in slices of a height that suits the width of X."""
        height, num_rows = _slice_height(X), self.matrix.shape[0]
        if height not in self._slices:
            edges = pairwise([*range(0, num_rows, height), num_rows])
            self._slices[height] = [
                Slice(slice(first, last), _view(self.matrix, first, last)) for first, last in edges
            ]
        return self._slices[height]


def _multiply_slice(slices: list[Slice], X: Array, Y: Array, first: int, last: int) -> None:
    """Y = A X in some slices."""
    for rows, matrix in slices[first:last]:
        Y[rows] = matrix @ X


def _form_sums(slices: list[Slice], X: Array, sums: Array, first: int, last: int) -> None:
    """The sums of conj(X) (A X) over each of some slices."""
    for i, (rows, matrix) in enumerate(slices[first:last], first):
        sums[i] = _slice_dots(X[rows], matrix @ X, sums.dtype)


def _first_pass(
    slices: list[Slice], V: Array, W: Array, beta: Array, scale: Array, sums: Array,
    first: int, last: int,
) -> None:  # fmt: skip
    """W = A V diag(scale) - W diag(beta) in some slices, and the sums of conj(V) W over each."""
    for i, (rows, matrix) in enumerate(slices[first:last], first):
        w, product = W[rows], matrix @ V
        product *= scale[: len(w)]
        w *= beta[: len(w)]
        np.subtract(product, w, out=w)
        sums[i] = _slice_dots(V[rows], w, sums.dtype)


def _second_pass(
    slices: list[Slice], V: Array, W: Array, factors: Array, sums: Array, first: int, last: int
) -> None:
    """W -= V diag(factors) in some slices, and the sums of |W|^2 over each."""
    buffer = np.empty_like(factors)
    for i, (rows, _) in enumerate(slices[first:last], first):
        w = W[rows]
        w -= np.multiply(V[rows], factors[: len(w)], out=buffer[: len(w)])
        sums[i] = _slice_dots(w, w, sums.dtype)


def _slice_dots(X: Array, Y: Array, wide: Any) -> Any:
    """The inner products of the columns of a slice, in double precision."""
    X, Y = X.astype(wide, copy=False), Y.astype(wide, copy=False)
    return np.einsum("ij,ij->j", X.conj() if X.dtype.kind == "c" else X, Y)


def _slice_height(X: Array) -> int:
    """The rows of a slice for blocks as wide as X. Powers of two keep the number of heights low."""
    width: int = X.shape[1]
    height = 1 << (_SLICE_ENTRIES // width).bit_length()
    return min(max(_MIN_HEIGHT, height), _MAX_HEIGHT)


def _view(matrix: Any, first: int, last: int) -> Any:
    """The submatrix of some rows of a CSR matrix, which shares its entries."""
    begin, end = matrix.indptr[first], matrix.indptr[last]
    rows = scipy.sparse.csr_array((last - first, matrix.shape[1]), dtype=matrix.dtype)
    rows.indptr = matrix.indptr[first : last + 1] - begin
    rows.indices, rows.data = matrix.indices[begin:end], matrix.data[begin:end]
    return rows


def _repeat_rows(factors: Array, X: Array) -> Any:
    """The factors of the columns in every row of a slice: broadcasting would be slower."""
    return np.tile(factors.astype(X.dtype), (_slice_height(X), 1))
