"""Traces and diagonals by sampling: budgets, stopping tests and standard errors."""

import numpy as np
import pytest
from support.backends import assert_close
from support.intervals import error_of_runs
from support.matrices import nn_spectrum, wishart, with_spectrum

import matfree as mf
from matfree.arrays import to_host

A = wishart(400, 800)
TRACE = float(np.trace(A))
TRACE_METHODS = ["hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"]
DIAGONAL_METHODS = ["hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"]


def test_runs_meet_two_per_cent_and_all_intervals_are_consistent():
    right = 0
    for seed in range(60):
        estimate = mf.trace(A, rtol=0.02, seed=seed)
        right += abs(estimate.value - TRACE) <= 0.02 * TRACE
        assert estimate.converged
        assert estimate.half_width() <= 0.02 * abs(estimate.value)
    assert right >= 51  # at 95 %, fewer have a probability of 5e-4


# P31
def test_an_exhausted_budget_warns_with_a_sufficient_budget():
    B = with_spectrum(nn_spectrum(400))
    with pytest.warns(mf.ConvergenceWarning, match=r"raise max_matvecs to 400, .* exact answer"):
        estimate = mf.trace(B, rtol=0.01, max_matvecs=100, seed=0)
    assert mf.trace(B, rtol=0.01, max_matvecs=400, seed=0).converged
    assert not estimate.converged
    assert estimate.num_matvecs == 100
    assert abs(estimate.value - np.trace(B)) <= 5 * estimate.stderr


def test_a_budget_of_one_probe_warns_that_it_says_nothing_about_the_error():
    B = with_spectrum(nn_spectrum(40))
    with pytest.warns(
        mf.ConvergenceWarning, match=r"half-width of inf.* one probe says too little"
    ):
        estimate = mf.trace(B, rtol=0.01, max_matvecs=1, seed=0)
    assert len(estimate.samples) == 1
    assert estimate.value == mf.trace(B, num_probes=1, seed=0).value


@pytest.mark.parametrize("function", ["xtrace", "logdet", "trace_function"])
def test_a_budget_below_the_first_estimate_is_refused(function):
    B = with_spectrum(nn_spectrum(400)) + 2 * np.eye(400)
    compute = {
        "xtrace": lambda budget: mf.trace(B, method="xtrace", rtol=1e-9, max_matvecs=budget),
        "logdet": lambda budget: mf.logdet(B, rtol=1e-9, max_matvecs=budget),
        "trace_function": lambda n: mf.trace_function(B, np.exp, rtol=1e-9, max_matvecs=n),
    }[function]
    with pytest.raises(ValueError, match=r"max_matvecs=1 is too small .* takes \d+") as error:
        compute(1)
    least = int(str(error.value).split(" takes ")[1].split()[0])
    with pytest.warns(mf.ConvergenceWarning):
        assert compute(least).num_matvecs <= least


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_a_budget_without_tolerance_is_used_but_not_exceeded(method):
    estimate = mf.trace(A, method=method, max_matvecs=60, seed=0)
    assert 50 <= estimate.num_matvecs <= 60
    assert estimate.converged
    assert abs(estimate.value - TRACE) <= 6 * estimate.stderr


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_block_size_does_not_change_the_estimate(method):
    for options in ({"num_probes": 33}, {"rtol": 0.05, "max_matvecs": 300}):
        values = [mf.trace(A, method=method, block_size=b, seed=1, **options) for b in (1, 7, 32)]
        for other in values[1:]:
            np.testing.assert_allclose(other.value, values[0].value, rtol=1e-11)
            np.testing.assert_allclose(other.stderr, values[0].stderr, rtol=1e-8)
            assert other.num_matvecs == values[0].num_matvecs


@pytest.mark.parametrize("method", DIAGONAL_METHODS)
def test_block_size_does_not_change_the_diagonal(method):
    values = [
        mf.diagonal(A, method=method, num_probes=20, block_size=b, seed=1).value for b in (1, 7, 32)
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-9)


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_every_method_runs_on_every_backend_in_every_precision(backend, dtype, method):
    B = (with_spectrum(0.8 ** np.arange(60.0)) + 0.01 * np.eye(60)).astype(dtype)
    estimate = mf.trace(backend.asarray(B), method=method, num_probes=16, seed=0)
    exact = np.trace(B).real
    # 6 standard errors leave a margin for a fixed seed
    assert abs(complex(estimate.value) - exact) <= 6 * estimate.stderr + 1e-5 * exact


@pytest.mark.parametrize("method", DIAGONAL_METHODS)
def test_every_diagonal_runs_on_every_backend_in_every_precision(backend, dtype, method):
    B = (with_spectrum(0.8 ** np.arange(60.0)) + 0.01 * np.eye(60)).astype(dtype)
    estimate = mf.diagonal(backend.asarray(B), method=method, num_probes=40, seed=0)
    error = np.asarray(mf.arrays.to_host(estimate.value)) - np.diag(B)
    stderr = mf.arrays.to_host(estimate.stderr)
    assert np.mean(np.abs(error) <= 3 * stderr + 1e-5) > 0.9


def test_a_budget_of_n_gives_the_exact_answer_and_its_reason():
    for run in (mf.trace, mf.diagonal):
        estimate = run(A, max_matvecs=400, seed=0)
        assert estimate.method == "exact"
        assert estimate.num_matvecs == 400
        assert "unit vectors" in estimate.reason
    assert abs(mf.trace(A, max_matvecs=400).value - TRACE) < 1e-10
    assert_close(mf.diagonal(A, max_matvecs=400).value, np.diag(A))


def test_sampling_precedes_the_exact_answer_if_the_budget_allows_both():
    assert mf.trace(A, rtol=0.05, max_matvecs=1000, seed=0).method == "hutchinson"
    tight = mf.trace(A, rtol=1e-9, max_matvecs=1000, seed=0)
    assert tight.method == "exact"
    assert tight.num_matvecs <= 1000


def test_an_explicit_number_of_probes_is_used_even_beyond_n():
    estimate = mf.trace(np.diag([1.0, 2.0]) + 1, num_probes=50, seed=0)
    assert estimate.num_probes == 50
    assert estimate.method == "hutchinson"


def test_intervals_of_a_diagonal_cover_its_entries():
    estimate = mf.diagonal(A, num_probes=40, seed=0)
    low, high = estimate.interval()
    covered = np.mean((low <= np.diag(A)) & (np.diag(A) <= high))
    assert covered > 0.92  # 400 nearly independent entries at 95 %: 2.7 sigma


def test_callbacks_are_called_after_every_block_and_may_stop_the_run():
    seen = []
    mf.trace(A, num_probes=10, block_size=3, seed=0, callback=lambda e: seen.append(e.num_probes))
    assert seen == [3, 6, 9, 10]
    stopped = mf.trace(A, num_probes=10, block_size=3, seed=0, callback=lambda e: True)
    assert stopped.num_probes == 3
    assert stopped.reason == "stopped by the callback"

    def stop(estimate):
        raise StopIteration

    assert mf.diagonal(A, num_probes=9, block_size=2, callback=stop, seed=0).num_probes == 2


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "hutch++"])
def test_an_interrupted_run_returns_all_finished_blocks(method):
    def interrupt(estimate):
        if estimate.num_probes >= 8:
            raise KeyboardInterrupt

    with pytest.raises(mf.Interrupted) as caught:
        mf.trace(A, method=method, num_probes=40, block_size=4, seed=0, callback=interrupt)
    result = caught.value.result
    assert result.num_probes == 8
    assert not result.converged
    assert abs(result.value - TRACE) < 0.2 * TRACE


def test_merged_runs_are_one_run():
    whole = mf.trace(A, num_probes=30, seed=5)
    parts = [mf.trace(A, num_probes=10, first_probe=f, seed=5) for f in (20, 0, 10)]
    merged = parts[0].merge(*parts[1:])
    assert_close(merged.samples, whole.samples)
    assert merged.value == pytest.approx(whole.value, rel=1e-12)
    assert merged.probe_ranges == ((0, 30),)
    W = mf.space_like(A, 400).probes(30, seed=5)
    # Every run of random signs needs a probe for the diagonal.
    assert (len(merged.deviations), len(whole.deviations)) == (27, 29)
    for run, parts in ((merged, np.split(W, 3, axis=1)), (whole, [W])):
        stderr, degrees_of_freedom, half = error_of_runs(A, *parts)
        assert run.stderr == pytest.approx(stderr, rel=1e-10)
        assert run.degrees_of_freedom == pytest.approx(degrees_of_freedom, rel=1e-8)
        assert run.half_width() == pytest.approx(half, rel=1e-8)
    d = mf.diagonal(A, num_probes=30, seed=5)
    halves = [mf.diagonal(A, num_probes=15, first_probe=f, seed=5) for f in (0, 15)]
    assert_close(halves[0].merge(halves[1]).value, d.value)
    assert_close(halves[0].merge(halves[1]).stderr, d.stderr)


@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
def test_merged_runs_have_the_error_of_one_run_if_the_diagonal_is_not_needed(kind):
    whole = mf.trace(A, num_probes=30, seed=5, kind=kind)
    parts = [mf.trace(A, num_probes=10, first_probe=f, seed=5, kind=kind) for f in (20, 0, 10)]
    merged = parts[0].merge(*parts[1:])
    assert merged.stderr == pytest.approx(whole.stderr, rel=1e-12)
    assert merged.half_width(0.9) == pytest.approx(whole.half_width(0.9), rel=1e-10)
    W = mf.space_like(A, 400).probes(30, seed=5, kind=kind)
    stderr, degrees_of_freedom, half = error_of_runs(A, W, kind=kind)
    assert whole.stderr == pytest.approx(stderr, rel=1e-10)
    assert whole.degrees_of_freedom == pytest.approx(degrees_of_freedom, rel=1e-8)
    assert whole.half_width() == pytest.approx(half, rel=1e-8)


def test_runs_that_do_not_belong_together_are_not_merged():
    run = mf.trace(A, num_probes=5, seed=5)
    with pytest.raises(ValueError, match="probes 3 to 4 occur in two"):
        run.merge(mf.trace(A, num_probes=5, first_probe=3, seed=5))
    with pytest.raises(ValueError, match="same seed"):
        run.merge(mf.trace(A, num_probes=5, first_probe=5, seed=6))
    x = [mf.trace(A, method="xtrace", num_probes=5, first_probe=f, seed=5) for f in (0, 5)]
    with pytest.raises(ValueError, match="cannot be merged"):
        x[0].merge(x[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0}, "num_probes must be a whole number"),
        ({"num_probes": 2.5}, "num_probes must be a whole number"),
        ({"num_probes": True}, "num_probes must be a whole number"),
        ({"max_matvecs": -1}, "max_matvecs must be a whole number"),
        ({"block_size": 0}, "block_size must be a whole number"),
        ({"rtol": -0.1}, "rtol must be finite"),
        ({"atol": np.nan}, "atol must be finite"),
        ({"num_probes": 5, "rtol": 0.1}, "not both"),
        ({"num_probes": 5, "max_matvecs": 10}, "not both"),
        ({"method": "magic"}, "method must be one of 'hutchinson'"),
        ({"seed": -3}, "seed must be in"),
    ],
)
def test_bad_arguments_are_refused_by_both_functions(options, message):
    for run in (mf.trace, mf.diagonal):
        with pytest.raises(ValueError, match=message):
            run(A, **options)


def test_one_probe_of_a_complex_operator_has_an_infinite_standard_error():
    estimate = mf.diagonal(np.diag([1.0, 2j]), num_probes=1, kind="z4", seed=0)
    assert np.array_equal(estimate.value, [1.0, 2j])
    assert np.all(np.isinf(estimate.stderr))


def test_progress_shows_a_bar_named_after_the_method(capsys):
    pytest.importorskip("tqdm")
    mf.trace(A, num_probes=8, block_size=2, seed=0, progress=True)
    assert "hutchinson" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"])
@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
def test_standard_errors_in_single_precision_scale_with_the_operator(backend, method, scale):
    A = with_spectrum(np.arange(1.0, 61) ** -2)
    options = {"method": method, "num_probes": 12, "eigenpairs": 3, "seed": 0}
    one = mf.diagonal(backend.asarray(A, np.float32), **options)
    other = mf.diagonal(backend.asarray(scale * A, np.float32), **options)
    for part in ("value", "stderr"):
        expected, got = to_host(getattr(one, part)), to_host(getattr(other, part)) / scale
        assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()
