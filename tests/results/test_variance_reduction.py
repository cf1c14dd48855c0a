"""Isolated eigenvalues get their exact mass, if their multiplicity can be determined."""

import numpy as np
import pytest
import scipy.sparse
from support.matrices import nn_spectrum, with_spectrum
from support.measures import relative_distance

import matfree as mf

NN = scipy.sparse.diags_array(nn_spectrum(2000)).tocsr()


def test_outliers_have_the_mass_1_over_n_and_the_masses_add_up_to_1():
    density = mf.spectral_density(NN, num_steps=40, num_probes=16, kind="sphere", seed=0)
    reduced = density.variance_reduced()
    outliers = np.geomspace(1, 150, 10)
    for nodes, weights in zip(reduced.nodes, reduced.weights, strict=True):
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        for outlier in outliers:
            assert weights[np.abs(nodes - outlier) < 1e-6].sum() == pytest.approx(1 / 2000)
    assert np.isin(outliers.round(6), reduced.known.round(6)).any()
    assert reduced.num_matvecs == density.num_matvecs
    again = reduced.variance_reduced()
    np.testing.assert_allclose(again.cdf(outliers + 0.1), reduced.cdf(outliers + 0.1))


def test_the_distance_to_a_spectrum_with_outliers_decreases_tenfold():
    plain, reduced = [], []
    for seed in range(6):
        density = mf.spectral_density(NN, num_steps=64, num_probes=4, kind="sphere", seed=seed)
        plain.append(relative_distance(density, nn_spectrum(2000)))
        reduced.append(relative_distance(density.variance_reduced(), nn_spectrum(2000)))
    assert np.median(plain) <= 1.5 * 3.7e-4
    assert np.median(reduced) <= 9.6e-5
    assert np.median(reduced) <= np.median(plain) / 10


def test_the_mass_of_a_multiple_eigenvalue_is_replaced_only_if_there_are_many_probes():
    A = scipy.sparse.diags_array(np.r_[np.full(20, 5.0), np.linspace(0, 1, 980)]).tocsr()
    few = mf.spectral_density(A, num_steps=40, num_probes=4, kind="sphere", seed=0)
    assert few.variance_reduced().count(4, 6).value == pytest.approx(few.count(4, 6).value)
    B = scipy.sparse.diags_array(np.r_[np.full(2, 5.0), np.linspace(0, 1, 298)]).tocsr()
    many = mf.spectral_density(B, num_steps=25, num_probes=250, kind="sphere", seed=0)
    assert many.variance_reduced().count(4, 6).value == pytest.approx(2)
    assert sorted(many.variance_reduced().known)[-2:] == pytest.approx([5.0, 5.0])


def test_few_probes_do_not_make_an_eigenvalue_certain():
    A = scipy.sparse.diags_array(np.r_[5.0, 5.0, np.linspace(0, 1, 298)]).tocsr()
    holds = 0
    for seed in range(30):
        density = mf.spectral_density(A, num_steps=30, num_probes=2, kind="sphere", seed=seed)
        low, high = density.variance_reduced().count(4, 6).interval()
        holds += low <= 2 <= high
    assert holds >= 27


def test_a_completely_known_spectrum_is_exact():
    spectrum = np.linspace(1, 2, 12)
    density = mf.spectral_density(with_spectrum(spectrum), num_steps=12, num_probes=3, seed=0)
    reduced = density.variance_reduced()
    for weights in reduced.weights:
        np.testing.assert_allclose(weights, np.full(12, 1 / 12))
    assert float(reduced.moment(1).value) == pytest.approx(spectrum.mean())


@pytest.mark.parametrize("options", [{"method": "kpm"}, {"reorthogonalize": "none"}])
def test_nothing_changes_if_nodes_are_not_known_to_be_eigenvalues(options):
    density = mf.spectral_density(NN, num_steps=30, num_probes=2, seed=0, **options)
    reduced = density.variance_reduced()
    assert reduced.known.size == 0
    for a, b in zip(reduced.weights, density.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_variance_reduction_works_after_deflation():
    density = mf.spectral_density(NN, eigenpairs=3, num_steps=40, num_probes=4, seed=0)
    reduced = density.variance_reduced()
    for nodes, weights in zip(reduced.nodes, reduced.weights, strict=True):
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert weights[nodes > 0.9] == pytest.approx(np.full(10, 1 / 2000))
