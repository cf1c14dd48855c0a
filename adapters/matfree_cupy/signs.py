"""Random signs by one kernel on the device: the bits of ``matfree.probes``, in one pass.

The array version writes and reads its words and bytes several times before a sign is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from matfree.protocol import Array, DType
from matfree_cupy.kernels import THREADS, kernel, numbers

SOURCE = Path(__file__).with_name("signs.cu")
"""The kernels: CUDA, and plain C for those who test them without a device."""

_KERNELS = {
    "int8": ("signs_int8", 1),
    "float32": ("signs_float32", 1),
    "float64": ("signs_float64", 1),
    "complex64": ("signs_float32", 2),
    "complex128": ("signs_float64", 2),
}
"""By data type: a kernel, and the parts of an entry."""


def rademacher(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Random signs, (rows, probes) in C order, as ``matfree.probes.rademacher`` makes them.

    On the device's current stream; nothing waits and nothing goes to the host.
    """
    name, arguments = launch(dtype, rows=rows, probes=probes, stream=stream, seed=seed)
    with device:
        out = xp.empty((len(rows), len(probes)), dtype=dtype)
        if out.size:
            kernel(SOURCE, name)((num_blocks(rows, probes),), (THREADS,), (out, *arguments))
    return out


def launch(
    dtype: DType, *, rows: range, probes: range, stream: int, seed: int
) -> tuple[str, tuple[np.uint64, ...]]:
    """The kernel for a data type, and its arguments after the block that it fills."""
    name, parts = _KERNELS[np.dtype(dtype).name]
    return name, numbers(rows.start, rows.stop, len(probes), probes.start, stream, seed, parts)


def num_blocks(rows: range, probes: range) -> int:
    """Blocks of threads, one thread for every word that has a sign of these rows."""
    num_words = -(-rows.stop // 32) - rows.start // 32
    return -(-num_words * len(probes) // THREADS)
