"""Memory maps read through their files, which is several times faster for data on disk.

Through a memory map, data are fetched page by page, with a page fault for each. Reading the file
directly transfers long runs into memory that is already allocated. If the file cannot be
identified or no longer has the mapped contents, the map is copied instead.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any, Self, final

import numpy as np
from numpy.lib.array_utils import byte_bounds

from matfree.protocol import Array

_COMPARED_BYTES = 4096  # at either end of the map, to recognize its file


@final
class MemmapFile:
    """The file that a ``numpy.memmap`` maps.

    Parameters
    ----------
    matrix : numpy.memmap
    pages : mmap.mmap
        The memory map that contains the entries of ``matrix``.
    """

    def __init__(self, matrix: Any, pages: mmap.mmap) -> None:
        begin = matrix.offset - matrix.offset % mmap.ALLOCATIONGRANULARITY
        mapped = np.frombuffer(pages, dtype=np.uint8)
        self._shift = begin - byte_bounds(mapped)[0]
        """The difference between a position in the file and its address in memory."""
        self._file: int | None = None
        if matrix.mode == "c" or matrix.filename is None or not hasattr(os, "preadv"):
            return  # a copy-on-write map may differ from the file
        try:
            self._file = os.open(matrix.filename, os.O_RDONLY)
        except OSError:
            return
        weakref.finalize(self, os.close, self._file)
        if not self._agrees(mapped, begin):
            self._file = None  # another file has this name now

    @classmethod
    def of(cls, matrix: Any) -> Self | None:
        """The file that an array is mapped from; None for arrays in memory.

        A copy of a ``numpy.memmap`` has that type as well, but is not mapped: only the owner of
        its memory distinguishes the two.
        """
        if not isinstance(matrix, np.memmap) or not matrix.size:
            return None
        owner: Any = matrix
        while isinstance(owner, np.ndarray):
            owner = owner.base
        return cls(matrix, owner) if isinstance(owner, mmap.mmap) else None

    def copy(self, stored: Array, target: Array) -> None:
        """Copy ``stored``, a view of the memory map, into an array of the same shape.

        Raises
        ------
        EOFError
            The file has become shorter.
        """
        contiguous = stored.flags["C_CONTIGUOUS"] or stored.flags["F_CONTIGUOUS"]
        # A strided view would need one read per run of numbers, which the map does as well.
        if self._file is None or not contiguous:
            np.copyto(target, stored)
            return
        same = target.dtype == stored.dtype and target.strides == stored.strides
        raw = target if same else np.empty_like(stored, subok=False)
        self._read(byte_bounds(stored)[0] + self._shift, raw.ravel(order="K").view(np.uint8))
        if not same:
            np.copyto(target, raw)

    def _agrees(self, mapped: Array, begin: int) -> bool:
        """Whether the file is as long as the map, with the same bytes at its start and end."""
        size, found = mapped.size, np.empty(min(_COMPARED_BYTES, mapped.size), dtype=np.uint8)
        try:
            for position in (0, size - found.size):
                self._read(begin + position, found)
                if not np.array_equal(found, mapped[position : position + found.size]):
                    return False
        except EOFError:
            return False
        return True

    def _read(self, position: int, target: Array) -> None:
        """Fill an array of bytes from a position in the file."""
        done = 0
        while done < target.size:
            assert self._file is not None
            count = os.preadv(self._file, [target[done:]], position + done)
            if not count:
                raise EOFError(f"the file ends before byte {position + target.size}.")
            done += count


def reopening_of(matrix: Any) -> Any:
    """The arguments of ``numpy.memmap`` that map a whole file again; else the matrix itself."""
    mapped = isinstance(matrix, np.memmap) and isinstance(matrix.base, mmap.mmap)
    if not mapped or matrix.mode == "c" or matrix.filename is None:
        return matrix
    order = "C" if matrix.flags["C_CONTIGUOUS"] else "F"
    return {
        "filename": os.path.abspath(matrix.filename),
        "dtype": matrix.dtype,
        "mode": "r",
        "offset": matrix.offset,
        "shape": matrix.shape,
        "order": order,
    }
