"""Interpretations preserve mass and eigenvalues, and density, cdf and quantiles agree."""

import numpy as np
import pytest
from support.matrices import with_spectrum
from support.measures import distance_to_cdf

import matfree as mf
from matfree.results import interpretations

MIXED = with_spectrum(np.r_[np.linspace(0, 1, 195), 2.0, 3.0, 4.0, 6.0, 9.0])


def legendre(m):
    """The Gauss-Legendre quadrature on [-1, 1], that of the uniform distribution."""
    nodes, weights = np.polynomial.legendre.leggauss(m)
    return nodes, weights / 2


def test_a_uniform_distribution_is_approximated_better_by_spread():
    nodes, weights = legendre(12)
    spread = [interpretations.spread_over_gaps(nodes, weights, np.ones(12))]
    x = np.linspace(-1, 1, 2001)
    as_spread = np.abs(interpretations.cdf(spread, x) - (x + 1) / 2).mean()
    as_atoms = np.abs(
        interpretations.cdf([interpretations.as_atoms(nodes, weights)], x) - (x + 1) / 2
    ).mean()
    assert as_spread < as_atoms / 4


def test_spreading_preserves_mass_and_takes_equal_shares_from_both_neighbours():
    nodes, weights = np.array([0.0, 1.0, 3.0]), np.array([0.2, 0.5, 0.3])
    pieces = interpretations.spread_over_gaps(nodes, weights, np.ones(3))
    np.testing.assert_allclose(pieces.gaps, [0.2, 0.3])
    np.testing.assert_allclose(pieces.atoms, [0.1, 0.25, 0.15])


def test_converged_nodes_remain_atoms():
    density = mf.spectral_density(MIXED, num_steps=30, num_probes=3, seed=0)
    for (nodes, atoms, gaps), weights in zip(density.pieces(), density.weights, strict=True):
        outliers = nodes > 1.5
        np.testing.assert_array_equal(atoms[outliers], weights[outliers])
        assert gaps[nodes[1:] > 1.5].sum() == 0
        assert (atoms >= 0).all()
        assert gaps.sum() > 0.1
        assert atoms.sum() + gaps.sum() == pytest.approx(1)


def test_a_single_node_is_an_eigenvalue_only_if_its_residual_is_zero():
    assert interpretations.converged(np.array([7.0]), np.array([0.0]))
    assert not interpretations.converged(np.array([7.0]), np.array([1e-9]))


@pytest.mark.parametrize("reading", ["atoms", "spread"])
@pytest.mark.parametrize("method", ["lanczos", "kpm"])
def test_the_quantile_inverts_the_distribution_function(reading, method):
    density = mf.spectral_density(MIXED, method=method, num_steps=20, num_probes=3, seed=0)
    for q in (0.0, 0.1, 0.5, 0.77, 0.99, 1.0):
        x = density.quantile(q, reading=reading)
        assert density.cdf(x + 1e-9, reading=reading) >= q - 1e-6
        assert density.cdf(x - 1e-9, reading=reading) <= q + 1e-6


@pytest.mark.parametrize("reading", ["atoms", "spread"])
def test_the_density_is_the_slope_of_the_smoothed_distribution_function(reading):
    density = mf.spectral_density(MIXED, num_steps=20, num_probes=2, seed=0)
    grid = density.grid(0.02)
    curve = density.density(width=0.02, reading=reading)
    assert abs(np.trapezoid(curve, grid) - 1) < 1e-3
    sigma = 0.02 * (density.support[1] - density.support[0])
    fine = np.linspace(grid[0] - 1, grid[-1] + 1, 40001)
    mass = np.diff(density.cdf(fine, reading=reading))
    middle = (fine[1:] + fine[:-1]) / 2
    for point in (0.3, 0.8, 3.0):
        kernel = np.exp(-0.5 * ((point - middle) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        at_point = density.density([point], 0.02, reading=reading)
        assert mass @ kernel == pytest.approx(at_point[0], abs=2e-3 * curve.max())


def test_a_gap_much_narrower_than_the_width_is_smoothed_like_an_atom():
    pieces = interpretations.Pieces(np.array([0.0, 1e-9]), np.zeros(2), np.ones(1))
    x = np.linspace(-3, 3, 7)
    expected = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(interpretations.smoothed([pieces], x, 1.0), expected, rtol=1e-6)


def test_an_unknown_reading_is_refused():
    density = mf.spectral_density(MIXED, num_steps=3, num_probes=1, seed=0)
    with pytest.raises(ValueError, match='reading must be "atoms" or "spread"'):
        density.cdf(0.0, reading="smooth")


def test_the_distance_of_the_tests_is_the_area_between_the_curves():
    def ramp(x):
        return np.clip(x, 0.0, 1.0)

    breaks = np.array([0.0, 1.0])
    assert distance_to_cdf(ramp, breaks, np.array([0.5])) == pytest.approx(0.25)
    assert distance_to_cdf(ramp, breaks, np.array([2.0])) == pytest.approx(1.5)
