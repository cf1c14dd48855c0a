"""Random signs by one kernel on the device: the bits of ``matfree.probes`` in one pass.

The version for all array libraries writes and reads several intermediate arrays of random words
and bytes for each block of signs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from matfree.protocol import Array, DType
from matfree_cupy.kernels import THREADS, kernel, numbers

SIGNS_SOURCE = Path(__file__).with_name("signs.cu")
"""The kernels in CUDA, which a C compiler accepts as well."""

_KERNELS = {
    "int8": ("signs_int8", 1),
    "float32": ("signs_float32", 1),
    "float64": ("signs_float64", 1),
    "complex64": ("signs_float32", 2),
    "complex128": ("signs_float64", 2),
}
"""For each data type, the kernel and the number of real values in an entry."""


def rademacher_on_device(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Random signs, (rows, probes) in C order, bit for bit those of ``matfree.probes``.

    The kernel runs on the device's current stream, without synchronization.
    """
    name, arguments = launch(dtype, rows=rows, probes=probes, stream=stream, seed=seed)
    with device:
        out = xp.empty((len(rows), len(probes)), dtype=dtype)
        if out.size:
            kernel(SIGNS_SOURCE, name)((num_blocks(rows, probes),), (THREADS,), (out, *arguments))
    return out


def launch(
    dtype: DType, *, rows: range, probes: range, stream: int, seed: int
) -> tuple[str, tuple[np.uint64, ...]]:
    """The kernel for a data type, and its arguments after the output block."""
    name, parts = _KERNELS[np.dtype(dtype).name]
    return name, numbers(rows.start, rows.stop, len(probes), probes.start, stream, seed, parts)


def num_blocks(rows: range, probes: range) -> int:
    """The number of blocks of threads, with one thread for each random word of these rows."""
    num_words = -(-rows.stop // 32) - rows.start // 32
    return -(-num_words * len(probes) // THREADS)
