"""Eigenvalue counts: intervals include the quadrature error of the discontinuous indicator."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import (
    complex_hermitian,
    laplacian_2d,
    laplacian_2d_spectrum,
    wishart,
    with_spectrum,
)

import matfree as mf

GRID, GRID_SPECTRUM = laplacian_2d(16), laplacian_2d_spectrum(16)
WISHART = wishart(200, 400)
PROBLEMS = {
    "bulk of a Laplacian": (GRID, GRID_SPECTRUM, 1.0, 3.7),
    "a sixteenfold eigenvalue at the end": (GRID, GRID_SPECTRUM, -np.inf, 4.0),
    "edge of a Laplacian": (GRID, GRID_SPECTRUM, 7.5, np.inf),
    "bulk of a Wishart matrix": (WISHART, np.linalg.eigvalsh(WISHART), 0.5, 1.5),
    "edge of a Wishart matrix": (WISHART, np.linalg.eigvalsh(WISHART), 2.5, np.inf),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("options", [{}, {"num_steps": 12, "num_probes": 2, "kind": "gaussian"}])
def test_intervals_cover_the_true_count(name, options):
    A, spectrum, low, high = PROBLEMS[name]
    true = np.sum((low - 1e-12 <= spectrum) & (spectrum <= high + 1e-12))
    inside = 0
    for seed in range(50):
        count = mf.eigenvalue_count(
            A, low, high, seed=seed, **{"num_steps": 30, "num_probes": 4, **options}
        )
        least, most = count.interval()
        inside += least <= true <= most
        assert 0 <= least <= most <= A.shape[0]
    assert inside >= 45


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [(2, 5, [1, 2]), (1.5, 7, [1, 2]), (10, 10, [3]), (-np.inf, 4, [0, 1]), (3, 4, [])],
)
def test_ends_in_gaps_leave_only_the_sampling_error(low, high, levels):
    A = with_spectrum(np.repeat([1.0, 2, 5, 10], 20), seed=1)
    _, U = np.linalg.eigh(A)
    count = mf.eigenvalue_count(A, low, high, num_steps=30, num_probes=3, seed=0)
    W = mf.space_like(A, 80).probes(3, seed=0)
    expected = sum(np.sum((U[:, 20 * c : 20 * c + 20].T @ W) ** 2, axis=0) for c in levels)
    assert_close(count.samples, expected + np.zeros(3), scale=80.0)
    assert count.interval()[0] <= 20 * len(levels) <= count.interval()[1]
    # Only the shift of the centre of a proportion, of z^2 / 2 trials; or half of the number of
    # eigenvalues that three vectors of random signs may miss.
    assert count.bias < 1.3


def test_counts_of_all_and_of_no_eigenvalues_are_exact():
    everything = mf.eigenvalue_count(GRID, -np.inf, np.inf, num_probes=2, seed=0)
    assert everything.interval() == pytest.approx((256, 256), rel=1e-12)
    assert mf.eigenvalue_count(-GRID.toarray(), -1, 1, max_matvecs=256).value == np.sum(
        GRID_SPECTRUM <= 1
    )
    none = mf.eigenvalue_count(GRID, 9.0, 10.0, num_probes=2, seed=0, kind="sphere")
    assert none.value == 0
    assert none.half_width() < 1e-9


@pytest.mark.parametrize("num_probes", [1, 2, 4])
def test_an_eigenvector_that_random_signs_miss_is_within_the_interval(num_probes):
    A = np.eye(40)
    A[0, 1] = A[1, 0] = 4.0  # the eigenvector (e_1 + e_2) / sqrt(2) of the eigenvalue 5
    options = {"num_steps": 5, "num_probes": num_probes}
    values = []
    for seed in range(40):
        count = mf.eigenvalue_count(A, 4, 6, seed=seed, **options)
        low, high = count.interval()
        values.append(count.value)
        assert low <= 1 <= high
        density = mf.spectral_density(A, seed=seed, **options)
        low, high = density.mass_between(4, 6).interval()
        assert low <= 1 / 40 <= high
        low, high = density.cdf_band(2.0)
        assert low <= 39 / 40 <= high
        low, high = density.density_band([5.0], width=0.01)
        sigma = 0.01 * 8  # relative to the range from -3 to 5 where it was found
        peak = 1 / (40 * np.sqrt(2 * np.pi) * sigma)
        assert high[0] >= peak or count.value > 0
        if count.value == 0:  # no sign of the eigenvalue itself, but of how little was seen
            assert count.half_width() == pytest.approx(-2 * np.log(0.025) / num_probes, rel=1e-9)
    assert 0 in values
    assert max(values) > 1.5


def test_a_budget_of_n_counts_exactly_including_the_ends():
    low_rank = with_spectrum(np.r_[np.zeros(40), np.full(10, 1.0), np.full(10, 3.0)])
    for low, high, true in ((0, 1, 50), (1, 3, 20), (1e-9, np.inf, 20), (-np.inf, 0, 40)):
        exact = mf.eigenvalue_count(low_rank, low, high, max_matvecs=60)
        assert (exact.method, exact.value, exact.half_width()) == ("exact", true, 0)


def test_a_tolerance_is_met_or_the_warning_advises_more_steps():
    count = mf.eigenvalue_count(WISHART, 0.5, 1.5, atol=60, max_matvecs=400, num_steps=8, seed=0)
    assert count.converged
    assert count.half_width() <= 60
    with pytest.warns(mf.ConvergenceWarning, match="raise num_steps"):
        mf.eigenvalue_count(WISHART, 0.5, 1.5, atol=2, max_matvecs=190, num_steps=8, seed=0)


def test_it_agrees_with_the_density_of_the_same_probes():
    density = mf.spectral_density(WISHART, num_steps=20, num_probes=3, seed=5)
    count = mf.eigenvalue_count(WISHART, 0.5, 1.5, num_steps=20, num_probes=3, seed=5)
    assert count.value == pytest.approx(density.count(0.5, 1.5).value)
    assert count.interval() == pytest.approx(density.count(0.5, 1.5).interval())


def test_it_runs_on_every_backend(backend, dtype):
    A = complex_hermitian(60) if np.issubdtype(dtype, np.complexfloating) else WISHART
    A = A.astype(dtype)
    for options in ({"num_probes": 3}, {"max_matvecs": len(A)}):
        expected, found = (
            mf.eigenvalue_count(B, 0.5, 1.4, num_steps=8, seed=1, **options)
            for B in (A, backend.asarray(A))
        )
        assert found.value == pytest.approx(
            expected.value, abs=1e-3 if dtype == np.float32 else 1e-9
        )


def test_bad_arguments_are_refused():
    for low, high in ((1.0, 0.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="low must be at most high"):
            mf.eigenvalue_count(GRID, low, high)
    with pytest.raises(ValueError, match="num_steps"):
        mf.eigenvalue_count(GRID, 0, 1, num_steps=0)
    with pytest.raises(mf.NotHermitianError):
        mf.eigenvalue_count(np.eye(50, k=1), 0, 1, seed=0)


def test_a_density_counts_an_eigenvalue_at_an_end_like_the_estimator():
    A = np.diag(np.repeat([1.0, 2.0, 5.0, 10.0], [40, 30, 20, 10]))  # no variance for random signs
    density = mf.spectral_density(A, num_probes=2, seed=0)
    for low, high, true in [(2, 5, 50), (-np.inf, 2, 70), (2, 2, 30), (5, np.inf, 30)]:
        read = density.count(low, high)
        assert read.value == pytest.approx(true)
        least, most = read.interval()
        assert least <= true <= most
        assert mf.eigenvalue_count(A, low, high, num_probes=2, seed=0).value == pytest.approx(true)
    assert density.mass_below(2.0).value == pytest.approx(0.4)


def test_intervals_cover_a_single_eigenvalue_among_many():
    A, inside = with_spectrum(np.r_[np.linspace(0, 1, 149), 9.0]), 0
    for seed in range(
        100
    ):  # samples have about a chi-square distribution with one degree of freedom
        low, high = mf.eigenvalue_count(A, 5, 10, num_steps=12, seed=seed).interval()
        inside += low <= 1 <= high
    assert inside >= 90


def test_the_exact_answer_includes_an_eigenvalue_at_the_end():
    A = complex_hermitian(40)
    exact = mf.eigenvalue_count(A, np.linalg.eigvalsh(A)[10], np.inf, max_matvecs=40)
    assert exact.method == "exact"
    assert exact.interval() == (30, 30)
