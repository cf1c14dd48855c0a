"""f(A) as an operator: products, traces, diagonals and eigenpairs are those of the dense matrix."""

import numpy as np
import pytest
import scipy.linalg
from support.backends import MAKERS, assert_close
from support.matrices import with_spectrum
from support.sharded import run_sharded

import matfree as mf

N = 40
A = with_spectrum(np.geomspace(0.1, 10.0, N), seed=7)
ROOT = np.real(scipy.linalg.sqrtm(A))


def test_it_is_an_operator_that_algorithms_accept():
    root = mf.matrix_function(A, "sqrt")
    assert_close(root.to_dense(), ROOT, scale=1e4)
    assert mf.check_operator(root).hermitian
    exact = mf.trace(root, max_matvecs=N, seed=0)
    assert exact.value == pytest.approx(np.trace(ROOT), rel=1e-9)
    found = mf.diagonal(root, max_matvecs=N, seed=0)
    assert_close(found.value, np.diag(ROOT), scale=1e4)
    pairs = mf.eigsh(root, 3, seed=0)
    np.testing.assert_allclose(pairs.values, np.sort(np.linalg.eigvalsh(ROOT))[::-1][:3], rtol=1e-6)
    assert pairs.verified


def test_the_largest_eigenvalues_of_the_inverse_are_the_smallest_of_the_operator():
    pairs = mf.eigsh(mf.matrix_function(A, "inverse"), 2, seed=0)
    np.testing.assert_allclose(1 / pairs.values, np.linalg.eigvalsh(A)[:2], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_complex_function_has_complex_vectors_and_an_adjoint(dtype):
    U = mf.matrix_function(A.astype(dtype), "exp", t=-0.5j)
    assert U.dtype == np.complex128
    dense = scipy.linalg.expm(-0.5j * A)
    assert_close(U.to_dense(), dense, scale=1e4)
    assert_close(U.H.to_dense(), dense.conj().T, scale=1e4)
    assert_close((U.H @ U).to_dense(), np.eye(N), scale=1e4)


def test_products_are_counted_and_their_errors_recorded():
    root = mf.matrix_function(A, "sqrt", rtol=1e-6)
    assert root.num_matvecs == 0
    _ = root @ np.ones(N)
    first = root.num_matvecs
    assert 0 < first <= N
    assert 0 < root.largest_error <= 1e-6
    _ = root @ np.ones(N)
    assert root.num_matvecs == 2 * first
    assert repr(root).startswith("<sqrt of <40x40")


@pytest.mark.parametrize("name", ["torch", "strict"])
def test_the_vectors_are_those_of_the_library(name):
    backend = MAKERS[name]()
    root = mf.matrix_function(backend.asarray(A), "sqrt")
    assert_close(root @ backend.asarray(np.ones(N)), ROOT @ np.ones(N), scale=1e5)


def test_sharded_vectors():
    def run(operator):
        return mf.trace(mf.matrix_function(operator, "sqrt"), num_probes=5, seed=1).value

    whole = run(mf.aslinearoperator(A))
    for value in run_sharded((25, 15), MAKERS["numpy"](), A, run):
        assert value == pytest.approx(whole, rel=1e-9)


def test_what_has_no_function_is_refused():
    with pytest.raises(mf.OperatorError, match="only a square operator has functions"):
        mf.matrix_function(np.ones((3, 2)), "exp")
    with pytest.raises(ValueError, match="f must be a function or one of"):
        mf.matrix_function(A, "tan")
    with pytest.raises(ValueError, match="t must be one number"):
        mf.matrix_function(A, "exp", t=[1.0, 2.0])
    with pytest.raises(ValueError, match="log needs a positive definite operator"):
        mf.matrix_function(A - np.eye(N), "log") @ np.ones(N)


def test_a_function_that_turns_out_to_be_complex_is_refused_for_a_real_operator():
    def late(x):
        return x if len(x) == 3 and x[0] == 0.3 else 1j * x

    with pytest.raises(mf.OperatorError, match="has complex values, but the operator is real"):
        mf.matrix_function(A, late) @ np.ones(N)


def test_a_product_that_misses_its_tolerance_warns():
    with pytest.warns(mf.ConvergenceWarning, match="raise max_matvecs"):
        mf.matrix_function(A, "log", max_matvecs=4) @ np.ones(N)
