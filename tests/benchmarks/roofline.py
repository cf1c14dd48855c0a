"""The minimum work of a run, compared with the measured speed of the machine."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LENGTH = 1 << 24  # numbers in an array that is copied, which exceeds every cache
ORDER = 2048  # of the matrices that are multiplied
ROUNDS = 5


class Work(NamedTuple):
    """Bytes between memory and processor, and floating-point operations."""

    moved: float
    computed: float

    def times(self, count):
        return Work(self.moved * count, self.computed * count)


@dataclass(frozen=True)
class Machine:
    """Bytes per second of a copy (read and written) and operations per second of a product."""

    threads: int
    copied: float
    multiplied: float

    def __str__(self):
        return (
            f"{self.threads} thread{'s' if self.threads > 1 else ''}: copies "
            f"{self.copied / 1e9:.1f} GB/s, multiplies {self.multiplied / 1e9:.0f} GFlop/s"
        )

    def compared(self, work, seconds):
        """Cells of a table: GB moved, fraction of a copy, GFlop computed, fraction of a product."""
        if work is None:
            return [""] * 4
        return [
            f"{work.moved / 1e9:.3g}",
            f"{work.moved / seconds / self.copied:.0%}",
            f"{work.computed / 1e9:.3g}",
            f"{work.computed / seconds / self.multiplied:.0%}",
        ]


def measured(threads, dtype=np.float64, length=LENGTH, order=ORDER):
    """Measure the machine with this number of threads, which the pools must already use."""
    return Machine(threads, _copied(threads, length), _multiplied(dtype, order))


def _copied(threads, length):
    """Bytes read plus bytes written per second, as in the STREAM benchmark."""
    source, target = np.ones(length), np.zeros(length)
    chunks = np.array_split(np.arange(length), threads)
    slices = [slice(int(chunk[0]), int(chunk[-1]) + 1) for chunk in chunks]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda rows: np.copyto(target[rows], source[rows]), slices))

        return 2 * source.nbytes / _minimum_time(copy)


def _multiplied(dtype, order):
    matrix, result = np.ones((order, order), dtype), np.empty((order, order), dtype)
    return 2 * order**3 / _minimum_time(lambda: np.matmul(matrix, matrix, out=result))


def _minimum_time(function):
    function()
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def csr_matvec(matrix, block):
    """The work of one matvec in a block that reads the matrix once."""
    itemsize, n = matrix.data.itemsize, matrix.shape[0]
    indices = matrix.nnz * matrix.indices.itemsize + n * matrix.indptr.itemsize
    return Work((matrix.nnz * itemsize + indices) / block + 2 * itemsize * n, 2 * matrix.nnz)


def lanczos_step(matrix, block):
    """A matvec fused with the recurrence: one more vector is read, and none is stored.

    Operations in addition to the matvec: two inner products, two subtractions, one scaling.
    """
    matvec, n = csr_matvec(matrix, block), matrix.shape[0]
    return Work(matvec.moved + matrix.data.itemsize * n, matvec.computed + 9 * n)


def restarted_step(matrix, block, basis):
    """A matvec and the orthogonalization against a basis that is read twice per block."""
    matvec, n = csr_matvec(matrix, block), matrix.shape[0]
    moved = 2 * basis * matrix.data.itemsize * n / block
    return Work(matvec.moved + moved, matvec.computed + 4 * basis * n)
