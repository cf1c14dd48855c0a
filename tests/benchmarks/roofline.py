"""What a run must at least move and compute, beside what the machine was measured to do."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LENGTH = 1 << 24  # numbers in an array that is copied: far more than any cache holds
ORDER = 2048  # of the matrices that are multiplied
ROUNDS = 5


class Work(NamedTuple):
    """Bytes between memory and processor, and operations in floating point."""

    moved: float
    computed: float

    def times(self, count):
        return Work(self.moved * count, self.computed * count)


@dataclass(frozen=True)
class Machine:
    """Bytes a second of a copy (read and written), operations a second of a matrix product."""

    threads: int
    copied: float
    multiplied: float

    def __str__(self):
        return (
            f"{self.threads} thread{'s' if self.threads > 1 else ''}: copies "
            f"{self.copied / 1e9:.1f} GB/s, multiplies {self.multiplied / 1e9:.0f} GFlop/s"
        )

    def compared(self, work, seconds):
        """Cells: GB moved, share of the copying speed, GFlop computed, share of multiplying."""
        if work is None:
            return [""] * 4
        return [
            f"{work.moved / 1e9:.3g}",
            f"{work.moved / seconds / self.copied:.0%}",
            f"{work.computed / 1e9:.3g}",
            f"{work.computed / seconds / self.multiplied:.0%}",
        ]


def measured(threads, dtype=np.float64, length=LENGTH, order=ORDER):
    """The machine by this many threads, which the pools must have been told."""
    return Machine(threads, _copied(threads, length), _multiplied(dtype, order))


def _copied(threads, length):
    """The sum of bytes read and written, as the STREAM benchmark counts them."""
    source, target = np.ones(length), np.zeros(length)
    parts = np.array_split(np.arange(length), threads)
    slices = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda part: np.copyto(target[part], source[part]), slices))

        return 2 * source.nbytes / _least(copy)


def _multiplied(dtype, order):
    matrix, result = np.ones((order, order), dtype), np.empty((order, order), dtype)
    return 2 * order**3 / _least(lambda: np.matmul(matrix, matrix, out=result))


def _least(function):
    function()
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def csr_product(matrix, block):
    """One product with one vector, of a block of so many that reads the matrix once."""
    itemsize, n = matrix.data.itemsize, matrix.shape[0]
    indices = matrix.nnz * matrix.indices.itemsize + n * matrix.indptr.itemsize
    return Work((matrix.nnz * itemsize + indices) / block + 2 * itemsize * n, 2 * matrix.nnz)


def lanczos_step(matrix, block):
    """A product with the recurrence in the same pass: one vector more is read, none is kept.

    Operations beyond the product: two inner products, two vectors subtracted, one scaled.
    """
    product, n = csr_product(matrix, block), matrix.shape[0]
    return Work(product.moved + matrix.data.itemsize * n, product.computed + 9 * n)


def restarted_step(matrix, block, basis):
    """A product, and its orthogonalisation against so many vectors, read twice a block."""
    product, n = csr_product(matrix, block), matrix.shape[0]
    moved = 2 * basis * matrix.data.itemsize * n / block
    return Work(product.moved + moved, product.computed + 4 * basis * n)
