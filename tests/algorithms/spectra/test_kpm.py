"""Kernel polynomials: moments, the interval, and the resulting measure."""

import numpy as np
import pytest
import scipy.sparse
from support.backends import assert_close
from support.matrices import (
    complex_hermitian,
    laplacian_2d,
    laplacian_2d_spectrum,
    nn_spectrum,
    wishart,
    with_spectrum,
)
from support.measures import relative_distance

import matfree as mf
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.spectra import kpm
from matfree.algorithms.spectra.deflated_operator import DeflatedOperator


def chebyshev_of(A, v, degree, centre, half):
    """v^H T_k(B) v / v^H v from the eigendecomposition."""
    values, U = np.linalg.eigh(A)
    weights = np.abs(U.conj().T @ v) ** 2 / np.linalg.norm(v) ** 2
    return np.cos(np.outer(np.arange(degree + 1), np.arccos((values - centre) / half))) @ weights


def test_m_matvecs_give_2m_moments(backend, dtype):
    A = complex_hermitian(40) if dtype is np.complex128 else with_spectrum(np.linspace(-1, 3, 40))
    A = A.astype(dtype)
    exact = A.astype(np.complex128 if dtype is np.complex128 else np.float64)
    ends = np.linalg.eigvalsh(exact)[[0, -1]]
    centre, half = float(ends.mean()), float(0.51 * (ends[1] - ends[0]))
    counted = CountedOperator(backend.asarray(A))
    V = counted.space.probes(3, seed=0)
    moments = kpm.chebyshev_moments(counted, V, 11, centre, half)
    assert counted.num_matvecs == 33
    W = mf.space_like(A, 40).probes(3, seed=0)
    for p in range(3):
        expected = chebyshev_of(exact, W[:, p].astype(exact.dtype), 22, centre, half)
        assert_close(moments[:, p], expected, dtype, scale=1)


def test_the_measure_is_the_damped_one_with_positive_weights(backend, dtype):
    A = with_spectrum(np.linspace(1, 2, 60)).astype(dtype)
    B = backend.asarray(A)
    density = mf.spectral_density(B, method="kpm", num_steps=15, num_probes=3, seed=0)
    assert density.method == "kpm"
    for nodes, weights, residuals in zip(
        density.nodes, density.weights, density.residuals, strict=True
    ):
        assert (np.diff(nodes) > 0).all()
        assert (weights > 0).all()
        assert weights.sum() == pytest.approx(1)
        assert (residuals > 0).all()
    reference = mf.spectral_density(
        A.astype(np.complex128 if dtype is np.complex128 else np.float64),
        method="kpm",
        num_steps=15,
        num_probes=3,
        seed=0,
    )
    assert abs(density.moment(2).value - reference.moment(2).value) <= 1e-3
    assert density.moment(1).value == pytest.approx(1.5, abs=0.05)
    assert density.num_matvecs == 45 + 20


def test_jacksons_kernel_is_positive_and_as_narrow_as_pi_over_the_degree():
    for degree in (8, 31, 200):
        g = kpm.jackson_factors(degree)
        angles = np.linspace(0, np.pi, 4001)
        kernel = 1 + 2 * np.cos(np.outer(angles, np.arange(1, degree + 1))) @ g[1:]
        assert g[0] == 1
        assert kernel.min() >= -1e-12
        assert g[1] == pytest.approx(np.cos(np.pi / (degree + 2)))


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_encloses_the_spectrum(seed):
    rng = np.random.default_rng(seed)
    spectra = [
        laplacian_2d_spectrum(15),
        nn_spectrum(300),
        np.linalg.eigvalsh(wishart(200, 250, seed)),
        np.r_[rng.standard_normal(200), 40.0, -3.0],
        np.linspace(0, 1, 200) ** 8,
    ]
    for spectrum in spectra:
        A = scipy.sparse.diags_array(spectrum).tocsr()
        run = kpm.KernelPolynomial(DeflatedOperator(CountedOperator(A), seed=seed), 5, seed=seed)
        run.find_interval()
        assert run.centre - run.half <= spectrum.min()
        assert run.centre + run.half >= spectrum.max()
        assert 2 * run.half <= 1.3 * np.ptp(spectrum)


def test_growing_moments_widen_an_interval_that_was_too_narrow():
    spectrum = np.linspace(0, 1, 100)
    run = kpm.KernelPolynomial(
        DeflatedOperator(CountedOperator(np.diag(spectrum)), seed=0), 40, seed=0
    )
    run.find_interval()
    run.half /= 2
    rule = run(run.A.space.probes(1, seed=0), Checkpoint(None, run.A, 0))[0]
    assert run.half >= 0.5
    assert rule.weights @ rule.nodes == pytest.approx(0.5, abs=0.01)
    run.half = 1e-9
    with pytest.raises(ValueError, match="Chebyshev moments grow"):
        run(run.A.space.probes(1, seed=0), Checkpoint(None, run.A, 0))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale):
    A = with_spectrum(nn_spectrum(100))
    plain, scaled = (
        mf.spectral_density(c * A, method="kpm", num_steps=20, num_probes=2, seed=0)
        for c in (1.0, scale)
    )
    assert_close(scaled.nodes[1] / scale, plain.nodes[1])
    assert_close(scaled.weights[1], plain.weights[1])


@pytest.mark.parametrize("level", [0.0, 7.0, -2.0])
def test_a_multiple_of_the_identity_is_a_peak_at_its_value(level):
    density = mf.spectral_density(level * np.eye(30), method="kpm", num_probes=2, seed=0)
    assert density.quantile(0.5) == pytest.approx(level, abs=0.01)


def test_blocks_do_not_change_the_numbers_and_runs_merge():
    A = laplacian_2d(12)
    options = {"method": "kpm", "num_steps": 10, "seed": 3}
    whole = mf.spectral_density(A, num_probes=4, block_size=4, **options)
    single = mf.spectral_density(A, num_probes=4, block_size=1, **options)
    parts = [mf.spectral_density(A, num_probes=2, first_probe=f, **options) for f in (2, 0)]
    merged = parts[0].merge(parts[1])
    for other in (single, merged):
        for a, b in zip(other.weights, whole.weights, strict=True):
            assert_close(a, b, scale=1)
    with pytest.raises(ValueError, match="same method"):
        merged.merge(mf.spectral_density(A, num_probes=1, first_probe=9, num_steps=10, seed=3))


def test_a_deflated_bulk_is_resolved_as_without_outliers():
    spectrum = np.r_[np.linspace(0, 1, 396), 50.0, 80.0, 120.0, 150.0]
    A = scipy.sparse.diags_array(spectrum).tocsr()
    options = {"method": "kpm", "num_steps": 24, "num_probes": 4, "kind": "sphere", "seed": 0}
    bulk = np.linspace(0.05, 0.95, 50)
    exact = np.searchsorted(spectrum[:396], bulk) / 400
    plain = mf.spectral_density(A, **options)
    deflated = mf.spectral_density(A, eigenpairs=4, **options)
    assert np.abs(plain.cdf(bulk) - exact).mean() > 0.1
    assert np.abs(deflated.cdf(bulk) - exact).mean() < 0.02
    assert deflated.count(40, 200).value == pytest.approx(4)


@pytest.mark.parametrize(("num_probes", "num_steps", "reached"), [(4, 16, 5.3e-3), (4, 64, 4.8e-3)])
def test_the_error_of_the_laplacians_spectrum_is_that_of_the_reference(
    num_probes, num_steps, reached
):
    A, spectrum = laplacian_2d(40), laplacian_2d_spectrum(40)
    distances = [
        relative_distance(
            mf.spectral_density(
                A, method="kpm", num_steps=num_steps, num_probes=num_probes, seed=seed
            ),
            spectrum,
        )
        for seed in range(7)
    ]
    assert np.median(distances) <= 1.5 * reached


def test_invalid_operators_are_refused():
    with pytest.raises(mf.NotHermitianError):
        mf.spectral_density(np.eye(50, k=1), method="kpm", seed=0)
    calls = iter(range(1000))

    def spoilt(x):
        return np.linspace(0, 1, 50) * (np.nan if next(calls) == 60 else x)

    A = mf.aslinearoperator(spoilt, shape=(50, 50), like=np.zeros(1))
    with pytest.raises(mf.NonFiniteError):
        mf.spectral_density(A, method="kpm", num_probes=2, num_steps=40, seed=0)
