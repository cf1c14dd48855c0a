"""Helper functions for arrays of any library, beyond the array API standard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

from matfree.protocol import Array, DType

_CPU_SLAB_BYTES = 1 << 18  # a few slabs fit the second-level cache of a core
_DEVICE_SLAB_BYTES = 1 << 26  # large enough to hide the launch of a kernel


def slab_bytes(device: Any) -> int:
    """The size of the slabs of rows in which blocks of vectors are processed."""
    return _CPU_SLAB_BYTES if str(device) == "cpu" else _DEVICE_SLAB_BYTES


def slabs(rows: int, row_bytes: int, device: Any) -> Iterator[slice]:
    """Consecutive slices of rows, to be processed one after the other.

    On a CPU, a slab stays in the cache. This avoids temporary arrays as large as a block, whose
    pages the system has to clear and which are read back from memory. On other devices the
    slabs are larger, because every operation has a fixed cost.
    """
    height = max(1, slab_bytes(device) // max(1, row_bytes))
    for begin in range(0, rows, height):
        yield slice(begin, min(begin + height, rows))


def to_host(x: Array) -> np.ndarray[Any, Any]:
    """A NumPy copy of a small array. On a device, this synchronizes."""
    if array_api_compat.is_cupy_array(x) or array_api_compat.is_torch_array(x):
        x = array_api_compat.to_device(x, "cpu")  # their DLPack export does not change the device
    return np.from_dlpack(x, device="cpu").copy()


@cache
def is_complex(xp: Any, dtype: DType) -> bool:
    """Whether a data type is complex."""
    return bool(xp.isdtype(dtype, "complex floating"))


@cache
def is_floating(xp: Any, dtype: DType) -> bool:
    """Whether a data type is real or complex floating point."""
    return bool(xp.isdtype(dtype, ("real floating", "complex floating")))


def vector_dtype(xp: Any, dtype: DType) -> DType:
    """The floating-point type of vectors for data of this type; see ``matfree.space_like``."""
    if not is_floating(xp, dtype):
        return xp.float64
    bits = xp.finfo(dtype).bits
    if bits > 64:  # long double, which neither LAPACK nor other libraries know
        return xp.complex128 if is_complex(xp, dtype) else xp.float64
    if bits < 32:
        return xp.float32
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def epsilon(xp: Any, dtype: DType) -> float:
    """The machine epsilon of a data type."""
    return float(xp.finfo(dtype).eps)


def rounding(xp: Any, dtype: DType) -> float:
    """The relative size below which a number counts as rounding error: 32 eps.

    The rounding error of a matvec is a few eps ||A||. A threshold slightly below that is
    harmless, because directions that consist of rounding errors are orthogonal to the others
    and have no weight, whereas a higher threshold would discard a bulk of eigenvalues far
    below ||A||.
    """
    return 32 * epsilon(xp, dtype)


def widest(xp: Any, dtype: DType, device: Any) -> DType:
    """The data type in which sums over rows are accumulated: double if the device has it."""
    kind = "complex floating" if is_complex(xp, dtype) else "real floating"
    dtypes = xp.__array_namespace_info__().dtypes(device=device, kind=kind)
    double = "complex128" if is_complex(xp, dtype) else "float64"
    return dtypes.get(double, dtype)


def half_type(xp: Any) -> DType | None:
    """The library's real 16-bit type, which the standard does not require; None without one."""
    return getattr(xp, "float16", None)


def conjugate(xp: Any, x: Array) -> Array:
    """The elementwise conjugate. A real array is returned itself, not as a copy."""
    return xp.conj(x) if is_complex(xp, x.dtype) else x


def real_part(xp: Any, x: Array) -> Array:
    """The elementwise real part. A real array is returned itself, not as a copy."""
    return xp.real(x) if is_complex(xp, x.dtype) else x


def describe(x: Any) -> str:
    """A description of an object for error messages: its type, and its shape and dtype."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{kind} of shape {tuple(x.shape)} and dtype {x.dtype}"
    return kind
