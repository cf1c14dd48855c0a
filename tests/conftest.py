"""Fixtures: every backend, every precision; and which doctests need an absent library."""

import importlib.util

import numpy as np
import pytest
from support.backends import MAKERS, PARAMS

collect_ignore_glob = ["benchmarks/*"]  # scripts, which `make bench` runs


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
