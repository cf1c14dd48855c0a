"""CuPy objects: recognized without importing CuPy, and multiplied if there is a device."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import matfree as mf
from matfree import probes
from matfree.arrays import to_host
from matfree_cupy import adapt, kernels, signs, to_cupyx

ROOT = Path(__file__).parents[3]
FORMATS = [
    f"{name}_{kind}" for kind in ("matrix", "array") for name in ("csr", "csc", "coo", "dia")
]


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
def test_other_objects_are_not_adapted(obj):
    assert adapt(obj) is None


def test_importing_the_adapter_does_not_import_cupy():
    import subprocess
    import sys

    code = "import matfree_cupy, sys; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_cupy_the_error_names_the_extra():
    try:
        import cupyx.scipy.sparse.linalg  # noqa: F401  # only to see whether it exists
    except ImportError:
        with pytest.raises(ImportError, match="install cupy-cuda12x or cupy-cuda13x"):
            to_cupyx(np.eye(2))
    else:
        with pytest.raises(mf.OperatorError, match="CuPy vectors"):
            to_cupyx(np.eye(2))


# Without a device, only the names of CuPy and their arguments can be tested.


def _used_names():
    """The functions of the array namespace that the library calls, with their keywords."""
    used = {}
    for path in [*ROOT.glob("matfree/**/*.py"), *ROOT.glob("adapters/matfree_cupy/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner == "xp" or owner.endswith(".xp"):
                    keywords = {word.arg for word in node.keywords if word.arg}
                    used.setdefault(node.func.attr, set()).update(keywords)
    return used


def test_cupy_has_every_function_that_is_called_with_its_keywords():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from array_api_compat import cupy as xp

    used = _used_names()
    assert {"zeros", "take", "matrix_transpose", "concat"} <= used.keys()
    for name, keywords in used.items():
        function = getattr(xp, name)
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # a universal function, which has no signature
            assert not keywords
            continue
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert open_ended or keywords <= parameters.keys(), name


@pytest.mark.parametrize("name", FORMATS)
def test_cupys_sparse_types_are_recognized_by_their_names(name):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    import cupyx.scipy.sparse as csp

    bases = {base.__name__ for base in getattr(csp, name).__mro__}
    assert bases & {"spmatrix", "sparray"}
    for member in ("tocsr", "astype", "T", "__matmul__", "shape", "dtype"):
        assert hasattr(getattr(csp, name), member)


@pytest.mark.parametrize("dtype", ["int8", "float32", "float64", "complex64", "complex128"])
def test_every_data_type_has_a_kernel_for_cupy_to_compile_later(dtype):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    where = {"rows": range(3, 200), "probes": range(2), "stream": 0, "seed": 1}
    kernel = kernels.kernel(signs.SIGNS_SOURCE, signs.launch(np.dtype(dtype), **where)[0])
    assert isinstance(kernel, cupy.RawKernel)
    assert f"DEFINE_KERNEL({kernel.name}," in kernel.code
    assert {"__enter__", "__exit__", "id"} <= set(dir(cupy.cuda.Device))


class _Device:
    """A stand-in for a device; the one with number 0 is current."""

    def __init__(self, number=0):
        self.id = number

    def __eq__(self, other):
        return self.id == other.id

    __hash__ = None


def test_a_matrix_on_another_device_is_refused_with_the_remedy(monkeypatch):
    import types

    library = types.SimpleNamespace(cuda=types.SimpleNamespace(Device=_Device))
    monkeypatch.setattr(kernels, "import_module", lambda name: library)
    kernels.require_current(_Device(0))
    with pytest.raises(mf.OperatorError, match=r"with cupy.cuda.Device\(1\)"):
        kernels.require_current(_Device(1))


def _bands():
    return sp.diags_array([np.ones(99), np.arange(100.0), 2 * np.ones(99)], offsets=[-1, 0, 1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
def test_sparse_matrices_stay_on_the_device_and_agree_with_the_host(name):
    cupy = _cupy()
    import cupyx.scipy.sparse as csp

    A = _bands()
    there = getattr(csp, name)(
        A
    )  # from SciPy, because CuPy does not convert every format to every other
    ours = mf.aslinearoperator(there)
    X = ours.space.probes(3, seed=1)
    for product, exact in ((ours.matmat(X), A @ to_host(X)), (ours.H.matmat(X), A.T @ to_host(X))):
        assert isinstance(product, cupy.ndarray)
        assert product.flags.c_contiguous
        assert product.device == there.data.device
        assert np.array_equal(to_host(product), exact)
    estimate = mf.trace(there, num_probes=8, seed=0)
    assert estimate.value == pytest.approx(mf.trace(A, num_probes=8, seed=0).value, rel=1e-12)
    assert isinstance(mf.diagonal(there, num_probes=8, seed=0).value, cupy.ndarray)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("rows", [range(1), range(3, 700), range(640, 1001)], ids=str)
def test_the_kernel_on_the_device_has_the_bits_of_the_host(kind, rows):
    cupy = _cupy()
    from array_api_compat import cupy as xp

    where = {"rows": rows, "probes": range(5, 12), "stream": 2, "seed": 2**64 - 1}
    dtype = np.dtype(kind)
    here = mf.space_like(np.zeros(1), 1).xp
    expected = probes.rademacher(here, dtype, "cpu", **where)
    got = signs.rademacher_on_device(xp, dtype, cupy.cuda.Device(), **where)
    assert got.get().tobytes() == expected.tobytes()


@pytest.mark.gpu
def test_signs_are_computed_on_the_current_stream():
    cupy = _cupy()
    from array_api_compat import cupy as xp

    where = {"rows": range(1 << 20), "probes": range(8), "stream": 0, "seed": 1}
    with cupy.cuda.Stream(non_blocking=True) as stream:
        first = signs.rademacher_on_device(xp, np.dtype("float64"), cupy.cuda.Device(), **where)
        stream.synchronize()  # synchronizes only this stream
        host = first.get(stream=stream)
    again = signs.rademacher_on_device(xp, np.dtype("float64"), cupy.cuda.Device(), **where).get()
    assert host.tobytes() == again.tobytes()


@pytest.mark.gpu
def test_an_operator_on_a_second_device_stays_there():
    cupy = _cupy()
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one CUDA device only")
    with cupy.cuda.Device(1) as second:
        A = cupy.diag(cupy.arange(1.0, 51))
        result = mf.eigsh(A, 3, seed=0)
        assert result.vectors.device == second
    with pytest.raises(mf.OperatorError, match="current one is 0"):
        mf.aslinearoperator(A)


@pytest.mark.gpu
def test_a_linear_operator_of_cupyx_and_a_function_are_accepted():
    cupy = _cupy()
    import cupyx.scipy.sparse.linalg as csl

    entries = cupy.arange(1.0, 51)

    def apply(x):
        return (entries * x.T).T

    theirs = csl.LinearOperator((50, 50), matvec=apply, rmatvec=apply, matmat=apply, dtype="f8")
    function = mf.aslinearoperator(apply, shape=(50, 50), like=entries)
    for A in (theirs, function):
        assert mf.trace(A, num_probes=1, seed=0).value == 1275.0
        assert isinstance(mf.diagonal(A, num_probes=1, seed=0).value, cupy.ndarray)


@pytest.mark.gpu
def test_linear_operators_are_converted_in_both_directions():
    cupy = _cupy()
    import cupyx.scipy.sparse.linalg as csl

    A = cupy.diag(cupy.arange(1.0, 51))
    there = to_cupyx(A)
    assert isinstance(there, csl.LinearOperator)
    assert mf.trace(there, num_probes=1, seed=0).value == 1275.0
    result = mf.eigsh(A, 3, seed=0)
    assert isinstance(result.vectors, cupy.ndarray)
    largest = csl.eigsh(there, k=1, return_eigenvectors=False)
    assert float(largest[0]) == pytest.approx(50, rel=1e-8)
    assert result.values == pytest.approx([50, 49, 48], abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("spectrum", [np.ones(60), np.r_[3.0, np.zeros(59)], np.repeat([1, 2], 30)])
def test_identity_low_rank_and_repeated_eigenvalues_are_right_on_the_device(spectrum):
    cupy = _cupy()
    A = cupy.diag(cupy.asarray(spectrum, dtype=cupy.float64))
    assert mf.eigsh(A, 4, seed=0).values == pytest.approx(np.sort(spectrum)[::-1][:4], abs=1e-6)
