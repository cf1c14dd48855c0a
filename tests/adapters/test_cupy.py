"""CuPy's objects: recognised without CuPy, multiplied where there is a device."""

import numpy as np
import pytest

import matfree as mf
from matfree_cupy import adapt, to_cupyx


def _cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return cupy


def _stand_in(module, name):
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    "obj", [np.eye(2), 3, _stand_in("cupyx.other", "spmatrix"), _stand_in("cupy", "poly1d")]
)
def test_what_is_not_cupys_matrix_is_left_to_others(obj):
    assert adapt(obj) is None


def test_importing_the_adapter_does_not_import_cupy():
    import subprocess
    import sys

    code = "import matfree_cupy, sys; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_cupy_is_named_with_its_extra():
    try:
        import cupyx.scipy.sparse.linalg  # noqa: F401  # only whether it is there
    except ImportError:
        with pytest.raises(ImportError, match=r"matfree-nla\[cupy\]"):
            to_cupyx(np.eye(2))
    else:
        with pytest.raises(mf.OperatorError, match="CuPy vectors"):
            to_cupyx(np.eye(2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["csr_matrix", "csc_matrix", "coo_matrix", "dia_matrix"])
def test_sparse_matrices_stay_on_the_device_and_agree_with_the_host(name):
    cupy = _cupy()
    import cupyx.scipy.sparse as csp
    import scipy.sparse as sp

    A = sp.diags_array([np.ones(99), np.arange(100.0), np.ones(99)], offsets=[-1, 0, 1])
    there = getattr(csp, name)(csp.csr_matrix(A.tocsr()))
    estimate = mf.trace(there, num_probes=8, seed=0)
    assert estimate.value == pytest.approx(mf.trace(A, num_probes=8, seed=0).value, rel=1e-12)
    diagonal = mf.diagonal(there, num_probes=8, seed=0).value
    assert isinstance(diagonal, cupy.ndarray)


@pytest.mark.gpu
def test_linear_operators_go_both_ways():
    cupy = _cupy()
    import cupyx.scipy.sparse.linalg as csl

    A = cupy.diag(cupy.arange(1.0, 51))
    there = to_cupyx(A)
    assert isinstance(there, csl.LinearOperator)
    assert mf.trace(there, num_probes=1, seed=0).value == 1275.0
    result = mf.eigsh(A, 3, seed=0)
    assert isinstance(result.vectors, cupy.ndarray)
    assert result.values == pytest.approx([50, 49, 48], abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("spectrum", [np.ones(60), np.r_[3.0, np.zeros(59)], np.repeat([1, 2], 30)])
def test_identity_low_rank_and_repeated_eigenvalues_are_right_on_the_device(spectrum):
    cupy = _cupy()
    A = cupy.diag(cupy.asarray(spectrum, dtype=cupy.float64))
    assert mf.eigsh(A, 4, seed=0).values == pytest.approx(np.sort(spectrum)[::-1][:4], abs=1e-6)
