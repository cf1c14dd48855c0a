"""Schatten norms and diagonals of square operators that are not Hermitian, with an adjoint."""

import numpy as np
import pytest

import matfree as mf

N = 80
RNG = np.random.default_rng(0)
G = RNG.standard_normal((N, N))
C = G + 1j * RNG.standard_normal((N, N))
LOW = G[:, :6] @ RNG.standard_normal((6, N)) + 0.01 * RNG.standard_normal((N, N))


@pytest.mark.parametrize("matrix", [G, C], ids=["real", "complex"])
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_schatten_norms_are_those_of_the_singular_values(matrix, p):
    exact = np.sum(np.linalg.svd(matrix, compute_uv=False) ** p) ** (1 / p)
    found = mf.schatten_norm(matrix, p, num_probes=20, seed=0)
    low, high = found.interval()
    assert low <= exact <= high
    assert found.half_width() < 0.2 * exact


def test_a_budget_counts_what_was_spent_before_the_asymmetry_was_found():
    found = mf.schatten_norm(G, 1.0, max_matvecs=70, num_steps=10, seed=0)
    assert found.num_matvecs <= 70


def test_without_an_adjoint_it_is_refused():
    operator = mf.aslinearoperator(lambda x: G @ x, shape=G.shape, like=np.zeros(1))
    with pytest.raises(mf.NotHermitianError, match="not Hermitian"):
        mf.schatten_norm(operator, 1.0, seed=0)
    with pytest.raises(mf.NotHermitianError, match="not Hermitian"):
        mf.diagonal(operator, method="xdiag", num_probes=12, seed=0)


def test_xdiag_estimates_the_diagonal():
    found = mf.diagonal(LOW, method="xdiag", num_probes=20, seed=0)
    error = np.abs(found.value - np.diag(LOW))
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(np.diag(LOW))
    assert np.mean(error <= found.half_width()) > 0.85
    assert found.num_matvecs == 40


def test_xdiag_is_unbiased():
    values = [mf.diagonal(G, method="xdiag", num_probes=10, seed=s).value for s in range(300)]
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0) / 300**0.5
    assert np.all(np.abs(mean - np.diag(G)) <= 5 * spread)
