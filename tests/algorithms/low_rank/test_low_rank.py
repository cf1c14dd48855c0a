"""``low_rank`` against dense matrices: its factors, its errors, and what follows from them."""

import pickle

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.matrices import haar, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

N = 120
SPECTRA = {
    "exponential": np.exp(-np.arange(N) / 6.0),
    "algebraic": 1.0 / (1 + np.arange(N)),
    "step": np.r_[np.ones(10), np.full(N - 10, 1e-3)],
    "one outlier": np.r_[np.ones(25), 0.3, np.full(N - 26, 1e-6)],
    "flat": np.ones(N),
}
SIGNS = np.where(np.arange(N) % 3 == 1, -1.0, 1.0)


def matrix(kind, spectrum):
    if kind == "positive":
        return with_spectrum(spectrum)
    if kind == "indefinite":
        return with_spectrum(spectrum * SIGNS)
    M = haar(N, 1) * spectrum @ haar(N, 2)
    return M[:, :80] if kind == "tall" else M[:80]


KINDS = {
    "positive": "randomized Nystrom approximation",
    "indefinite": "randomized Rayleigh-Ritz projection",
    "tall": "randomized SVD",
    "wide": "randomized SVD",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_estimated_errors_are_those_of_the_matrix(kind, name):
    A = matrix(kind, SPECTRA[name])
    frobenius, spectral = [], []
    for seed in range(8):
        found = mf.low_rank(A, 20, seed=seed)
        assert found.method == KINDS[kind]
        E = A - found.to_dense()
        frobenius.append(found.error_frobenius / np.linalg.norm(E))
        spectral.append(found.error_spectral / np.linalg.norm(E, 2))
    assert 0.9 <= np.median(frobenius) <= 2.0
    assert 0.8 <= np.median(spectral) <= 10.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["exponential", "step", "one outlier"])
def test_a_tolerance_bounds_the_error(kind, name):
    A = matrix(kind, SPECTRA[name])
    optimum = np.linalg.svd(A, compute_uv=False)
    tails = np.sqrt(np.cumsum(optimum[::-1] ** 2))[::-1]
    for seed in range(4):
        found = mf.low_rank(A, rtol=0.03, seed=seed)
        assert found.converged
        assert np.linalg.norm(A - found.to_dense()) <= 0.03 * np.linalg.norm(A)
        least = int(np.sum(tails > 0.03 * np.linalg.norm(A)))
        assert least <= found.rank <= 2 * least + 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_factors_are_orthonormal_and_near_the_best_ones(kind):
    A = matrix(kind, SPECTRA["exponential"])
    found = mf.low_rank(A, 15, seed=0)
    U, V = found.left, found.left if found.right is None else found.right
    for W in (U, V):
        np.testing.assert_allclose(W.T @ W, np.eye(15), atol=1e-12)
    np.testing.assert_allclose(found.to_dense(), (U * found.values) @ V.T, atol=1e-14)
    np.testing.assert_allclose(found.H.to_dense(), found.to_dense().T, atol=1e-14)
    best = np.linalg.svd(A, compute_uv=False)[15:]
    assert np.linalg.norm(A - found.to_dense()) <= 2 * np.linalg.norm(best)
    assert np.all(np.diff(np.abs(found.values)) <= 0)


def test_every_backend_and_precision(backend, dtype):
    Q = haar(N, 0)
    if np.issubdtype(dtype, np.complexfloating):
        rng = np.random.default_rng(0)
        Q = np.linalg.qr(rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N)))[0]
    A = (Q * SPECTRA["exponential"]) @ Q.conj().T
    for M, method in (((A + A.conj().T) / 2, "Nystrom"), (A[:, :70], "SVD")):
        found = mf.low_rank(backend.asarray(M, dtype), 40, seed=0)
        assert method in found.method
        assert found.dtype == backend.asarray(M, dtype).dtype
        error = np.linalg.norm(M - to_host(found.to_dense()))
        assert error <= 1.5 * found.error_frobenius
        assert error <= 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_vectors_give_the_approximation_of_whole_ones(kind):
    A = matrix(kind, SPECTRA["exponential"])
    rows, columns = ([s - 40, 40] for s in A.shape)
    X = np.random.default_rng(0).standard_normal((A.shape[1], 2))

    def run(operator):
        found = mf.low_rank(operator, 10, seed=0)
        local = operator.domain.rows
        return found, found @ X[local.start : local.stop]

    whole, product = run(mf.aslinearoperator(A))
    square = A.shape[0] == A.shape[1]
    shards = run_sharded(rows, MAKERS["numpy"](), A, run, None if square else columns)
    assert_close(np.concatenate([y for _, y in shards]), product, scale=10)
    for found, _ in shards:
        assert_close(found.values, whole.values)
        assert found.left_rows[2] == A.shape[0]


def test_a_matrix_of_low_rank_is_recovered():
    for kind in KINDS:
        A = matrix(kind, np.r_[np.geomspace(1, 0.1, 12), np.zeros(N - 12)])
        found = mf.low_rank(A, rtol=1e-6, seed=0)
        assert found.rank == 12
        np.testing.assert_allclose(found.to_dense(), A, atol=1e-11)
        assert found.num_matvecs <= 32
    zero = mf.low_rank(np.zeros((5, 5)), 2, seed=0)
    assert zero.rank == 0
    assert not (zero @ np.ones(5)).any()
    assert mf.low_rank(np.eye(1), 1, seed=0).values == pytest.approx(1.0)


def test_the_whole_space_is_exact():
    for kind in KINDS:
        A = matrix(kind, SPECTRA["flat"])
        found = mf.low_rank(A, rtol=1e-3, seed=0)
        assert found.converged
        np.testing.assert_allclose(found.to_dense(), A, atol=1e-8)


def test_systems_and_determinants_with_a_shift():
    A = matrix("positive", SPECTRA["exponential"])
    found = mf.low_rank(A, 30, seed=0)
    dense = found.to_dense() + 1e-3 * np.eye(N)
    B = np.random.default_rng(0).standard_normal((N, 3))
    np.testing.assert_allclose(found.solve(B, 1e-3), np.linalg.solve(dense, B), atol=1e-9)
    assert found.solve(B[:, 0], 1e-3).shape == (N,)
    assert found.logdet(1e-3) == pytest.approx(np.linalg.slogdet(dense)[1], abs=1e-9)
    np.testing.assert_array_equal(found.eigenvalues, found.values)
    with pytest.raises(ValueError, match="singular for shift=0"):
        found.solve(B, 0.0)
    with pytest.raises(mf.OperatorError, match="only for a Hermitian"):
        mf.low_rank(matrix("tall", SPECTRA["step"]), 5, seed=0).logdet(1.0)
    with pytest.raises(ValueError, match="positive eigenvalues"):
        mf.low_rank(-A, 5, seed=0).preconditioner(1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_approximation_is_saved_and_works_after_loading(kind, tmp_path):
    A = matrix(kind, SPECTRA["exponential"])
    found = mf.low_rank(A, 9, seed=0)
    read = mf.load(found.save(tmp_path / "approximation"))
    x = np.linspace(0, 1, A.shape[1])
    np.testing.assert_array_equal(read @ x, found @ x)
    assert str(read) == str(found)
    assert mf.trace(read @ read.H, num_probes=3, seed=0).value > 0


def test_shards_are_saved_and_joined(tmp_path):
    A = matrix("positive", SPECTRA["exponential"])
    whole = mf.low_rank(A, 7, seed=0)
    run_sharded(
        (70, 50),
        MAKERS["numpy"](),
        A,
        lambda operator: mf.low_rank(operator, 7, seed=0).save(tmp_path / "shards"),
    )
    read = mf.load(tmp_path / "shards")
    assert_close(np.abs(read.left), np.abs(whole.left), scale=100)
    assert_close(read @ np.ones(N), whole @ np.ones(N), scale=100)
    one = mf.load(next(tmp_path.glob("shards.rows-0-70.npz")))
    with pytest.raises(mf.OperatorError, match="holds rows 0 to 70 of 120"):
        one @ np.ones(70)
    copy = pickle.loads(pickle.dumps(whole))
    assert_close(copy @ np.ones(N), whole @ np.ones(N))


@pytest.mark.parametrize("c", [1e-300, 1e-160, 1e160, 1e300])
def test_the_magnitude_of_the_operator_does_not_matter(c):
    A = matrix("indefinite", SPECTRA["exponential"])
    expected, found = (mf.low_rank(f * A, 9, seed=0) for f in (1.0, c))
    np.testing.assert_allclose(found.values / c, expected.values, rtol=1e-10)
    assert found.error_frobenius / c == pytest.approx(expected.error_frobenius)
    assert found.num_matvecs == expected.num_matvecs
    assert mf.low_rank(c * A, 9).num_matvecs == expected.num_matvecs
    x = np.ones(N)
    np.testing.assert_allclose(found @ x / c, expected @ x, rtol=1e-9, atol=1e-12)


def test_a_budget_that_ends_first_is_named():
    A = matrix("positive", SPECTRA["algebraic"])
    with pytest.warns(mf.ConvergenceWarning, match="raise max_matvecs"):
        found = mf.low_rank(A, rtol=1e-3, max_matvecs=30, seed=0)
    assert found.num_matvecs <= 30
    assert not found.converged


def test_wrong_claims_and_arguments_are_named():
    indefinite = matrix("indefinite", SPECTRA["step"])
    general = indefinite + np.triu(np.ones((N, N)), 1)
    with pytest.raises(mf.OperatorError, match=r"positive=True needs.*positive=False"):
        mf.low_rank(indefinite, 20, positive=True, seed=0)
    with pytest.raises(mf.NotHermitianError, match="positive=False"):
        mf.low_rank(general, 20, positive=True, seed=0)
    with pytest.raises(mf.OperatorError, match="positive=True needs a square"):
        mf.low_rank(general[:9], 5, positive=True, seed=0)
    assert mf.low_rank(general, 20, seed=0).method == "randomized SVD"
    without_adjoint = mf.aslinearoperator(lambda x: general @ x, shape=(N, N), like=np.zeros(1))
    with pytest.raises(mf.NoAdjointError):
        mf.low_rank(without_adjoint, 20, seed=0)
    for options, message in (
        ({"rank": 0}, "rank must be"),
        ({"rank": N + 1}, "rank must be in"),
        ({"rtol": 2.0}, "rtol must be between"),
        ({"rank": 3, "rtol": 0.1}, "either rank or rtol"),
        ({"rank": 30, "max_matvecs": 5}, "too small for a sketch"),
    ):
        with pytest.raises(ValueError, match=message):
            mf.low_rank(indefinite, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_same_approximation(kind, tmp_path):
    class Killed(BaseException):
        pass

    A = matrix(kind, SPECTRA["algebraic"])
    left = [4]

    def mortal(X):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return A @ X

    operator = mf.FunctionOperator(
        lambda x: mortal(x[:, None])[:, 0],
        space=mf.space_like(A, A.shape[0]),
        domain=mf.space_like(A, A.shape[1]),
        matmat=mortal,
        rmatmat=lambda X: A.T @ X,
    )
    options = {"rank": 30, "block_size": 8, "seed": 0, "checkpoint": tmp_path / "run"}
    with pytest.raises(Killed):
        mf.low_rank(operator, **options)
    left[0] = 10**6
    resumed = mf.low_rank(operator, **options)
    unbroken = mf.low_rank(A, 30, block_size=8, seed=0)
    assert_close(resumed.values, unbroken.values)
    assert resumed.num_matvecs == unbroken.num_matvecs + 2  # the checksums of the operator
