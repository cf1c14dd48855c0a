"""Memory maps read as files: the same numbers, several times faster when they are not in memory.

A page that is looked at through a map is fetched when it is missed, one fault after the
other; a file is read in long runs into memory that is there already. Only where the file
cannot be told, or is not what is mapped, the map itself is copied.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any, Self, final

import numpy as np
from numpy.lib.array_utils import byte_bounds

from matfree.protocol import Array

_COMPARED = 4096  # bytes at either end that must agree


@final
class MappedFile:
    """The file under a ``numpy.memmap``.

    Parameters
    ----------
    matrix : numpy.memmap
    pages : mmap.mmap
        The map that its numbers are in.
    """

    def __init__(self, matrix: Any, pages: mmap.mmap) -> None:
        begin = matrix.offset - matrix.offset % mmap.ALLOCATIONGRANULARITY
        mapped = np.frombuffer(pages, dtype=np.uint8)
        self._shift = begin - byte_bounds(mapped)[0]
        """From an address to a position in the file."""
        self._file: int | None = None
        if matrix.mode == "c" or matrix.filename is None or not hasattr(os, "preadv"):
            return  # a private map may hold what the file does not
        try:
            self._file = os.open(matrix.filename, os.O_RDONLY)
        except OSError:
            return
        weakref.finalize(self, os.close, self._file)
        if not self._agrees(mapped, begin):
            self._file = None  # the name belongs to another file by now

    @classmethod
    def under(cls, matrix: Any) -> Self | None:
        """The file under an array; a copy of a ``numpy.memmap`` is one by type, but has none."""
        if not isinstance(matrix, np.memmap) or not matrix.size:
            return None
        owner: Any = matrix
        while isinstance(owner, np.ndarray):
            owner = owner.base
        return cls(matrix, owner) if isinstance(owner, mmap.mmap) else None

    def copy(self, stored: Array, target: Array) -> None:
        """The numbers of a part of the memory map into an array of its shape.

        Raises
        ------
        EOFError
            The file has become shorter.
        """
        contiguous = stored.flags["C_CONTIGUOUS"] or stored.flags["F_CONTIGUOUS"]
        if self._file is None or not contiguous:
            np.copyto(target, stored)
            return
        same = target.dtype == stored.dtype and target.strides == stored.strides
        raw = target if same else np.empty_like(stored, subok=False)
        self._read(byte_bounds(stored)[0] + self._shift, raw.ravel(order="K").view(np.uint8))
        if not same:
            np.copyto(target, raw)

    def _agrees(self, mapped: Array, begin: int) -> bool:
        """Whether the file is as long as what is mapped, and begins and ends alike."""
        size, found = mapped.size, np.empty(min(_COMPARED, mapped.size), dtype=np.uint8)
        try:
            for position in (0, size - found.size):
                self._read(begin + position, found)
                if not np.array_equal(found, mapped[position : position + found.size]):
                    return False
        except EOFError:
            return False
        return True

    def _read(self, position: int, target: Array) -> None:
        """Fill an array of bytes from a position of the file."""
        done = 0
        while done < target.size:
            assert self._file is not None
            count = os.preadv(self._file, [target[done:]], position + done)
            if not count:
                raise EOFError(f"the file ends before byte {position + target.size}")
            done += count
