"""Multiplying an operator by c multiplies the results by c, over the range of its data type."""

import warnings
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from support.algorithm_calls import RECTANGULAR, SYMMETRIC
from support.matrices import with_spectrum

import matfree as mf

N = 40
A = with_spectrum(np.r_[30.0, 9.0, np.linspace(0.5, 4, N - 2)])
RECTANGLE = np.random.default_rng(1).standard_normal((60, N))
EXPONENTS = [-1000, -700, 700, 960]
FORMS = {
    "dense": lambda M: M,
    "csr": sp.csr_array,
    "function": lambda M: mf.aslinearoperator(lambda x: M @ x, shape=M.shape, like=np.zeros(1)),
}

# These have no unit: their arguments or their functions are scaled below.
WITH_ARGUMENTS = (
    "trace_function",
    "apply_function",
    "matrix_function",
    "condition_number",
    "logdet",
    "eigenvalue_count",
    "ritz_vectors",
    "lanczos",
)
INVERSE = ("solve", "inverse")  # which tests/algorithms/solving scales
PROPORTIONAL = {
    name: call
    for name, call in SYMMETRIC.items()
    if not name.startswith((*WITH_ARGUMENTS, *INVERSE, "check_operator"))
}


pytestmark = pytest.mark.filterwarnings("ignore::matfree.ConvergenceWarning")


def assert_times(found, expected, factor, *, matvecs=True):
    """The result of c A is c times that of A, field by field."""
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_times(found[key], expected[key], factor, matvecs=matvecs)
        return
    assert is_dataclass(found)
    values = getattr(expected, "value", None)
    rounding = 1e-14 * (0.0 if values is None else np.abs(np.asarray(values)).max())
    for field in fields(found):
        here, there = getattr(found, field.name), getattr(expected, field.name)
        if field.name in found.units:
            for x, y in zip(np.atleast_1d(here), np.atleast_1d(there), strict=True):
                if x is not None:
                    tolerance = max(1e-12 * np.abs(y).max(), rounding)
                    np.testing.assert_allclose(x / factor, y, rtol=1e-12, atol=tolerance)
        elif field.name == "num_matvecs":
            assert here == there or (not matvecs and here > there)
        elif field.name in ("converged", "num_probes", "num_steps", "verified"):
            np.testing.assert_equal(here, there)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROPORTIONAL)
def test_results_are_proportional_to_the_operator(name, form, exponent):
    call, factor = PROPORTIONAL[name], 2.0**exponent
    # The eigenpairs of a density are computed by a run of their own, which is scaled as well.
    matvecs = name != "spectral_density deflated"
    assert_times(call(FORMS[form](factor * A)), call(FORMS[form](A)), factor, matvecs=matvecs)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", ["svds", "frobenius_norm of a rectangle"])
def test_results_of_rectangular_operators_are_proportional(name, exponent):
    call, factor = RECTANGULAR[name], 2.0**exponent
    assert_times(call(factor * RECTANGLE), call(RECTANGLE), factor)


@pytest.mark.parametrize("c", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("p", [0.5, 1, 2, 3])
def test_schatten_norms_of_rectangular_operators_are_proportional(c, p):
    options = {"num_probes": 5, "num_steps": 12, "seed": 0}
    expected = mf.schatten_norm(RECTANGLE, p, **options)
    found = mf.schatten_norm(c * RECTANGLE, p, **options)
    assert found.value / c == pytest.approx(expected.value, rel=1e-10)
    assert found.half_width() / c == pytest.approx(expected.half_width(), rel=1e-6)


@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
@pytest.mark.parametrize("name", ["trace hutchinson", "trace xtrace", "eigsh LM", "frobenius_norm"])
def test_results_in_single_precision_are_proportional(name, exponent):
    call, factor = SYMMETRIC[name], 2.0**exponent
    single = A.astype(np.float32)
    assert_times(call(np.float32(factor) * single), call(single), factor)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_functions_of_the_operator_and_limits_have_its_unit(exponent):
    c = 2.0**exponent
    options = {"num_probes": 4, "num_steps": 15, "seed": 1}
    log = mf.logdet(A, **options)
    shifted = mf.logdet(c * A, **options)
    assert shifted.value == pytest.approx(log.value + N * np.log(c), rel=1e-12)
    assert shifted.bias == pytest.approx(log.bias, rel=1e-6, abs=1e-9)
    bounded = mf.logdet(c * A, spectrum=(0.4 * c, 31 * c), **options)
    assert bounded.bias == pytest.approx(mf.logdet(A, spectrum=(0.4, 31), **options).bias, rel=1e-6)
    inverse = mf.trace_function(c * A, lambda x: c / x, **options)
    expected = mf.trace_function(A, "inverse", **options)
    assert inverse.value == pytest.approx(expected.value, rel=1e-9)
    sine = mf.trace_function(c * A, lambda x: np.sin(x / c), **options)
    assert sine.value == pytest.approx(mf.trace_function(A, np.sin, **options).value, rel=1e-9)
    count = mf.eigenvalue_count(c * A, 1.0 * c, 3.0 * c, num_probes=4, num_steps=12, seed=0)
    expected = mf.eigenvalue_count(A, 1.0, 3.0, num_probes=4, num_steps=12, seed=0)
    assert count.value == pytest.approx(expected.value, rel=1e-9)
    assert count.interval() == pytest.approx(expected.interval(), rel=1e-6)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_krylov_factorizations_are_proportional(exponent):
    c, start = 2.0**exponent, np.random.default_rng(0).standard_normal((N, 2))
    found, expected = mf.lanczos(c * A, start, 12), mf.lanczos(A, start, 12)
    assert_times(found, expected, c)
    pairs = mf.ritz_vectors(c * A, found, start=start, k=2, rtol=1.0)
    # The first block depends on T, so that it is not the same in the second run.
    others = mf.ritz_vectors(A, expected, start=start, k=2, rtol=1.0)
    assert_times(pairs, others, c, matvecs=False)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_the_tolerance_and_given_eigenpairs_have_the_unit_of_the_operator(exponent):
    c = 2.0**exponent
    found = mf.trace(c * A, atol=3.0 * c, max_matvecs=39, seed=0)
    assert_times(found, mf.trace(A, atol=3.0, max_matvecs=39, seed=0), c)
    pairs = mf.eigsh(A, 2, seed=0)
    options = {"method": "deflated", "num_probes": 8, "seed": 0}
    deflated = mf.trace(c * A, eigenpairs=pairs.times(c), **options)
    assert_times(deflated, mf.trace(A, eigenpairs=pairs, **options), c)


def test_no_matvec_is_lost_and_no_budget_is_exceeded():
    calls = []

    def matvec(x):
        calls.append(1)
        return 1e200 * (A @ x)

    operator = mf.aslinearoperator(matvec, shape=(N, N), like=np.zeros(1))
    exact = mf.trace(operator, max_matvecs=N, seed=0)
    assert exact.value == pytest.approx(1e200 * A.trace())
    assert (exact.method, exact.num_matvecs, len(calls)) == ("exact", N, N)
    calls.clear()
    fresh = mf.trace(operator, num_probes=4)  # a new seed is drawn for the second run
    assert fresh.num_matvecs == len(calls)


def test_callbacks_and_interrupted_runs_have_the_unit_of_the_operator():
    seen = []

    def interrupt(estimate):
        seen.append(estimate.value)
        raise KeyboardInterrupt

    with pytest.raises(mf.Interrupted) as stop:
        mf.trace(1e200 * np.eye(N), num_probes=30, block_size=4, seed=0, callback=interrupt)
    assert stop.value.result.value == seen[0] == pytest.approx(N * 1e200)


def test_warnings_name_the_unit_of_their_numbers():
    with pytest.warns(mf.ConvergenceWarning, match=r"operator divided by 2\.0\*\*6"):
        mf.trace(1e200 * A, rtol=1e-9, max_matvecs=20, seed=0)


def test_a_result_beyond_the_range_of_double_precision_is_refused():
    huge = mf.aslinearoperator(lambda x: 1e307 * x, shape=(1000, 1000), like=np.zeros(1))
    with pytest.raises(OverflowError, match="exceeds the range"):
        mf.trace(huge, num_probes=3, seed=0)


@pytest.mark.parametrize("c", [1e-300, 1e300])
def test_an_operator_of_any_magnitude_is_checked(c):
    report = mf.check_operator(c * A)
    assert report.ok
    assert report.hermitian
    assert not mf.check_operator(c * np.triu(A)).hermitian


def test_a_checkpoint_of_an_operator_out_of_range_resumes(tmp_path):
    options = {"num_probes": 12, "block_size": 4, "seed": 0}
    expected = mf.trace(1e200 * A, **options)
    path = tmp_path / "run"

    def stop(estimate):
        return estimate.num_probes >= 4

    mf.trace(1e200 * A, **options, checkpoint=path, callback=stop)
    resumed = mf.trace(1e200 * A, **options, checkpoint=path)
    assert resumed.value == expected.value
    assert resumed.stderr == expected.stderr


@pytest.mark.parametrize("c", [1e-300, 1e-150, 1e150, 1e300])
def test_samples_of_every_magnitude_are_merged(c):
    runs = [mf.trace(c * A, num_probes=4, first_probe=first, seed=0) for first in (0, 4)]
    merged, expected = runs[0].merge(runs[1]), mf.trace(A, num_probes=8, seed=0)
    assert merged.value / c == pytest.approx(expected.value, rel=1e-12)
    assert 0 < merged.half_width() / c < 3 * expected.half_width()


@pytest.mark.parametrize("c", [1e-300, 1e-150, 1e150, 1e300])
def test_densities_of_every_magnitude_have_the_same_distribution(c):
    options = {"num_steps": 12, "num_probes": 4, "seed": 0}
    found, expected = mf.spectral_density(c * A, **options), mf.spectral_density(A, **options)
    points = np.array([0.7, 2.0, 5.0, 20.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        trace = found.trace_function(np.abs)
    np.testing.assert_allclose(found.cdf(c * points), expected.cdf(points), rtol=1e-9)
    for low, high in (found.cdf_band(c * points), found.density_band(c * points)):
        assert np.all(np.isfinite(low))
        assert np.all(low <= high)
    np.testing.assert_allclose(
        found.cdf_band(c * points), expected.cdf_band(points), rtol=1e-6, atol=1e-9
    )
    assert found.mass_between(c, 4 * c).value == pytest.approx(expected.mass_between(1, 4).value)
    assert trace.value / c == pytest.approx(np.abs(A.trace()), rel=0.5)


@pytest.mark.parametrize("name", [name for name in SYMMETRIC if name != "check_operator"])
def test_nan_next_to_entries_whose_squares_overflow_is_named(name):
    flawed = 1e283 * A
    flawed[-1, -1] = np.nan
    with pytest.raises(mf.NonFiniteError, match="NaN or infinity"):
        SYMMETRIC[name](flawed)
