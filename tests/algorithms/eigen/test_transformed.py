"""Eigenvalues near a point, of smallest magnitude and of generalized problems, against LAPACK."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.backends import MAKERS, assert_close
from support.matrices import with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

N = 60
SPECTRUM = np.linspace(-3.0, 10.0, N)
A = with_spectrum(SPECTRUM, seed=2)
M = with_spectrum(np.linspace(0.5, 3.0, N), seed=3)
GENERALIZED = scipy.linalg.eigh(A, M, eigvals_only=True)


def wanted(values, k, which, sigma):
    """The eigenvalues that SciPy's documentation describes, the best first."""
    if sigma is None and which == "SM":
        which, sigma = "LM", 0.0
    theta = values if sigma is None else 1 / (values - sigma)
    ranks = {
        "LM": np.argsort(-np.abs(theta)),
        "SM": np.argsort(np.abs(theta)),
        "LA": np.argsort(-theta),
        "SA": np.argsort(theta),
    }
    return values[ranks[which][:k]]


def hermitian(n, seed=0):
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    return (G + G.conj().T) / 2


@pytest.mark.parametrize("weight", [None, M], ids=["standard", "generalized"])
@pytest.mark.parametrize("sigma", [None, 1.7, -4.0], ids=str)
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "SM"])
def test_eigenvalues_are_those_of_lapack_in_scipys_meaning(which, sigma, weight):
    found = mf.eigsh(A, 3, which=which, sigma=sigma, M=weight, seed=0)
    exact = SPECTRUM if weight is None else GENERALIZED
    np.testing.assert_allclose(found.values, wanted(exact, 3, which, sigma), rtol=1e-8)
    assert found.verified
    assert found.converged.all()
    B, U = np.eye(N) if weight is None else weight, found.vectors
    assert_close(U.T @ B @ U, np.eye(3))
    residual = np.linalg.norm(A @ U - B @ U * found.values, axis=0)
    size = np.linalg.norm(A, 2) * np.linalg.norm(U, axis=0)
    assert np.all(residual <= found.residuals * size * (1 + 1e-6) + 1e-14 * size)
    assert np.all(residual <= 1e-6 * size)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128])
def test_data_types(dtype):
    matrix = (A if np.dtype(dtype).kind == "f" else hermitian(N)).astype(dtype)
    found = mf.eigsh(matrix, 2, sigma=1.7, rtol=1e-10 if dtype == np.complex128 else None, seed=0)
    exact = wanted(np.linalg.eigvalsh(matrix.astype(np.complex128)), 2, "LM", 1.7)
    assert_close(found.values, exact, dtype, scale=10)
    assert found.vectors.dtype == dtype


def test_a_given_inverse_is_used_and_its_products_are_counted():
    factor = sla.splu(sp.csc_array(A - 1.7 * M))
    count = [0]

    def solve(x):
        count[0] += 1
        return factor.solve(x)

    OPinv = sla.LinearOperator(A.shape, matvec=solve, dtype=float)
    found = mf.eigsh(A, 3, sigma=1.7, M=M, OPinv=OPinv, seed=0)
    np.testing.assert_allclose(found.values, wanted(GENERALIZED, 3, "LM", 1.7), rtol=1e-10)
    assert found.num_matvecs < 150
    assert count[0] <= found.num_matvecs
    Minv = np.linalg.inv(M)
    largest = mf.eigsh(A, 3, M=M, Minv=Minv, seed=0)
    np.testing.assert_allclose(largest.values, wanted(GENERALIZED, 3, "LM", None), rtol=1e-9)


def test_matvecs_of_inner_solves_are_counted():
    count = [0]

    def matmat(X):
        count[0] += X.shape[1]
        return A @ X

    operator = mf.FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0], matmat=matmat, space=mf.space_like(np.zeros(1), N)
    )
    found = mf.eigsh(operator, 2, sigma=1.7, seed=0)
    assert found.num_matvecs == count[0]


@pytest.mark.parametrize("sigma", [0.0, 1.0, 1.0 + 1e-12])
def test_a_point_that_is_an_eigenvalue_finds_it(sigma):
    D = np.diag(np.arange(-5.0, 30.0))
    found = mf.eigsh(D, 1, sigma=sigma, seed=0)
    assert found.values[0] == pytest.approx(round(sigma), abs=1e-9)
    assert found.converged.all()


def test_the_smallest_eigenvalues_of_a_singular_operator():
    """A graph Laplacian, whose eigenvalue 0 has a constant eigenvector."""
    n = 80
    ones = np.ones(n - 1)
    L = sp.diags_array([np.r_[1, 2 * ones[1:], 1], -ones, -ones], offsets=[0, 1, -1]).tocsr()
    found = mf.eigsh(L, 3, which="SM", seed=0)
    exact = 2 - 2 * np.cos(np.pi * np.arange(3) / n)
    np.testing.assert_allclose(found.values, exact, atol=1e-8)
    assert found.verified
    assert np.ptp(found.vectors[:, 0]) < 1e-5


@pytest.mark.parametrize("matrix", [np.zeros((5, 5)), np.eye(4), np.array([[3.0]])], ids=len)
def test_zero_identity_and_one_row(matrix):
    found = mf.eigsh(matrix, 1, which="SM", seed=0)
    assert found.values[0] == pytest.approx(matrix[0, 0])
    assert found.converged.all()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_operators_of_every_magnitude(scale):
    found = mf.eigsh(A * scale, 2, sigma=1.7 * scale, seed=0)
    np.testing.assert_allclose(found.values / scale, wanted(SPECTRUM, 2, "LM", 1.7), rtol=1e-8)


@pytest.mark.parametrize("name", ["torch", "strict"])
def test_other_libraries(name):
    backend = MAKERS[name]()
    found = mf.eigsh(backend.asarray(A), 2, sigma=1.7, M=backend.asarray(M), seed=0)
    np.testing.assert_allclose(found.values, wanted(GENERALIZED, 2, "LM", 1.7), rtol=1e-8)
    assert type(found.vectors) is type(backend.asarray(A))


def test_sharded_vectors():
    def run(operator):
        return mf.eigsh(operator, 2, sigma=1.7, seed=0)

    whole = run(mf.aslinearoperator(A))
    shards = run_sharded((40, 20), MAKERS["numpy"](), A, run)
    for shard in shards:
        assert_close(shard.values, whole.values)
    joined = np.concatenate([to_host(shard.vectors) for shard in shards])
    assert_close(np.abs(np.sum(joined * whole.vectors, axis=0)), np.ones(2), scale=1e4)


def test_a_run_continues_from_its_checkpoint(tmp_path):
    path = tmp_path / "run.npz"
    stop = {"callback": lambda step: step.num_matvecs > 500, "checkpoint": path}
    with pytest.warns(mf.ConvergenceWarning, match="stopped by the callback"):
        mf.eigsh(A, 3, sigma=1.7, seed=0, **stop)
    found = mf.eigsh(A, 3, sigma=1.7, checkpoint=path)
    np.testing.assert_allclose(found.values, wanted(SPECTRUM, 3, "LM", 1.7), rtol=1e-8)


def test_a_callback_is_given_eigenvalues_of_the_problem():
    seen = []
    mf.eigsh(A, 1, sigma=1.7, seed=0, callback=lambda step: seen.append(step.values[0]))
    assert seen[-1] == pytest.approx(wanted(SPECTRUM, 1, "LM", 1.7)[0], rel=1e-4)


def test_a_budget_that_ends_early_is_said():
    with pytest.warns(mf.ConvergenceWarning, match="raise max_matvecs"):
        found = mf.eigsh(A, 3, sigma=1.7, max_matvecs=5, seed=0)
    assert not found.verified
    assert not found.converged.all()


WRONG = {
    "OPinv is not the inverse": {"sigma": 1.7, "OPinv": np.eye(N)},
    "Minv is not the inverse": {"M": M, "Minv": M},
    "M must have the shape of A": {"M": np.eye(3)},
    "OPinv must have the shape of A": {"sigma": 1.7, "OPinv": np.eye(3)},
    "M must be positive definite": {"M": -M},
    "sigma must be finite": {"sigma": np.nan},
    "sigma must be a real number": {"sigma": 1j},
    "k must be in": {"sigma": 1.7, "k": 0},
    "which must be": {"sigma": 1.7, "which": "XX"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message):
    with pytest.raises(ValueError, match=message):
        mf.eigsh(A, seed=0, **WRONG[message])
