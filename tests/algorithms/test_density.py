"""The spectral density: exact where Lanczos ends, and its summaries against exact answers."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import with_spectrum

import matfree as mf


def test_a_matrix_of_rank_three_has_four_nodes(backend, dtype):
    A = with_spectrum(np.r_[3.0, 2.0, -1.0, np.zeros(57)]).astype(dtype)
    density = mf.spectral_density(backend.asarray(A), num_steps=30, num_probes=2, seed=0)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        heavy = weights > 1e-6
        assert_close(nodes[heavy], [-1.0, 0.0, 2.0, 3.0], dtype)
        assert weights[~heavy].sum() < 1e-10
        assert abs(weights.sum() - 1) < 1e-12


def test_summaries_are_those_of_the_spectrum():
    spectrum = np.repeat([-1.0, 1.0, 4.0], [10, 30, 10])
    density = mf.spectral_density(np.diag(spectrum), num_probes=3, num_steps=10, seed=0)
    np.testing.assert_allclose(density.cdf([-2, -1, 0, 1, 5]), [0, 0.2, 0.2, 0.8, 1], atol=1e-12)
    assert density.mass_below(0.0).value == pytest.approx(0.2)
    assert density.moment(2).value == pytest.approx(np.mean(spectrum**2))
    assert density.quantile(0.5) == pytest.approx(1.0)
    assert density.trace_function(np.exp).value == pytest.approx(np.exp(spectrum).sum())
    assert density.support == pytest.approx((-1.0, 4.0))
    with pytest.raises(ValueError, match="not finite at the Ritz value -1"):
        density.trace_function(np.log)
    with pytest.raises(ValueError, match="q must be in"):
        density.quantile(1.5)
    with pytest.raises(ValueError, match="width must be positive"):
        density.density(width=0.0)


# P34
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_plotted_curve_has_mass_one_and_scales_with_the_spectrum(scale):
    spectrum = np.r_[np.linspace(0, 0.3, 90), np.linspace(0.8, 1, 10)]
    plain, scaled = (
        mf.spectral_density(np.diag(c * spectrum), num_probes=2, num_steps=30, seed=0)
        for c in (1.0, scale)
    )
    grid = scaled.grid()
    assert abs(np.trapezoid(scaled.density(), grid) - 1) < 1e-3
    np.testing.assert_allclose(grid / scale, plain.grid(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        scaled.density() * scale, plain.density(), rtol=1e-4, atol=1e-6 * plain.density().max()
    )


def test_reorthogonalisation_is_optional_for_the_distribution():
    A = with_spectrum(np.linspace(0, 1, 150))
    full, bare = (
        mf.spectral_density(A, num_probes=2, num_steps=40, seed=0, reorthogonalize=r)
        for r in ("full", "none")
    )
    grid = np.linspace(0.05, 0.95, 30)
    assert np.abs(full.cdf(grid) - bare.cdf(grid)).max() < 0.05


def test_merged_runs_are_one_run():
    A = with_spectrum(np.linspace(0, 1, 80))
    whole = mf.spectral_density(A, num_probes=4, num_steps=10, seed=1)
    parts = [
        mf.spectral_density(A, num_probes=2, first_probe=f, num_steps=10, seed=1) for f in (2, 0)
    ]
    merged = parts[0].merge(parts[1])
    for a, b in zip(merged.nodes, whole.nodes, strict=True):
        assert_close(a, b)
    assert merged.probe_ranges == whole.probe_ranges == ((0, 4),)
    with pytest.raises(ValueError, match="in two of the runs"):
        whole.merge(parts[0])
    with pytest.raises(ValueError, match="one num_steps"):
        whole.merge(mf.spectral_density(A, num_probes=1, first_probe=4, num_steps=9, seed=1))


def test_callback_and_interruption_keep_what_is_done():
    A = np.diag(np.linspace(0, 1, 40))
    options = {"num_probes": 6, "num_steps": 5, "block_size": 2, "seed": 0}
    assert mf.spectral_density(A, callback=lambda d: True, **options).num_probes == 2

    def interrupt(density):
        raise KeyboardInterrupt

    with pytest.raises(mf.Interrupted) as caught:
        mf.spectral_density(A, callback=interrupt, **options)
    assert caught.value.result.num_probes == 2


@pytest.mark.parametrize("name", ["num_steps", "num_probes"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        mf.spectral_density(np.eye(3), **{name: 0})
