r"""Matrices larger than memory, which are read in slabs once for each block of vectors.

For slabs S of consecutive rows,

.. math::

    (A X)_S = A_S X, \qquad A^H Y = \sum_S A_S^H Y_S,

so that either direction takes one pass over the file, whatever the number of vectors. While
one slab is multiplied, a thread reads the next. A pass therefore takes the longer of the
reading time and the multiplication time, not their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np

from matfree.arrays import conjugate, describe
from matfree.errors import OperatorError, warn
from matfree.operators.algebra import Operator
from matfree.operators.base import require_matrix, spaces_like
from matfree.operators.memmap_file import MemmapFile, reopening_of
from matfree.protocol import Array

SLAB_BYTES = 1 << 26
"""The default size of a slab: long enough to read at the disk's full speed, and small compared
with the memory of any machine."""

_VECTORS_PER_PASS = 64
"""The number of vectors whose multiplication takes about as long as reading the matrix."""

_MAX_ENTRIES_PER_BLOCK = 1 << 25  # 256 MiB of double precision; longer vectors get fewer columns


@final
class SlabOperator(Operator):
    r"""A matrix in a file, streamed in slabs of rows or columns.

    Parameters
    ----------
    matrix : (m, n) sliceable object
        An object with ``shape``, ``dtype`` and ``matrix[a:b]``, which returns rows that NumPy
        can convert to an array: a ``numpy.memmap``, an h5py dataset, a zarr array, or a class
        of your own. Each slab is converted when it is read: integers to float64, 16-bit floating
        point to float32, and foreign byte order to native byte order. The matrix is read from
        one thread other than the caller's.
    slab_bytes : int
        The size of a slab in memory; a slab has at least one row. If the matrix declares the
        ``chunks`` in which it is stored, a slab consists of whole chunks.

    Raises
    ------
    OperatorError
        The matrix does not have two dimensions. From a matvec: a slab could not be read or does
        not have the declared shape; the message names its rows.

    Warns
    -----
    RuntimeWarning
        A slab is smaller than one chunk, so that each chunk is read more than once per pass.

    Notes
    -----
    Slabs of columns are used, with A X as the sum over them, if a memory map is in Fortran
    order or if the chunks are too tall for slabs of rows.

    Cost
    ----
    One pass over the file per block of vectors, in either direction. Memory: two slabs in
    addition to the vectors; if numbers are converted, ``slab_bytes`` counts both types.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "A.npy"
    >>> np.save(path, np.arange(12.0).reshape(4, 3))
    >>> A = mf.SlabOperator(np.load(path, mmap_mode="r"), slab_bytes=48)  # two rows
    >>> A @ np.ones(3)
    array([ 3., 12., 21., 30.])
    >>> A.H @ np.ones(4)
    array([18., 22., 26.])
    """

    holds_entries = True

    def __init__(self, matrix: Any, *, slab_bytes: int = SLAB_BYTES) -> None:
        require_matrix(matrix)
        shape = tuple(matrix.shape)
        if slab_bytes < 1:
            raise ValueError(f"slab_bytes must be at least 1: got {slab_bytes}.")
        example = np.empty(0, dtype=matrix.dtype)
        super().__init__(*spaces_like(example.astype(example.dtype.newbyteorder("=")), shape))
        self.matrix, self.slab_bytes = matrix, slab_bytes
        self.preferred_block_size = vectors_per_pass(shape)
        converted = np.dtype(matrix.dtype) != self.dtype
        width = np.dtype(self.dtype).itemsize + converted * np.dtype(matrix.dtype).itemsize
        self.by_columns, self.height = _layout(matrix, shape, width, slab_bytes)
        self._file = MemmapFile.of(matrix)
        self._copies = self._file is not None or converted

    def __reduce__(self) -> tuple[Any, ...]:
        """The operator as its arguments: a memory map by the name of its file."""
        return _reopened, (reopening_of(self.matrix), self.slab_bytes)

    def _apply(self, X: Array) -> Array:
        return self._sum_over_slabs(X) if self.by_columns else self._stack_slabs(X)

    def _apply_adjoint(self, X: Array) -> Array:
        if self.by_columns:
            return self._stack_slabs(X, adjoint=True)
        return self._sum_over_slabs(X, adjoint=True)

    def _stack_slabs(self, X: Array, *, adjoint: bool = False) -> Array:
        """A X or A^H X, of which every slab computes a few rows."""
        xp, target = self.space.xp, self.domain if adjoint else self.space
        Y = xp.empty((target.size, X.shape[1]), dtype=self.dtype)

        def multiply(lines: slice, slab: Array) -> None:
            Y[lines] = _slab_adjoint_times(xp, slab, X) if adjoint else slab @ X

        self._stream(multiply)
        return Y

    def _sum_over_slabs(self, X: Array, *, adjoint: bool = False) -> Array:
        """A X or A^H X, to which every slab and the matching rows of X add a term."""
        xp, target = self.space.xp, self.domain if adjoint else self.space
        Y = target.zeros(X.shape[1])

        def multiply(lines: slice, slab: Array) -> None:
            x = X[lines]
            Y[...] += _slab_adjoint_times(xp, slab, x) if adjoint else slab @ x

        self._stream(multiply)
        return Y

    def _stream(self, multiply: Callable[[slice, Array], None]) -> None:
        """Call ``multiply(lines, slab)`` for all slabs in order, reading the next meanwhile."""
        length, across = self.shape[::-1] if self.by_columns else self.shape
        begins = range(0, length, self.height)
        slices = [slice(begin, min(begin + self.height, length)) for begin in begins]
        # Two buffers are used in turn, because fresh memory costs as much as the copy into it.
        shape = (min(self.height, length), across) if self._copies else (0, 0)
        buffers = [np.empty(shape, dtype=self.dtype) for _ in slices[:2]]
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="slab") as reader:
            ahead = reader.submit(self._read, slices[0], buffers[0]) if slices else None
            for following, lines in enumerate(slices, start=1):
                assert ahead is not None
                slab = ahead.result()
                if following < len(slices):
                    ahead = reader.submit(self._read, slices[following], buffers[following % 2])
                multiply(lines, slab)
                del slab  # so that never more than two slabs are in memory

    def _read(self, lines: slice, buffer: Array) -> Array:
        """Read a slab from the file into memory, in the thread that reads."""
        try:
            stored = np.asarray(self.matrix[:, lines] if self.by_columns else self.matrix[lines])
            self._require_shape(stored, lines)
            if not self._copies:
                return stored
            filled = buffer[: lines.stop - lines.start]
            slab = filled.T if self.by_columns else filled
            if self._file is None:
                np.copyto(slab, stored)
            else:
                self._file.copy(stored, slab)
        except OperatorError:
            raise
        except Exception as cause:  # file libraries raise exceptions of any type
            raise OperatorError(
                f"{self._describe_slab(lines)} could not be read ({type(cause).__name__}: "
                f"{cause}); check the file and the connection to it."
            ) from cause
        return slab

    def _require_shape(self, stored: Array, lines: slice) -> None:
        count = lines.stop - lines.start
        expected = (self.shape[0], count) if self.by_columns else (count, self.shape[1])
        if stored.shape != expected:
            raise OperatorError(
                f"{self._describe_slab(lines)} has shape {stored.shape} instead of {expected}; "
                "fix the result of matrix[a:b]."
            )

    def _describe_slab(self, lines: slice) -> str:
        kind = "columns" if self.by_columns else "rows"
        return f"the slab of {kind} {lines.start} to {lines.stop - 1} of {describe(self.matrix)}"


def vectors_per_pass(shape: tuple[int, int]) -> int:
    """The preferred block size of a matrix that takes longer to read than to multiply."""
    return max(1, min(_VECTORS_PER_PASS, _MAX_ENTRIES_PER_BLOCK // max(1, *shape)))


def _reopened(matrix: Any, slab_bytes: int) -> SlabOperator:
    """A pickled operator in another process."""
    matrix = np.memmap(**matrix) if isinstance(matrix, dict) else matrix
    return SlabOperator(matrix, slab_bytes=slab_bytes)


def _layout(matrix: Any, shape: tuple[int, int], width: int, slab_bytes: int) -> tuple[bool, int]:
    """Whether slabs consist of columns, and the number of rows (or columns) of a slab.

    Parameters
    ----------
    width : int
        The bytes that a number occupies while it is read, before and after conversion.
    """
    flags = getattr(matrix, "flags", None)
    if flags is not None and flags["F_CONTIGUOUS"] and not flags["C_CONTIGUOUS"]:
        return True, max(1, slab_bytes // max(1, shape[0] * width))
    # The smallest slabs of rows and of columns that consist of whole chunks: one line of chunks.
    chunks = _chunk_shape(matrix)
    costs = chunks[0] * shape[1], chunks[1] * shape[0]
    by_columns = costs[0] * width > slab_bytes and costs[1] < costs[0]
    lines, across = (chunks[1], shape[0]) if by_columns else (chunks[0], shape[1])
    height = max(1, slab_bytes // max(1, across * width))
    if height >= lines:
        return by_columns, height // lines * lines
    warn(
        f"a slab of {slab_bytes} bytes holds {height} of the {lines} "
        f"{'columns' if by_columns else 'rows'} of a chunk of {describe(matrix)}, so that each "
        f"chunk is read {-(-lines // height)} times per pass; pass "
        f"SlabOperator(matrix, slab_bytes={lines * across * width}) or more, or store it in "
        "smaller chunks.",
        RuntimeWarning,
    )
    return by_columns, height


def _chunk_shape(matrix: Any) -> tuple[int, int]:
    """The shape of the chunks in which the matrix is stored; (1, 1) if it declares none."""
    chunks = getattr(matrix, "chunks", None)
    if isinstance(chunks, tuple) and len(chunks) == 2 and all(isinstance(c, int) for c in chunks):
        return chunks[0], chunks[1]
    return 1, 1


def _slab_adjoint_times(xp: Any, slab: Array, X: Array) -> Array:
    """A^H X for one slab A. The block X is conjugated, because it is smaller than the slab."""
    return conjugate(xp, slab.T @ conjugate(xp, X))
