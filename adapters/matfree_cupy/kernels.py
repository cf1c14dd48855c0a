"""The package's kernels: CUDA that CuPy compiles at first use, and plain C for those who test it.

They run on the device's current stream; nothing waits and nothing goes to the host.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from matfree import OperatorError

THREADS = 256
"""Threads of a block of the grid."""


@cache
def kernel(source: Path, name: str, options: tuple[str, ...] = ()) -> Any:
    """A kernel of a file. CuPy compiles the file once for each device and these options."""
    return import_module("cupy").RawKernel(source.read_text(encoding="utf-8"), name, options)


def numbers(*values: int) -> tuple[np.uint64, ...]:
    """Whole numbers as every kernel takes them."""
    return tuple(map(np.uint64, values))


def require_current(device: Any) -> None:
    """Refuse to work on a device that is not the current one."""
    current = import_module("cupy").cuda.Device()
    if device != current:
        raise OperatorError(
            f"the matrix lies on CUDA device {device.id}, and the current one is {current.id}, "
            "where CuPy would put the vectors: run the whole computation inside "
            f"`with cupy.cuda.Device({device.id}):`."
        )
