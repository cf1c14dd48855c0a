r"""Matrices larger than memory: files that are read slab by slab, once a block of vectors.

A matrix cut into slabs of rows is multiplied as it passes by,

    (A X)[rows] = A[rows] X        and        A^H Y = sum over slabs of A[rows]^H Y[rows],

so that either direction takes one pass over the file, whatever the number of vectors.
While one slab is multiplied, a thread reads the next: a pass takes the longer of the two,
not their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np

from matfree.arrays import conjugate, describe
from matfree.errors import OperatorError, warn
from matfree.operators.algebra import Operator
from matfree.operators.memmap_file import MappedFile
from matfree.protocol import Array
from matfree.spaces import space_like

SLAB_BYTES = 1 << 26
"""The default size of a slab: long enough for a disk, short beside any memory."""

_VECTORS_A_PASS = 64
"""As many as are multiplied in about the time that reading takes, on machines of today."""

_BLOCK_ENTRIES = 1 << 25  # entries of a block of vectors, beyond which fewer are preferred


@final
class SlabOperator(Operator):
    r"""A matrix in a file, streamed in slabs of rows, or of columns where it is stored so.

    Parameters
    ----------
    matrix : (m, n) sliceable
        Anything with ``shape``, ``dtype`` and ``matrix[a:b]``, which gives rows as something
        that NumPy takes for an array: ``numpy.memmap``, an h5py dataset, a zarr array, a
        class of yours. Integers become float64, 16-bit floating point float32, and numbers
        of the other byte order native ones, one slab at a time. It is read from a thread,
        never by two at once within a product.
    slab_bytes : int
        Size of a slab in memory, at least one row. Where ``matrix.chunks`` tells in what
        pieces it is stored, a slab holds whole chunks.

    Raises
    ------
    OperatorError
        It has not two dimensions; or, from a product, a slab could not be read, or was not
        what the shape and the dtype promise. The text names its rows.

    Warns
    -----
    RuntimeWarning
        A slab holds less than one chunk, so that each chunk is read more than once a product.

    Notes
    -----
    The slabs are of columns, A X being a sum over them, where a memory map is in Fortran
    order, or the chunks are too high for slabs of rows.

    Cost
    ----
    One pass over the file a block of vectors, in either direction. Two slabs in memory beside
    the vectors, counted with the numbers as they are stored where those are converted.

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

    def __init__(self, matrix: Any, *, slab_bytes: int = SLAB_BYTES) -> None:
        shape = tuple(matrix.shape)
        if len(shape) != 2:
            raise OperatorError(f"a matrix has 2 dimensions: got {describe(matrix)}.")
        if slab_bytes < 1:
            raise ValueError(f"slab_bytes must be at least 1: got {slab_bytes}.")
        example = np.empty(0, dtype=matrix.dtype)
        space = space_like(example.astype(example.dtype.newbyteorder("=")), shape[0])
        square = shape[0] == shape[1]
        super().__init__(space, space if square else space_like(space.zeros(0), shape[1]))
        self.matrix = matrix
        self.preferred_block_size = vectors_a_pass(shape)
        converted = np.dtype(matrix.dtype) != self.dtype
        width = np.dtype(self.dtype).itemsize + converted * np.dtype(matrix.dtype).itemsize
        self.by_columns, self.height = _layout(matrix, shape, width, slab_bytes)
        self._mapped = MappedFile.under(matrix)
        self._copies = self._mapped is not None or converted

    def _apply(self, X: Array) -> Array:
        return self._accumulated(X) if self.by_columns else self._stacked(X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self._stacked(X, "H") if self.by_columns else self._accumulated(X, "H")

    def _stacked(self, X: Array, adjoint: str = "") -> Array:
        """Every slab gives a few rows of the answer."""
        xp, target = self.space.xp, self.domain if adjoint else self.space
        Y = xp.empty((target.size, X.shape[1]), dtype=self.dtype)

        def use(part: slice, slab: Array) -> None:
            Y[part] = _adjoint_times(xp, slab, X) if adjoint else slab @ X

        self._stream(use)
        return Y

    def _accumulated(self, X: Array, adjoint: str = "") -> Array:
        """Every slab meets a few rows of the block, and adds to the whole answer."""
        xp, target = self.space.xp, self.domain if adjoint else self.space
        Y = target.zeros(X.shape[1])

        def use(part: slice, slab: Array) -> None:
            Y[...] += _adjoint_times(xp, slab, X[part]) if adjoint else slab @ X[part]

        self._stream(use)
        return Y

    def _stream(self, use: Callable[[slice, Array], None]) -> None:
        """Hand every slab to ``use``, in order, the next one being read meanwhile."""
        length, across = self.shape[::-1] if self.by_columns else self.shape
        begins = range(0, length, self.height)
        parts = [slice(begin, min(begin + self.height, length)) for begin in begins]
        # Two buffers in turn: memory that is new costs as much as the copy into it.
        shape = (min(self.height, length), across) if self._copies else (0, 0)
        buffers = [np.empty(shape, dtype=self.dtype) for _ in parts[:2]]
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="slab") as reader:
            ahead = reader.submit(self._read, parts[0], buffers[0]) if parts else None
            for number, part in enumerate(parts, start=1):
                assert ahead is not None
                slab = ahead.result()
                if number < len(parts):
                    ahead = reader.submit(self._read, parts[number], buffers[number % 2])
                use(part, slab)
                del slab  # before the one after the next is begun: two at a time

    def _read(self, part: slice, buffer: Array) -> Array:
        """A slab in memory, not merely mapped: this is where the disk is waited for."""
        try:
            stored = np.asarray(self.matrix[:, part] if self.by_columns else self.matrix[part])
            self._require_shape(stored, part)
            if not self._copies:
                return stored
            lines = buffer[: part.stop - part.start]
            slab = lines.T if self.by_columns else lines
            if self._mapped is None:
                np.copyto(slab, stored)
            else:
                self._mapped.copy(stored, slab)
        except OperatorError:
            raise
        except Exception as cause:  # whatever the file's library may say
            raise OperatorError(
                f"{self._named(part)} could not be read ({type(cause).__name__}: {cause}); mend "
                "the file, or the connection to it."
            ) from cause
        return slab

    def _require_shape(self, stored: Array, part: slice) -> None:
        lines = part.stop - part.start
        expected = (self.shape[0], lines) if self.by_columns else (lines, self.shape[1])
        if stored.shape != expected:
            raise OperatorError(
                f"{self._named(part)} came with shape {stored.shape} instead of {expected}; "
                "mend what matrix[a:b] gives."
            )

    def _named(self, part: slice) -> str:
        line = "columns" if self.by_columns else "rows"
        return f"the slab of {line} {part.start} to {part.stop - 1} of {describe(self.matrix)}"


def vectors_a_pass(shape: tuple[int, int]) -> int:
    """The vectors to send at once where the matrix costs more to come by than to multiply."""
    return max(1, min(_VECTORS_A_PASS, _BLOCK_ENTRIES // max(1, *shape)))


def _layout(matrix: Any, shape: tuple[int, int], width: int, slab_bytes: int) -> tuple[bool, int]:
    """Whether slabs are of columns, and how many rows (or columns) each has.

    Parameters
    ----------
    width : int
        Bytes that a number takes while it is read.
    """
    flags = getattr(matrix, "flags", None)
    if flags is not None and flags["F_CONTIGUOUS"] and not flags["C_CONTIGUOUS"]:
        return True, max(1, slab_bytes // max(1, shape[0] * width))
    # Slabs of the one kind, and of the other, that hold one line of chunks.
    chunks = _chunks(matrix)
    costs = chunks[0] * shape[1], chunks[1] * shape[0]
    by_columns = costs[0] * width > slab_bytes and costs[1] < costs[0]
    lines, across = (chunks[1], shape[0]) if by_columns else (chunks[0], shape[1])
    height = max(1, slab_bytes // max(1, across * width))
    if height >= lines:
        return by_columns, height // lines * lines
    warn(
        f"a slab of {slab_bytes} bytes holds {height} of the {lines} "
        f"{'columns' if by_columns else 'rows'} of a chunk of {describe(matrix)}, so that each "
        f"chunk is read {-(-lines // height)} times a product; pass "
        f"SlabOperator(matrix, slab_bytes={lines * across * width}) or more, or store it in "
        "smaller chunks.",
        RuntimeWarning,
    )
    return by_columns, height


def _chunks(matrix: Any) -> tuple[int, int]:
    """The shape of the pieces in which a file holds the matrix; single numbers where none."""
    chunks = getattr(matrix, "chunks", None)
    if isinstance(chunks, tuple) and len(chunks) == 2 and all(isinstance(c, int) for c in chunks):
        return chunks[0], chunks[1]
    return 1, 1


def _adjoint_times(xp: Any, slab: Array, X: Array) -> Array:
    """A^H X for one slab; the block, being narrow, is what is conjugated."""
    return conjugate(xp, slab.T @ conjugate(xp, X))
