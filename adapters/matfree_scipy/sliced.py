r"""Products and Lanczos steps of a CSR matrix by SciPy and NumPy, some rows at a time.

The numbers of a slice of rows stay in the cache from the product to the last sum made of them,
and threads take slices: SciPy's product and NumPy's arithmetic leave the interpreter to others.

As in the compiled steps, the sums of every slice are kept apart and added up in their
order, so the numbers do not depend on how many threads there were.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
import scipy.sparse

from matfree.protocol import Array
from matfree_scipy.threads import num_threads, over_chunks

WORTH_SLICING = 1 << 15
"""Rows from which slices are worth the calls that they cost."""

_SLICE_ENTRIES = 1 << 16  # of a block of vectors in a slice, so that a few of them are cached
_LEAST_HEIGHT = 1 << 10  # rows beside which the calls for a slice cost little
_MOST_HEIGHT = 1 << 13  # the rounding of a sum over a slice grows with it
_NARROW_STEP, _NARROW = 4, 2  # columns from which slices are the faster


class Slice(NamedTuple):
    """Consecutive rows of a matrix: which they are, and they as a matrix of their own."""

    rows: slice
    matrix: Any


def sliced_products(matrix: Any) -> SlicedProducts | None:
    """The products of a CSR matrix by slices, where it has rows enough."""
    return SlicedProducts(matrix) if matrix.shape[0] >= WORTH_SLICING else None


@final
class SlicedProducts:
    """What SciPy does for a CSR matrix, by slices of its rows; None where that is no gain.

    Slices are views of the matrix. Sums over rows are double precision, whatever its type.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.wide = np.result_type(matrix.dtype, np.float64)
        self._slices: dict[int, list[Slice]] = {}  # by their height

    def matmat(self, X: Array) -> Array | None:
        """A @ X, for a block (n, k) in C order."""
        if num_threads() == 1 or not _usable(X):
            return None
        Y = np.empty((self.matrix.shape[0], X.shape[1]), dtype=X.dtype)
        slices = self._cut(X)
        over_chunks(len(slices), _product, slices, X, Y)
        return Y

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, its remainder written over ``previous``."""
        if V.shape[1] < _NARROW_STEP or not _usable(V) or not _usable(previous):
            return None
        slices, sums = self._cut(V), self._partial_sums(V)
        over_chunks(
            len(slices), _first_pass, slices, V, previous, _spread(beta, V), _spread(scale, V), sums
        )
        alpha = sums.sum(axis=0) * scale
        over_chunks(len(slices), _second_pass, slices, V, previous, _spread(alpha * scale, V), sums)
        return previous, alpha, np.sqrt(sums.sum(axis=0).real)

    def quadratic_forms(self, X: Array) -> Array | None:
        """x_j^H A x_j for the columns of a block, without the block A @ X."""
        if not _usable(X):
            return None
        slices, sums = self._cut(X), self._partial_sums(X)
        over_chunks(len(slices), _quadratic_forms, slices, X, sums)
        return sums.sum(axis=0)

    def _partial_sums(self, X: Array) -> Any:
        """Room for a sum for each slice and each column."""
        return np.empty((len(self._cut(X)), X.shape[1]), dtype=self.wide)

    def _cut(self, X: Array) -> list[Slice]:
        """All rows in slices that suit a block."""
        height, rows = _height(X), self.matrix.shape[0]
        if height not in self._slices:
            edges = pairwise([*range(0, rows, height), rows])
            self._slices[height] = [
                Slice(slice(first, last), _view(self.matrix, first, last)) for first, last in edges
            ]
        return self._slices[height]


def _product(slices: list[Slice], X: Array, Y: Array, first: int, last: int) -> None:
    """Y = A X in some slices."""
    for rows, matrix in slices[first:last]:
        Y[rows] = matrix @ X


def _quadratic_forms(slices: list[Slice], X: Array, sums: Array, first: int, last: int) -> None:
    """The sums of conj(X) (A X) over each of some slices."""
    for i, (rows, matrix) in enumerate(slices[first:last], first):
        sums[i] = _dots(X[rows], matrix @ X, sums.dtype)


def _first_pass(
    slices: list[Slice],
    V: Array,
    W: Array,
    beta: Array,
    scale: Array,
    sums: Array,
    first: int,
    last: int,
) -> None:
    """W = A V diag(scale) - W diag(beta) in some slices, and the sums of conj(V) W over each."""
    for i, (rows, matrix) in enumerate(slices[first:last], first):
        w, product = W[rows], matrix @ V
        product *= scale[: len(w)]
        w *= beta[: len(w)]
        np.subtract(product, w, out=w)
        sums[i] = _dots(V[rows], w, sums.dtype)


def _second_pass(
    slices: list[Slice], V: Array, W: Array, factors: Array, sums: Array, first: int, last: int
) -> None:
    """W -= V diag(factors) in some slices, and the sums of |W|^2 over each."""
    room = np.empty_like(factors)
    for i, (rows, _) in enumerate(slices[first:last], first):
        w = W[rows]
        w -= np.multiply(V[rows], factors[: len(w)], out=room[: len(w)])
        sums[i] = _dots(w, w, sums.dtype)


def _dots(X: Array, Y: Array, wide: Any) -> Any:
    """The inner products of the columns of a slice, in double precision."""
    X, Y = X.astype(wide, copy=False), Y.astype(wide, copy=False)
    return np.einsum("ij,ij->j", X.conj() if X.dtype.kind == "c" else X, Y)


def _usable(X: Array) -> bool:
    return X.shape[1] >= _NARROW and bool(X.flags.c_contiguous)


def _height(X: Array) -> int:
    """The rows of a slice for blocks as wide as this one: a power of two, so there are few."""
    width: int = X.shape[1]
    height = 1 << (_SLICE_ENTRIES // width).bit_length()
    return min(max(_LEAST_HEIGHT, height), _MOST_HEIGHT)


def _view(matrix: Any, first: int, last: int) -> Any:
    """Some rows of a CSR matrix as one of its own, whose entries are not copied."""
    begin, end = matrix.indptr[first], matrix.indptr[last]
    rows = scipy.sparse.csr_array((last - first, matrix.shape[1]), dtype=matrix.dtype)
    rows.indptr = matrix.indptr[first : last + 1] - begin
    rows.indices, rows.data = matrix.indices[begin:end], matrix.data[begin:end]
    return rows


def _spread(factors: Array, X: Array) -> Any:
    """A block's factors in every row of a slice: arrays of one shape multiply in one sweep."""
    return np.tile(factors.astype(X.dtype), (_height(X), 1))
