"""Fixtures for all backends and precisions, and the doctests that need an optional library."""

import importlib.util

import numpy as np
import pytest
from support.backends import MAKERS, PARAMS, cupy_runs

collect_ignore_glob = [
    "benchmarks/*",  # scripts, which `make bench` runs
    "typing/*",  # wrong calls on purpose, which `make check` reads and nobody runs
]


def pytest_collection_modifyitems(items):
    """Skip the examples of an adapter without its library or the device that it needs."""
    without_cupy = pytest.mark.skip(reason="the example needs CuPy and a CUDA device")
    without_torch = pytest.mark.skip(reason="the example needs torch")
    for item in items:
        if not isinstance(item, pytest.DoctestItem):
            continue
        if item.name.startswith("matfree_cupy."):
            item.add_marker("gpu")
            if not cupy_runs():
                item.add_marker(without_cupy)
        elif item.name.startswith("matfree_torch.") and importlib.util.find_spec("torch") is None:
            item.add_marker(without_torch)


@pytest.fixture(params=PARAMS)
def backend(request):
    """NumPy, torch, array-api-strict on two devices, and CuPy if there is a device."""
    return MAKERS[request.param]()


@pytest.fixture(params=[np.float32, np.float64, np.complex128], ids=lambda t: t.__name__)
def dtype(request):
    return request.param


@pytest.fixture
def needs_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
