"""Loading of the CUDA kernels, which CuPy compiles when they are first used.

They run on the device's current stream, without synchronization.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from matfree import OperatorError

THREADS = 256
"""The number of threads per block of the grid."""


@cache
def kernel(source: Path, name: str, options: tuple[str, ...] = ()) -> Any:
    """The kernel ``name`` of a source file, compiled once for each device and set of options."""
    return import_module("cupy").RawKernel(source.read_text(encoding="utf-8"), name, options)


def numbers(*values: int) -> tuple[np.uint64, ...]:
    """Integers in the type of all integer parameters of the kernels."""
    return tuple(map(np.uint64, values))


def require_current(device: Any) -> None:
    """Refuse a device other than the current one, where CuPy would put the results."""
    current = import_module("cupy").cuda.Device()
    if device != current:
        raise OperatorError(
            f"the matrix is on CUDA device {device.id}, but the current one is {current.id}, where "
            "CuPy would put the vectors: run the whole computation inside "
            f"`with cupy.cuda.Device({device.id}):`."
        )
