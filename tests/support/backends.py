"""The array libraries that the tests run on, and the tolerance of comparisons."""

from dataclasses import dataclass
from typing import Any

import array_api_compat
import array_api_strict
import numpy as np
import pytest

from matfree.arrays import to_host

try:
    import torch
except ImportError:
    torch = None


@dataclass(frozen=True)
class Backend:
    """An array namespace on a device."""

    name: str
    xp: Any
    device: Any

    def asarray(self, x, dtype=None):
        return self.xp.asarray(np.asarray(x, dtype=dtype), device=self.device)


def _numpy():
    return Backend("numpy", array_api_compat.array_namespace(np.empty(0)), "cpu")


def _strict(device):
    return Backend(f"strict {device}", array_api_strict, array_api_strict.Device(device))


def _torch(device="cpu"):
    if torch is None:
        pytest.skip("torch is not installed")
    return Backend("torch", array_api_compat.array_namespace(torch.empty(0)), torch.device(device))


def cuda():
    """torch's current CUDA device; without one, the test is skipped."""
    if torch is None:
        pytest.skip("torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


def cupy_runs():
    """Whether CuPy is installed and finds a device."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


def _cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return Backend("cupy", array_api_compat.array_namespace(cupy.empty(0)), cupy.cuda.Device())


MAKERS = {
    "numpy": _numpy,
    "torch": _torch,
    "strict": lambda: _strict("CPU_DEVICE"),
    "strict-device1": lambda: _strict("device1"),
    "cupy": _cupy,
    "torch-cuda": lambda: _torch(cuda()),
}

ON_A_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cupy", "torch-cuda")]
PARAMS = ["numpy", "torch", "strict", "strict-device1", *ON_A_GPU]


def tolerance(dtype):
    """The rounding error that an algorithm may accumulate in a number of size 1."""
    return 1e3 * np.finfo(np.dtype(dtype)).eps


def assert_close(got, expected, dtype=np.float64, scale=None):
    """Assert equality up to ``tolerance(dtype)`` times ``scale`` or the largest expected number."""
    got = to_host(got) if hasattr(got, "__dlpack__") else np.asarray(got)
    expected = np.asarray(expected)
    size = np.abs(expected).max(initial=0.0) if scale is None else scale
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0.0) <= tolerance(dtype) * size
