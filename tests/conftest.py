"""Fixtures: every backend, every precision; and which doctests need an absent library."""

import importlib.util

import numpy as np
import pytest
from support.backends import MAKERS, PARAMS, cupy_runs

collect_ignore_glob = ["benchmarks/*"]  # scripts, which `make bench` runs


def pytest_collection_modifyitems(items):
    """The examples of the CuPy adapter run where there is CuPy and a device for it."""
    examples = [
        item
        for item in items
        if isinstance(item, pytest.DoctestItem) and item.name.startswith("matfree_cupy.")
    ]
    for item in examples:
        item.add_marker("gpu")
        if not cupy_runs():
            item.add_marker(pytest.mark.skip(reason="the example needs CuPy and a CUDA device"))


@pytest.fixture(params=PARAMS)
def backend(request):
    """NumPy, torch, the strictest array library on two devices, and CuPy where it runs."""
    return MAKERS[request.param]()


@pytest.fixture(params=[np.float32, np.float64, np.complex128], ids=lambda t: t.__name__)
def dtype(request):
    return request.param


@pytest.fixture
def needs_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
