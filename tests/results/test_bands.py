"""The error bounds of spectral distributions hold: resolution always, sampling at 95 %."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from support.matrices import haar, nn_spectrum, wishart, with_spectrum

import matfree as mf
from matfree.results import Quadrature, bands
from matfree.results.error_model import ErrorModel

SIDES = ("left", "right")

FREE = {"size": 10**12, "known": np.zeros(0), "num_probes": 1, "kind": "sphere"}
"""So many eigenvalues that the sampling error is negligible."""


def error_model(**changes):
    return ErrorModel(**{**FREE, "gauss": True, "orthogonal": True, "rounding": 1e-14, **changes})


def exact_cdf(spectrum, x, side="right"):
    return np.searchsorted(np.sort(spectrum), x, side=side) / len(spectrum)


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("steps", [5, 12, 30, 50])
def test_the_bracket_contains_the_spectral_measure_of_the_probe(steps, reorthogonalize):
    A = with_spectrum(np.r_[np.linspace(0, 1, 80) ** 3, 2.0, 2.0, 2.0, 3.0, 7.0])
    start = mf.space_like(A, len(A)).probes(3, seed=0)
    T = mf.lanczos(A, start, steps, reorthogonalize=reorthogonalize)
    values, U = np.linalg.eigh(A)
    gaps = np.diff(values)
    x = np.sort(np.r_[np.linspace(-0.5, 7.5, 400), (values[:-1] + gaps / 2)[gaps > 1e-9]])
    for p in range(3):
        seen = (U.T @ start[:, p]) ** 2 / len(A)
        truth = np.array([seen[values <= point].sum() for point in x])
        clean = reorthogonalize == "full"
        low, high = bands.bracket(x, T.ritz(p), "right", error_model(orthogonal=clean))
        assert (low <= truth + 1e-9).all()
        assert (truth <= high + 1e-9).all()


def test_the_christoffel_function_agrees_with_the_orthonormal_polynomials():
    T = mf.lanczos(with_spectrum(np.linspace(0, 1, 50)), np.ones(50), 6)
    alpha, beta = T.alphas[0], T.betas[0]
    x = np.linspace(-0.3, 1.4, 37)
    polynomials = [np.ones_like(x), (x - alpha[0]) / beta[0]]
    for j in range(1, 5):
        now, before = polynomials[-1], polynomials[-2]
        polynomials.append(((x - alpha[j]) * now - beta[j - 1] * before) / beta[j])
    expected = 1 / np.sum(np.square(polynomials), axis=0)
    nodes, weights = T.quadrature()
    np.testing.assert_allclose(bands.christoffel(x, nodes, weights), expected, rtol=1e-9)
    np.testing.assert_allclose(bands.christoffel(nodes, nodes, weights), weights, rtol=1e-9)


@pytest.mark.parametrize("point", [-0.4, 0.1, 0.33, 0.5, 0.92, 1.3])
def test_no_distribution_with_the_same_moments_leaves_the_bracket(point):
    m = 4
    nodes, weights = np.polynomial.legendre.leggauss(m)
    rule = Quadrature((nodes + 1) / 2, weights / 2, np.ones(m))
    grid = np.unique(np.r_[np.linspace(-1, 2, 601), rule.nodes])
    powers = np.polynomial.chebyshev.chebvander((2 * grid - 1) / 3, 2 * m - 1).T
    moments = powers[:, np.searchsorted(grid, rule.nodes)] @ rule.weights
    below = (grid <= point).astype(float)
    found = [
        scipy.optimize.linprog(sign * below, A_eq=powers, b_eq=moments) for sign in (1.0, -1.0)
    ]
    assert all(extreme.success for extreme in found)
    low, high = bands.bracket(np.asarray(point), rule, "right", error_model())
    assert low <= found[0].fun + 1e-7
    assert -found[1].fun <= high + 1e-7


@pytest.mark.parametrize("steps", [16, 64])
@pytest.mark.parametrize("num_probes", [1, 4])
def test_bands_cover_continuous_spectra_and_spectra_with_outliers(steps, num_probes):
    A = wishart(300, 600)
    peaked = scipy.sparse.diags_array(nn_spectrum(1000)).tocsr()
    for matrix, spectrum in ((A, np.linalg.eigvalsh(A)), (peaked, nn_spectrum(1000))):
        x = np.quantile(spectrum, np.linspace(0.005, 0.995, 80)) + 1e-9
        truth, covered = exact_cdf(spectrum, x), []
        for seed in range(8):
            density = mf.spectral_density(
                matrix, num_steps=steps, num_probes=num_probes, seed=seed, kind="sphere"
            )
            low, high = density.cdf_band(x)
            assert (low <= density.cdf(x) + 1e-9).all()
            assert (density.cdf(x) <= high + 1e-9).all()
            covered.append(np.mean((low <= truth) & (truth <= high)))
        assert np.mean(covered) >= 0.95


def test_the_kernel_polynomials_band_covers_too():
    A = wishart(300, 600)
    spectrum = np.linalg.eigvalsh(A)
    x = np.linspace(spectrum[0], spectrum[-1], 100)
    for seed in range(5):
        density = mf.spectral_density(A, method="kpm", num_steps=24, num_probes=2, seed=seed)
        low, high = density.cdf_band(x)
        truth = exact_cdf(spectrum, x)
        assert np.mean((low <= truth) & (truth <= high)) >= 0.95


@pytest.mark.parametrize("kind", ["sphere", "rademacher"])
@pytest.mark.parametrize("num_probes", [1, 5])
def test_after_lanczos_breakdown_only_the_sampling_error_remains_and_the_level_holds(
    kind, num_probes
):
    levels, counts = np.array([1.0, 2, 5, 10]), np.array([8, 12, 25, 35])
    spectrum = np.repeat(levels, counts)
    Q = haar(80, 1)
    A = mf.aslinearoperator((Q * spectrum) @ Q.T)
    x, runs = np.array([0.0, 1.5, 3.0, 7.0, 11.0]), 200
    truth, covered, covered_mass = exact_cdf(spectrum, x), np.zeros(5), 0
    for seed in range(runs):
        density = mf.spectral_density(A, num_probes=num_probes, num_steps=8, seed=seed, kind=kind)
        low, high = density.cdf_band(x)
        covered += (low <= truth + 1e-12) & (truth <= high + 1e-12)
        bottom, top = density.count(1.5, 3.0).interval()
        covered_mass += bottom <= 12 <= top
        assert (low[0], high[-1]) == (0.0, 1.0)
        # A vector of signs may miss an eigenvector; z = 1.96 is the 97.5 % quantile.
        missed = 0.0 if kind == "sphere" else -np.log(0.025) * 2 / (80 * num_probes)
        assert (high[0], low[-1]) == pytest.approx((missed, 1 - missed), abs=1e-12)
    five_sigma = 5 * np.sqrt(0.95 * 0.05 / runs)
    assert (covered / runs >= 0.95 - five_sigma).all()
    assert (covered[1:-1] / runs <= 0.95 + five_sigma).all()
    assert covered_mass / runs >= 0.95 - five_sigma


def test_the_variance_of_random_signs_is_at_most_the_one_that_the_band_assumes():
    n, Q = 6, haar(6, 3)
    P = Q[:, :2] @ Q[:, :2].T
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    masses = np.einsum("si,ij,sj->s", signs, P, signs) / n
    p = 2 / n
    assert masses.mean() == pytest.approx(p)
    assert masses.var() == pytest.approx(2 * (2 - np.sum(np.diag(P) ** 2)) / n**2)
    assert masses.var() <= 2 * p * (1 - p) / n
    wide = error_model(size=n, num_probes=10**9, kind="rademacher")
    _, spread = wide.proportion(np.asarray(p), 0, 2.0)
    assert spread**2 * 10**9 == pytest.approx(2 * p * (1 - p) / n, rel=1e-6)


def test_known_eigenvalues_have_no_sampling_error():
    A = with_spectrum(np.r_[np.linspace(0, 1, 95), 3.0, 4.0, 5.0, 6.0, 7.0])
    density = mf.spectral_density(
        A, eigenpairs=5, num_probes=1, num_steps=30, seed=0, kind="sphere"
    )
    assert density.count(2.0, 8.0).value == pytest.approx(5, abs=1e-9)
    assert density.count(2.0, 8.0).half_width() < 1e-6
    assert density.count(4.5, 5.5).half_width() < 1e-6
    low, high = density.cdf_band([2.0, 4.5])
    np.testing.assert_allclose(low, [0.95, 0.97], atol=1e-6)
    np.testing.assert_allclose(high, [0.95, 0.97], atol=1e-6)


def test_one_probe_has_an_interval_within_the_limits_of_the_value():
    density = mf.spectral_density(np.diag(nn_spectrum(500)), num_probes=1, num_steps=12, seed=0)
    for estimate, most in ((density.mass_below(0.0), 1.0), (density.count(100.0, 200.0), 500.0)):
        low, high = estimate.interval()
        assert 0 <= low <= estimate.value <= high <= most
        assert np.isfinite(estimate.half_width())
        assert estimate.interval(0.999)[1] >= high
    assert density.mass_between(-1.0, 0.5).value + density.mass_below(-1.0).value == pytest.approx(
        density.cdf(0.5)
    )
    with pytest.raises(ValueError, match="low must be at most high"):
        density.count(2.0, 1.0)
    with pytest.raises(ValueError, match="level must be in"):
        density.cdf_band(0.0, level=95)
    with pytest.raises(ValueError, match="cannot be merged"):
        density.count(1.0, 2.0).merge(density.count(1.0, 2.0))


def test_the_interval_of_the_negative_fraction_contains_it_for_a_peak_at_zero():
    spectrum = nn_spectrum(1000)
    A = scipy.sparse.diags_array(spectrum).tocsr()
    for seed in range(10):
        density = mf.spectral_density(A, num_probes=4, num_steps=32, seed=seed, kind="sphere")
        low, high = density.mass_below(-density.noise_floor).interval()
        assert low <= np.mean(spectrum < 0) <= high
        assert high < 1


def hypercube(dimension):
    """The adjacency matrix of a hypercube: eigenvalues dimension - 2 k, C(dimension, k) times."""
    corners = np.arange(2**dimension)
    differing = np.bitwise_count(corners[:, None] ^ corners)
    return (differing == 1).astype(float)


@pytest.mark.parametrize("x", [-4.0, 0.0, 2.0, 6.0])
@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_distribution_functions_at_an_eigenvalue_include_it(x, reorthogonalize):
    A = hypercube(6)  # an integer matrix, so that the eigenvalues are known exactly
    below, up_to = (exact_cdf(6 - 2.0 * np.bitwise_count(np.arange(64)), x, s) for s in SIDES)
    inside = 0
    for seed in range(40):
        density = mf.spectral_density(A, num_probes=8, reorthogonalize=reorthogonalize, seed=seed)
        low, high = density.cdf_band(x)
        inside += low - 1e-9 <= up_to <= high + 1e-9
        cdf = density.cdf(x)
        assert low - 1e-9 <= cdf <= high + 1e-9
        assert cdf == pytest.approx(density.mass_between(-np.inf, x).value, abs=1e-12)
        assert density.cdf(x, reading="spread") == pytest.approx(cdf, abs=1e-9)
        assert density.cdf(x - 1e-6) == pytest.approx(density.mass_below(x).value, abs=1e-12)
        assert density.cdf(x - 1e-6) < cdf
    assert below < up_to
    assert inside >= 35


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_quadrature_with_one_node_gives_trivial_bounds(num_steps):
    density = mf.spectral_density(
        np.diag(np.linspace(0, 1, 50)), num_steps=num_steps, num_probes=2, kind="sphere", seed=0
    )
    assert density.mass_below(0.5).interval() == (0.0, 1.0)
    assert density.cdf_band([-np.inf, np.inf]) == pytest.approx(np.array([[0, 1], [0, 1]]))
    assert density.mass_between(-np.inf, np.inf).interval() == pytest.approx((1, 1))


@pytest.mark.parametrize("num_probes", [1, 8])
@pytest.mark.parametrize("spectrum", [np.linspace(1.0, 3.0, 300), nn_spectrum(300), "wishart"])
def test_the_band_of_a_density_covers_the_exact_eigenvalues_with_the_same_smoothing(
    spectrum, num_probes
):
    A = wishart(300, 600) if isinstance(spectrum, str) else with_spectrum(spectrum)
    values = np.linalg.eigvalsh(A)
    held = []
    for seed in range(20):
        density = mf.spectral_density(A, num_steps=60, num_probes=num_probes, seed=seed)
        grid = density.grid()
        sigma = (density.support[0] - grid[0]) / 5
        heights = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2)
        truth = heights.mean(axis=1) / (sigma * np.sqrt(2 * np.pi))
        seen = heights.max(axis=1) > 0.1  # points with an eigenvalue within two widths
        low, high = density.density_band(grid)
        held.append(((low <= truth) & (truth <= high))[seen].mean())
    # About 20 points of a grid are independent, and there are 20 runs: the standard error is
    # 0.011, and three are allowed. Student's interval over these probes would have a coverage of
    # 0.85 on the second spectrum.
    assert np.mean(held) > 0.95 - 3 * 0.011


def test_a_density_of_known_eigenvalues_alone_has_no_band():
    A = with_spectrum(np.r_[5.0, 4.0, 3.0, 2.0, 1.0])
    density = mf.spectral_density(A, eigenpairs=5, num_probes=2, seed=0)
    low, high = density.density_band()
    curve = density.density()
    np.testing.assert_allclose(low, curve, atol=1e-12 * curve.max())
    np.testing.assert_allclose(high, curve, atol=1e-12 * curve.max())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_band_of_a_density_scales_with_the_matrix(scale):
    A = with_spectrum(nn_spectrum(60))
    one = mf.spectral_density(A, num_steps=20, num_probes=3, seed=0)
    other = mf.spectral_density(scale * A, num_steps=20, num_probes=3, seed=0)
    for bound, scaled in zip(one.density_band(), other.density_band(), strict=True):
        np.testing.assert_allclose(scaled * scale, bound, rtol=1e-6, atol=1e-9 * bound.max())
