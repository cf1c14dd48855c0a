"""``inverse`` as an operand of the other algorithms, against dense inverses."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import complex_hermitian, with_spectrum

import matfree as mf
from matfree.arrays import to_host

N = 40
POSITIVE = with_spectrum(np.geomspace(0.5, 50, N))
GENERAL = POSITIVE / 10 + np.random.default_rng(1).standard_normal((N, N))


def test_it_is_the_inverse_on_every_backend(backend, dtype):
    complex_ = np.issubdtype(dtype, np.complexfloating)
    A = complex_hermitian(N) / 10 + 3 * np.eye(N) if complex_ else POSITIVE
    inverse = mf.inverse(backend.asarray(A, dtype), shift=2.0)
    exact = np.linalg.inv(A + 2 * np.eye(N))
    assert_close(to_host(inverse.to_dense()), exact, dtype, scale=1e3)
    assert_close(to_host(inverse.H.to_dense()), exact.conj().T, dtype, scale=1e3)


def test_the_adjoint_of_an_inverse_without_symmetry():
    for shift, A in ((0.0, GENERAL), (0.5j, GENERAL.astype(complex))):
        inverse, exact = mf.inverse(A, shift=shift), np.linalg.inv(A + shift * np.eye(N))
        np.testing.assert_allclose(inverse.to_dense(), exact, atol=1e-7)
        np.testing.assert_allclose(inverse.H.to_dense(), exact.conj().T, atol=1e-7)


def test_it_works_in_the_other_algorithms():
    exact = np.linalg.inv(POSITIVE)
    inverse = mf.inverse(POSITIVE)
    assert mf.trace(inverse, rtol=1e-9, max_matvecs=N, seed=0).value == pytest.approx(
        np.trace(exact), rel=1e-8
    )
    found = mf.diagonal(inverse, rtol=1e-9, max_matvecs=N, seed=0).value
    np.testing.assert_allclose(found, np.diag(exact), rtol=1e-7)
    pairs = mf.eigsh(inverse, 3, seed=0)
    np.testing.assert_allclose(pairs.values, 1 / np.linalg.eigvalsh(POSITIVE)[:3], rtol=1e-6)
    assert pairs.converged.all()
    smallest = mf.svds(mf.inverse(GENERAL), 1, seed=0).values[0]
    assert 1 / smallest == pytest.approx(np.linalg.svd(GENERAL)[1][-1], rel=1e-5)
    both = mf.aslinearoperator(POSITIVE) @ inverse
    np.testing.assert_allclose(both @ np.ones(N), np.ones(N), atol=1e-8)


def test_the_matvecs_inside_are_counted():
    class Counted:
        shape, dtype, count = (N, N), np.float64, 0

        def matvec(self, x):
            self.count += 1
            return POSITIVE @ x

    A = Counted()
    inverse = mf.inverse(A)
    mf.trace(inverse, num_probes=5, seed=0)
    assert inverse.num_matvecs == A.count > 5
    assert inverse.num_solves == 5
    assert 0 < inverse.largest_residual <= 1e-10


def test_a_product_that_misses_its_tolerance_is_an_error_or_a_warning():
    strict = mf.inverse(POSITIVE, max_matvecs=6, rtol=1e-9)
    with pytest.raises(mf.SolveError, match="max_matvecs") as failed:
        strict @ np.ones(N)
    assert failed.value.solution.residuals[0] < 1
    lenient = mf.inverse(POSITIVE, max_matvecs=6, rtol=1e-9, on_failure="warn")
    with pytest.warns(mf.ConvergenceWarning, match="max_matvecs"):
        np.testing.assert_array_equal(lenient @ np.ones(N), failed.value.solution.values[:, 0])
    with pytest.raises(mf.SolveError, match="not in the range"):
        mf.inverse(np.diag([1.0, 0.0])) @ np.ones(2)


def test_wrong_arguments_are_named():
    with pytest.raises(mf.OperatorError, match="only a square operator"):
        mf.inverse(np.ones((3, 2)))
    with pytest.raises(mf.OperatorError, match="complex shift needs complex vectors"):
        mf.inverse(POSITIVE, shift=1j)
    with pytest.raises(ValueError, match="on_failure"):
        mf.inverse(POSITIVE, on_failure="ignore")
