"""The few questions about arrays that the array API standard leaves to its users."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

from matfree.protocol import Array, DType

_CACHED_BYTES = 1 << 18
_DEVICE_BYTES = 1 << 26


def slab_bytes(device: Any) -> int:
    """The size of the slabs that blocks are worked on in."""
    return _CACHED_BYTES if str(device) == "cpu" else _DEVICE_BYTES


def slabs(rows: int, row_bytes: int, device: Any) -> Iterator[slice]:
    """Consecutive slices of some rows, each worked on before the next is begun.

    On a processor a slab stays in the cache, so that a temporary as large as a block is
    neither made (the system has to clear its pages) nor read again from memory. A device
    gets large slabs: there each operation has a price of its own.
    """
    height = max(1, slab_bytes(device) // max(1, row_bytes))
    for begin in range(0, rows, height):
        yield slice(begin, min(begin + height, rows))


def to_host(x: Array) -> np.ndarray[Any, Any]:
    """A NumPy copy of a small array: this is where the host waits for the device."""
    if array_api_compat.is_cupy_array(x) or array_api_compat.is_torch_array(x):
        x = array_api_compat.to_device(x, "cpu")  # their export keeps to the current device
    return np.from_dlpack(x, device="cpu").copy()


@cache
def is_complex(xp: Any, dtype: DType) -> bool:
    """Whether a data type is complex."""
    return bool(xp.isdtype(dtype, "complex floating"))


@cache
def is_floating(xp: Any, dtype: DType) -> bool:
    """Whether a data type is real or complex floating point."""
    return bool(xp.isdtype(dtype, ("real floating", "complex floating")))


def epsilon(xp: Any, dtype: DType) -> float:
    """The relative spacing of a data type's numbers."""
    return float(xp.finfo(dtype).eps)


def rounding(xp: Any, dtype: DType) -> float:
    """What counts as rounding relative to the largest number around: 32 eps.

    The rounding of one product is a few eps ||A||. Going on a little below it is harmless
    (directions made of noise are orthogonal to the rest and carry no weight), while a
    higher bar would cut off a bulk of eigenvalues far below ||A||.
    """
    return 32 * epsilon(xp, dtype)


def widest(xp: Any, dtype: DType, device: Any) -> DType:
    """The type that sums over rows accumulate in: double wherever the device has it."""
    kind = "complex floating" if is_complex(xp, dtype) else "real floating"
    dtypes = xp.__array_namespace_info__().dtypes(device=device, kind=kind)
    double = "complex128" if is_complex(xp, dtype) else "float64"
    return dtypes.get(double, dtype)


def half_type(xp: Any) -> DType | None:
    """The library's real 16-bit type; None where it has none, because the standard has none."""
    return getattr(xp, "float16", None)


def conjugate(xp: Any, x: Array) -> Array:
    """Elementwise conjugate; a real array comes back as it is, not as a copy."""
    return xp.conj(x) if is_complex(xp, x.dtype) else x


def real_part(xp: Any, x: Array) -> Array:
    """Elementwise real part; a real array comes back as it is."""
    return xp.real(x) if is_complex(xp, x.dtype) else x


def describe(x: Any) -> str:
    """What an error message says of an object: its library's type, shape and dtype."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{kind} of shape {tuple(x.shape)} and dtype {x.dtype}"
    return kind
