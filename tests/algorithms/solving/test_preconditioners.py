"""The randomized Nystrom preconditioner: fewer matvecs, sketch included, and the same solution."""

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.matrices import complex_hermitian, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

N = 200
SPECTRUM = np.exp(-np.arange(N) / 8.0)
A = with_spectrum(SPECTRUM)
B = np.random.default_rng(0).standard_normal((N, 6))
SHIFT = 1e-6


def residuals(X, shift=SHIFT):
    return np.linalg.norm(B - A @ X - shift * X, axis=0) / np.linalg.norm(B, axis=0)


@pytest.mark.parametrize("method", ["auto", "minres"])
def test_it_saves_matvecs_with_the_sketch_included(method):
    calls = []

    def matmat(X):
        calls.append(X.shape[1])
        return A @ X

    operator = mf.FunctionOperator(A.dot, space=mf.space_like(B, N), matmat=matmat)
    helped = mf.solve(
        operator, B, shift=SHIFT, method=method, preconditioner="nystrom", seed=0, rtol=1e-8
    )
    spent = sum(calls)
    plain = mf.solve(A, B, shift=SHIFT, method=method, rtol=1e-8)
    assert helped.num_matvecs == spent < 0.7 * plain.num_matvecs
    assert helped.rank > 20
    assert residuals(helped.values).max() <= 1e-8


def test_the_rank_grows_with_the_number_of_systems_and_as_the_shift_decreases():
    def rank(shift, columns):
        return mf.solve(A, B[:, :columns], shift=shift, preconditioner="nystrom", seed=0).rank

    assert rank(1e-1, 6) < rank(1e-3, 6) < rank(1e-6, 6)
    assert rank(1e-6, 1) <= rank(1e-6, 6)
    solution = mf.solve(A, B, shift=SHIFT, preconditioner="nystrom", rank=17, seed=0)
    assert solution.rank == 17


def test_it_runs_on_every_backend(backend, dtype):
    M = A
    if np.issubdtype(dtype, np.complexfloating):
        vectors = np.linalg.eigh(complex_hermitian(N))[1]
        M = (vectors * SPECTRUM) @ vectors.conj().T
        M = (M + M.conj().T) / 2
    solution = mf.solve(
        backend.asarray(M, dtype), B, shift=1e-2, preconditioner="nystrom", rtol=1e-5, seed=0
    )
    exact = np.linalg.solve(M + 1e-2 * np.eye(N), B)
    assert np.abs(to_host(solution.values) - exact).max() <= 2e-3 * np.abs(exact).max()
    assert solution.rank > 0


def test_sharded_vectors_give_the_solution_of_whole_ones():
    def run(operator):
        rows = operator.space.rows
        sides = B[rows.start : rows.stop]
        return mf.solve(operator, sides, shift=1e-2, preconditioner="nystrom", rtol=1e-11, seed=0)

    whole = run(mf.aslinearoperator(A))
    shards = run_sharded((120, 80), MAKERS["numpy"](), A, run)
    assert_close(np.concatenate([s.values for s in shards]), whole.values, scale=1e4)
    assert {s.rank for s in shards} == {whole.rank}


def test_a_checkpoint_keeps_the_sketch(tmp_path):
    class Killed(BaseException):
        pass

    def killed(step):
        raise Killed

    options = {"shift": SHIFT, "preconditioner": "nystrom", "seed": 0}
    unbroken = mf.solve(A, B, **options)
    with pytest.raises(Killed):
        mf.solve(A, B, checkpoint=tmp_path / "run", callback=killed, **options)
    count = []
    counting = mf.aslinearoperator(
        lambda x: count.append(1) or A @ x, shape=A.shape, like=np.zeros(1)
    )
    resumed = mf.solve(counting, B, checkpoint=tmp_path / "run", **options)
    np.testing.assert_allclose(resumed.values, unbroken.values, rtol=1e-6)
    assert len(count) < unbroken.num_matvecs - unbroken.rank + 10


def test_an_inverse_computes_its_preconditioner_once():
    inverse = mf.inverse(A, shift=SHIFT, preconditioner="nystrom", seed=0)
    exact = np.linalg.inv(A + SHIFT * np.eye(N))
    np.testing.assert_allclose(inverse @ B[:, 0], exact @ B[:, 0], rtol=1e-5, atol=1e-3)
    first = inverse.num_matvecs
    inverse @ B[:, 0]
    assert inverse.num_matvecs - first < first / 2


def test_an_approximation_at_hand_preconditions():
    approximation = mf.low_rank(A, 60, positive=True, seed=0)
    P = approximation.preconditioner(SHIFT)
    helped = mf.solve(A, B, shift=SHIFT, preconditioner=P)
    plain = mf.solve(A, B, shift=SHIFT)
    assert helped.num_matvecs < plain.num_matvecs / 2
    assert residuals(helped.values).max() <= 1e-6


def test_the_magnitude_of_the_operator_does_not_matter():
    expected = mf.solve(A, B, shift=SHIFT, preconditioner="nystrom", seed=0)
    for c in (1e-250, 1e250):
        found = mf.solve(c * A, B, shift=c * SHIFT, preconditioner="nystrom", seed=0)
        np.testing.assert_allclose(found.values * c, expected.values, rtol=1e-3, atol=1.0)
        assert residuals(found.values * c).max() <= 1e-6
        assert found.rank == expected.rank
        with pytest.warns(mf.ConvergenceWarning, match="max_matvecs"):
            few = mf.solve(
                c * A, B, shift=c * SHIFT, preconditioner="nystrom", max_matvecs=60, seed=0
            )
        assert few.num_matvecs <= 60


def test_what_it_cannot_do_is_named():
    indefinite = with_spectrum(np.r_[-1.0, np.ones(N - 1)])
    with pytest.raises(mf.OperatorError, match="preconditioner=None"):
        mf.solve(-A, B, shift=2.0, preconditioner="nystrom")
    with pytest.raises(mf.OperatorError, match=r"positive semidefinite.*preconditioner=None"):
        mf.solve(indefinite, B, rank=N, shift=2.0, preconditioner="nystrom")
    with pytest.raises(ValueError, match="nystrom"):
        mf.solve(A, B, preconditioner="jacobi")
    with pytest.raises(ValueError, match="rank"):
        mf.solve(A, B, rank=3)
    with pytest.raises(ValueError, match=r"rank must be in \[1, n\]"):
        mf.solve(A, B, preconditioner="nystrom", rank=N + 1)
    assert mf.solve(np.eye(3), np.ones(3), preconditioner="nystrom").converged.all()
    assert mf.solve(np.eye(1), np.ones(1), shift=1.0, preconditioner="nystrom").converged.all()
    zero = mf.solve(np.zeros((3, 3)), np.ones(3), shift=1.0, preconditioner="nystrom")
    np.testing.assert_allclose(zero.values, np.ones(3))
