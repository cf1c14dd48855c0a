"""Operators of SciPy and CuPy without a block method of their own are applied to vectors (n,)."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.sparse.linalg as sla
from support.matrices import haar

import matfree as mf
from matfree.operators.inherited_blocks import takes_blocks

N = 40
WEIGHTS = np.linspace(1.0, 3.0, N)


def smooth(x):
    """A filter along the last axis, which does nothing to columns of shape (n, 1)."""
    return scipy.ndimage.gaussian_filter1d(WEIGHTS * x, 2.0, mode="wrap")


DENSE = np.array([smooth(e) for e in np.eye(N)]).T
ROTATION = haar(N, 0)


def smooth_adjoint(y):
    assert y.shape == (N,)
    return DENSE.T @ y


def subclasses(base):
    """Classes that define vectors only, blocks only, and an adjoint as an operator."""

    class Vectors(base):
        def __init__(self):
            super().__init__(np.dtype(float), (N, N))

        def _matvec(self, x):
            return smooth(x)

        def _rmatvec(self, y):
            return smooth_adjoint(y)

    class VectorsWithAdjoint(base):
        def __init__(self):
            super().__init__(np.dtype(float), (N, N))

        def _matvec(self, x):
            return smooth(x)

        def _adjoint(self):
            return Vectors().H

    class Blocks(base):
        def __init__(self):
            super().__init__(np.dtype(float), (N, N))

        def _matmat(self, X):
            assert X.shape == (N, 5)
            return DENSE @ X

        def _rmatmat(self, X):
            assert X.shape == (N, 5)
            return DENSE.T @ X

    return Vectors(), VectorsWithAdjoint(), Blocks()


def operators(interface):
    """Operators with the dense matrix, and whether they have blocks in both directions."""
    A = interface.LinearOperator((N, N), smooth, rmatvec=smooth_adjoint, dtype=float)
    M = interface.aslinearoperator(ROTATION)
    forward = interface.LinearOperator(
        (N, N), smooth, rmatvec=smooth_adjoint, matmat=lambda X: DENSE @ X, dtype=float
    )
    vectors, with_adjoint, blocks = subclasses(interface.LinearOperator)
    identity = interface.IdentityOperator((N, N), dtype=np.dtype(float))
    square, both = DENSE @ DENSE, DENSE + ROTATION
    return {
        "functions": (A, DENSE, (False, False)),
        "functions with matmat only": (forward, DENSE, (True, False)),
        "its adjoint": (forward.H, DENSE.T, (False, True)),
        "adjoint": (A.H, DENSE.T, (False, False)),
        "transpose": (A.T, DENSE.T, (False, False)),
        "sum": (A + M, both, (False, False)),
        "product": (A @ M, DENSE @ ROTATION, (False, False)),
        "product in the other order": (M @ A, ROTATION @ DENSE, (False, False)),
        "multiple": (2 * A, 2 * DENSE, (False, False)),
        "power": (A**2, square, (False, False)),
        "composition of all": ((A + M).H @ (3 * A), both.T @ (3 * DENSE), (False, False)),
        "with the identity": (A - identity, DENSE - np.eye(N), (False, False)),
        "class with vectors": (vectors, DENSE, (False, False)),
        "its adjoint and transpose": (vectors.H.T.H, DENSE.T, (False, False)),
        "class with an adjoint": (with_adjoint, DENSE, (False, False)),
        "class with blocks": (blocks, DENSE, (True, True)),
        "matrix": (M, ROTATION, (True, True)),
        "sum of matrices": (M + M.H, ROTATION + ROTATION.T, (True, True)),
    }


def interface_of(library):
    """The interface of SciPy, or a copy of it that is named like CuPy's, which derives from it."""
    source = sys.modules[sla.LinearOperator.__module__]
    if library == "scipy":
        return source
    copy = types.ModuleType("cupyx.scipy.sparse.linalg._interface")
    copy.__package__ = source.__package__
    exec(compile(Path(source.__file__).read_text(), source.__file__, "exec"), vars(copy))
    return copy


NAMES = sorted(operators(interface_of("scipy")))


@pytest.mark.parametrize("library", ["scipy", "cupyx"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_used_only_if_the_operator_defines_them(name, library):
    operator, _, (forward, backward) = operators(interface_of(library))[name]
    assert takes_blocks(operator, "matmat") == forward
    assert takes_blocks(operator, "rmatmat") == backward


@pytest.mark.parametrize("name", NAMES)
def test_matmats_and_their_adjoints_are_those_of_the_dense_matrix(name):
    operator, dense, _ = operators(interface_of("scipy"))[name]
    A, X = mf.aslinearoperator(operator), np.random.default_rng(1).standard_normal((N, 5))
    np.testing.assert_allclose(A @ X, dense @ X, atol=1e-12)
    np.testing.assert_allclose(A.H @ X, dense.T @ X, atol=1e-12)


FUNCTIONS_OF_THE_LAST_AXIS = {
    "uniform filter": lambda x: scipy.ndimage.uniform_filter1d(x, 5, mode="wrap"),
    "cosine transform": lambda x: scipy.fft.dct(x, type=4, norm="ortho"),
    "differences": lambda x: -np.diff(np.diff(x, prepend=0.0), append=0.0),
    "weights": lambda x: x * WEIGHTS,
    "reversal": lambda x: x[..., ::-1],
    "running sum": lambda x: np.cumsum(x, axis=-1),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_THE_LAST_AXIS)
def test_functions_of_the_last_axis_have_their_trace_and_spectrum(name):
    f = FUNCTIONS_OF_THE_LAST_AXIS[name]
    dense = np.array([f(e) for e in np.eye(N)]).T
    A = sla.LinearOperator((N, N), matvec=f, rmatvec=lambda y: dense.T @ y, dtype=float)
    assert mf.trace(A, max_matvecs=N, seed=0).value == pytest.approx(np.trace(dense), abs=1e-12)
    largest = np.linalg.svd(dense, compute_uv=False)[:3]
    assert mf.svds(A, 3, rtol=1e-8, seed=0).values == pytest.approx(largest, rel=1e-6)
    if name != "running sum":
        wanted = np.linalg.eigvalsh(dense)[::-1][:3]
        assert mf.eigsh(A, 3, which="LA", seed=0).values == pytest.approx(wanted, rel=1e-4)


def test_an_operator_without_dtype_is_applied_to_vectors_as_well():
    class NoDtype(sla.LinearOperator):
        def __init__(self):
            super().__init__(None, (N, N))

        def _matvec(self, x):
            return smooth(x)

    A = mf.aslinearoperator(NoDtype(), like=np.zeros(1))
    np.testing.assert_allclose(A @ np.eye(N), DENSE, atol=1e-12)


def test_a_missing_adjoint_is_named():
    A = mf.aslinearoperator(sla.LinearOperator((N, N), matvec=smooth, dtype=float))
    with pytest.raises(mf.NoAdjointError, match="define rmatvec"):
        A.rmatvec(np.ones(N))
    assert mf.check_operator(A).adjoint is None
