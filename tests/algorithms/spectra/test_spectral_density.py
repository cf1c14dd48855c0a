"""The spectral density: exact after a breakdown, and summaries that match exact values."""

import numpy as np
import pytest
import scipy.sparse
from support.backends import assert_close, tolerance
from support.matrices import (
    laplacian_2d,
    laplacian_2d_spectrum,
    nn_spectrum,
    wishart,
    with_spectrum,
)
from support.measures import relative_distance

import matfree as mf


def test_a_matrix_of_rank_three_has_four_nodes(backend, dtype):
    A = with_spectrum(np.r_[3.0, 2.0, -1.0, np.zeros(57)]).astype(dtype)
    density = mf.spectral_density(backend.asarray(A), num_steps=30, num_probes=2, seed=0)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        heavy = weights > 1e-6
        assert_close(nodes[heavy], [-1.0, 0.0, 2.0, 3.0], dtype)
        assert weights[~heavy].sum() < 1e-10
        assert abs(weights.sum() - 1) < 1e-12


def test_summaries_match_the_spectrum():
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
    with pytest.raises(ValueError, match="occur in two of the runs"):
        whole.merge(parts[0])
    with pytest.raises(ValueError, match="same num_steps"):
        whole.merge(mf.spectral_density(A, num_probes=1, first_probe=4, num_steps=9, seed=1))


def test_callback_and_interruption_return_the_finished_blocks():
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


def test_residuals_are_those_of_the_ritz_vectors(backend, dtype):
    A = with_spectrum(np.r_[np.linspace(0, 1, 56), 2.0, 3.0, 5.0, 9.0]).astype(dtype)
    density = mf.spectral_density(backend.asarray(A), num_steps=12, num_probes=2, seed=0)
    start = mf.space_like(A, 60).probes(2, seed=0)
    T = mf.lanczos(A, start, 12)
    for p in range(2):
        theta, Y = np.linalg.eigh(T.dense(p))
        X = T.bases[p].T @ Y
        expected = np.linalg.norm(A @ X - X * theta, axis=0)
        assert np.abs(density.residuals[p] - expected).max() <= 10 * tolerance(dtype) * 9


def test_residuals_are_zero_after_a_breakdown():
    A = np.diag(np.repeat([1.0, 2.0, 5.0], 10))
    density = mf.spectral_density(A, num_probes=2, num_steps=10, seed=0)
    assert all((r == 0).all() for r in density.residuals)


def test_deflated_eigenvalues_are_exact_and_the_rest_is_sampled(backend, dtype):
    spectrum = np.r_[np.linspace(0, 1, 76), 3.0, 5.0, 7.0, -8.0]
    A = backend.asarray(with_spectrum(spectrum).astype(dtype))
    for reorthogonalize in ("full", "none"):
        density = mf.spectral_density(
            A,
            eigenpairs=4,
            num_steps=30,
            num_probes=3,
            seed=0,
            reorthogonalize=reorthogonalize,
        )
        residual_squared = 1e-11  # the error of the eigenvalues
        slack = 8 * max(tolerance(dtype), residual_squared)
        np.testing.assert_allclose(density.known, [-8.0, 3.0, 5.0, 7.0], rtol=0, atol=slack)
        for nodes, weights in zip(density.nodes, density.weights, strict=True):
            assert weights.sum() == pytest.approx(1)
            assert_close(weights[np.abs(nodes) > 1.5], np.full(4, 1 / 80))
            assert nodes[1] >= -10 * tolerance(dtype) * 8
        assert density.count(2.0, 10.0).value == pytest.approx(3)


def test_one_set_of_eigenpairs_serves_trace_diagonal_and_density(tmp_path):
    A = with_spectrum(nn_spectrum(120))
    pairs = mf.eigsh(A, 10, seed=0)
    pairs = mf.EigenResult.load(pairs.save(tmp_path / "pairs"))
    density = mf.spectral_density(A, eigenpairs=pairs, num_probes=2, num_steps=20, seed=0)
    trace = mf.trace(A, method="deflated", eigenpairs=pairs, num_probes=20, seed=0)
    mf.diagonal(A, method="deflated", eigenpairs=pairs, num_probes=20, seed=0)
    assert density.num_matvecs == 2 * 20 + 1  # one matvec verifies that they belong to A
    assert 120 * density.moment(1).value == pytest.approx(float(trace), abs=2.0)
    own = mf.spectral_density(A, eigenpairs=10, num_probes=2, num_steps=20, seed=0)
    alone = mf.eigsh(A, 10, verify=False, seed=0)
    assert own.num_matvecs == 2 * 20 + alone.num_matvecs
    assert_close(own.known, density.known)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
@pytest.mark.parametrize("num_steps", [30, 57, 58, 80])
def test_inaccurate_eigenpairs_are_projected_out_up_to_a_breakdown(rtol, num_steps):
    spectrum = np.r_[9.0, -5.0, np.linspace(0, 1, 58)]
    A = with_spectrum(spectrum)
    pairs = mf.power_iteration(A, 2, rtol=rtol, seed=0)
    density = mf.spectral_density(A, eigenpairs=pairs, num_steps=num_steps, seed=0)
    for low, high, known in ((8, 10, 1), (-6, -4, 1), (-6, 10, 60), (2, 4, 0)):
        count = density.count(low, high)
        assert count.value == pytest.approx(known, abs=1e-9)
        # Two eigenvalues are known: at least those inside, and at most 60 without those outside.
        inside = sum(low <= x <= high for x in (9.0, -5.0))
        lowest, highest = count.interval()
        assert inside - 1e-9 <= lowest <= known <= highest + 1e-9
        assert highest <= 60 - (2 - inside) + 1e-9


def test_known_eigenvalues_do_not_reappear_within_many_steps():
    spectrum = np.r_[np.linspace(0, 1, 390), np.geomspace(1e3, 1e6, 10)]
    A = with_spectrum(spectrum)
    density = mf.spectral_density(A, eigenpairs=10, num_steps=120, num_probes=1, seed=0)
    nodes, weights = density.nodes[0], density.weights[0]
    assert (nodes > 2).sum() == 10
    assert weights[nodes > 2] == pytest.approx(np.full(10, 1 / 400))


def test_inaccurate_eigenpairs_and_those_of_another_operator_are_refused():
    A, B = with_spectrum(nn_spectrum(100), 1), with_spectrum(nn_spectrum(100), 2)
    with pytest.raises(ValueError, match="not those of this operator"):
        mf.spectral_density(A, eigenpairs=mf.eigsh(B, 3, seed=0), seed=0)
    with pytest.raises(ValueError, match=r"eigenpairs.vectors must have shape \(100, k\)"):
        mf.spectral_density(A, eigenpairs=mf.eigsh(np.eye(5), 3, seed=0), seed=0)
    with pytest.warns(mf.ConvergenceWarning):
        rough = mf.eigsh(laplacian_2d(15), 3, max_matvecs=6, verify=False, seed=0)
    with pytest.raises(ValueError, match="a pair with a residual of at most"):
        mf.spectral_density(laplacian_2d(15), eigenpairs=rough, seed=0)
    for wrong in (-1, 2.5, True, "4"):
        with pytest.raises((ValueError, TypeError), match="eigenpairs"):
            mf.spectral_density(A, eigenpairs=wrong, seed=0)


def test_with_all_eigenvalues_known_there_is_nothing_to_sample():
    for method in ("lanczos", "kpm"):
        density = mf.spectral_density(
            np.diag([1.0, 2.0, 4.0]), method=method, eigenpairs=5, num_probes=2, seed=0
        )
        assert_close(density.nodes[1], [1.0, 2.0, 4.0])
        assert density.mass_below(3.0).interval() == pytest.approx((2 / 3, 2 / 3))
        assert density.cdf_band(3.0) == pytest.approx((2 / 3, 2 / 3))
        assert density.variance_reduced().quantile(0.5) == pytest.approx(2.0)
        assert "known" in str(density)


def noisy(A, eta, seed=0):
    """An operator whose matvecs have a random relative error eta."""
    rng = np.random.default_rng(seed)

    def matvec(x):
        y = A @ x
        return y + eta * np.linalg.norm(y) / len(y) ** 0.5 * rng.standard_normal(len(y))

    return mf.aslinearoperator(matvec, shape=A.shape, like=A[:1])


@pytest.mark.parametrize("method", ["lanczos", "kpm"])
def test_the_noise_floor_is_the_noise_of_the_operator(method):
    A, eta = with_spectrum(nn_spectrum(300)), 1e-2
    options = {"method": method, "num_steps": 30, "num_probes": 2, "seed": 0}
    quiet = mf.spectral_density(A, measure_noise=True, **options)
    unmeasured = mf.spectral_density(A, **options)
    assert quiet.num_matvecs == unmeasured.num_matvecs + 1
    assert quiet.noise_floor <= 1e-12
    density = mf.spectral_density(noisy(A, eta), measure_noise=True, **options)
    assert (
        0.3 * eta * 150 <= density.noise_floor <= 3 * eta * 150
    )  # the difference of two random errors
    assert density.mass_below(-density.noise_floor).value < 1e-3
    assert f"{density.noise_floor:.2g}" in str(density)


def test_an_unsymmetric_operator_is_refused_although_its_noise_is_measured():
    A = np.random.default_rng(0).standard_normal((60, 60))
    with pytest.raises(mf.NotHermitianError):
        mf.spectral_density(A, measure_noise=True, seed=0)


def test_new_fields_survive_saving_and_files_without_them_load(tmp_path):
    A = with_spectrum(nn_spectrum(80))
    for options in ({}, {"method": "kpm"}, {"eigenpairs": 3}, {"reorthogonalize": "none"}):
        density = mf.spectral_density(A, num_probes=2, num_steps=20, seed=0, **options)
        loaded = mf.SpectralDensity.load(density.save(tmp_path / "density"))
        for name in ("residuals", "nodes", "weights"):
            for a, b in zip(getattr(loaded, name), getattr(density, name), strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(loaded.known, density.known)
        for name in ("method", "reorthogonalize", "noise"):
            assert getattr(loaded, name) == getattr(density, name)
    old = mf.SpectralDensity(
        nodes=density.nodes,
        weights=density.weights,
        size=80,
        num_steps=20,
        num_matvecs=40,
        epsilon=1e-16,
        seed=0,
    )
    assert old.residuals == ()
    assert old.cdf(1.0, reading="spread") == pytest.approx(density.cdf(1.0), abs=0.1)
    low, high = old.cdf_band(1.0)
    assert low <= density.cdf(1.0) <= high
    old.variance_reduced()


def test_merged_runs_keep_residuals_and_one_set_of_known_eigenvalues():
    A = with_spectrum(nn_spectrum(80))
    pairs = mf.eigsh(A, 3, seed=0)
    options = {"num_steps": 10, "seed": 1, "eigenpairs": pairs}
    whole = mf.spectral_density(A, num_probes=3, **options)
    parts = [
        mf.spectral_density(A, num_probes=k, first_probe=f, **options) for f, k in ((1, 2), (0, 1))
    ]
    merged = parts[0].merge(parts[1])
    for a, b in zip(merged.residuals, whole.residuals, strict=True):
        assert_close(a, b, scale=150)
    assert_close(merged.cdf_band(0.5)[1], whole.cdf_band(0.5)[1])
    bare = mf.spectral_density(A, num_probes=1, first_probe=7, num_steps=10, seed=1)
    with pytest.raises(ValueError, match="same set of known eigenvalues"):
        whole.merge(bare)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match='method must be "lanczos" or "kpm"'):
        mf.spectral_density(np.eye(3), method="slq")


# P33: reference medians of W1 / range, to be reached within a factor 1.5
@pytest.mark.parametrize(
    ("problem", "num_probes", "num_steps", "atoms", "spread"),
    [
        ("lap2d", 4, 16, 1.9e-2, 5.7e-3),
        ("lap2d", 16, 16, 1.8e-2, 4.3e-3),
        ("lap2d", 4, 64, 6.3e-3, 4.9e-3),
        ("wishart", 4, 16, 1.6e-2, 5.7e-3),
    ],
)
def test_errors_of_continuous_spectra_are_those_of_the_reference(
    problem, num_probes, num_steps, atoms, spread
):
    if problem == "lap2d":
        A, spectrum = laplacian_2d(40), laplacian_2d_spectrum(40)
    else:
        A = wishart(1000, 2000)
        spectrum = np.linalg.eigvalsh(A)
    runs = [
        mf.spectral_density(A, num_steps=num_steps, num_probes=num_probes, seed=s) for s in range(7)
    ]
    assert np.median([relative_distance(d, spectrum) for d in runs]) <= 1.5 * atoms
    read = [relative_distance(d, spectrum, reading="spread") for d in runs]
    assert np.median(read) <= 1.5 * spread


def test_deflation_improves_a_spectrum_with_outliers_fortyfold():
    spectrum = nn_spectrum(2000)
    A = scipy.sparse.diags_array(spectrum).tocsr()
    distances = []
    for seed in range(7):
        pairs = mf.eigsh(A, 10, verify=False, seed=seed)
        assert pairs.num_matvecs < 60
        density = mf.spectral_density(
            A, eigenpairs=pairs, num_steps=49, num_probes=4, kind="sphere", seed=seed
        )
        distances.append(relative_distance(density, spectrum))
    assert np.median(distances) <= 1.5 * 8.8e-6


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_an_operator_that_is_zero_outside_known_eigenvectors_is_not_refused(reorthogonalize):
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((60, 3)))
    A = (Q * [9.0, 7.0, 6.0]) @ Q.T
    pairs = mf.eigsh(A, 3, rtol=1e-10, seed=0)
    density = mf.spectral_density(
        A, eigenpairs=pairs, num_probes=3, seed=0, reorthogonalize=reorthogonalize
    )
    assert density.moment(2).value == pytest.approx((81 + 49 + 36) / 60, rel=1e-10)
