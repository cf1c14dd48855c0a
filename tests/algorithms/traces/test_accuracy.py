"""Median errors over seeds are those of independent implementations.

A median over 50 seeds has an error of 15 %, and so has its reference, so that a ratio of 1.5 is
significant. The seeds are fixed, which makes the tests deterministic. The benchmarks contain the
full comparison.
"""

import numpy as np
import pytest
import scipy.sparse
from support.matrices import laplacian_2d, with_spectrum

import matfree as mf

POLY = np.arange(1.0, 1001) ** -2
SEEDS = 50


@pytest.fixture(scope="module")
def poly():
    return with_spectrum(POLY, seed=42)


def median_error(estimator, A, exact, num_seeds=SEEDS, **options):
    """The median relative error, and the fraction of entries within their intervals."""
    errors, covered = [], []
    for seed in range(1000, 1000 + num_seeds):
        estimate = estimator(A, seed=seed, **options)
        assert estimate.num_matvecs == options["max_matvecs"]
        low, high = estimate.interval()
        errors.append(np.linalg.norm(estimate.value - exact) / np.linalg.norm(exact))
        covered.append(np.mean((low <= exact) & (exact <= high)))
    return np.median(errors), np.mean(covered)


@pytest.mark.parametrize(
    ("method", "reference"),
    [("hutchinson", 8.4e-2), ("hutch++", 1.2e-3), ("xtrace", 7.6e-4), ("xnystrace", 5.0e-4)],
)
def test_traces_of_a_decaying_spectrum(poly, method, reference):
    error, coverage = median_error(mf.trace, poly, POLY.sum(), method=method, max_matvecs=60)
    assert error <= 1.5 * reference
    assert coverage >= 0.9


@pytest.mark.parametrize(
    ("method", "reference"),
    [("hutchinson", 1.5e-3), ("hutch++", 2.6e-3), ("xtrace", 1.9e-3), ("xnystrace", 1.5e-3)],
)
def test_traces_of_a_flat_spectrum(method, reference):
    A = laplacian_2d(40)
    error, coverage = median_error(mf.trace, A, 6400.0, method=method, max_matvecs=60)
    assert error <= 1.5 * reference
    assert coverage >= 0.9


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("hutchinson", 1.9),
        ("diag++", 3.0e-2),
        ("xdiag", 2.1e-2),
        ("xnysdiag", 9.8e-3),
        ("deflated", 4.6e-2),
    ],
)
def test_diagonals_of_a_decaying_spectrum(poly, method, reference):
    exact = np.diag(poly)  # 2-norms over 1000 entries hardly differ from seed to seed
    error, coverage = median_error(
        mf.diagonal, poly, exact, num_seeds=15, method=method, max_matvecs=60
    )
    assert error <= 1.1 * reference
    assert coverage >= 0.9


@pytest.mark.parametrize(("block_size", "num_vectors", "reference"), [(1, 22, 22), (4, 48, 36)])
def test_matvecs_for_ten_eigenpairs(block_size, num_vectors, reference):
    A = scipy.sparse.diags_array(POLY).tocsr()
    num_matvecs = []
    for seed in range(SEEDS):
        options = {"block_size": block_size, "num_vectors": num_vectors, "verify": False}
        result = mf.eigsh(A, 10, seed=seed, **options)
        assert np.abs(result.values - POLY[:10]).max() < 1e-6
        num_matvecs.append(result.num_matvecs)
    assert np.median(num_matvecs) <= 1.25 * reference
