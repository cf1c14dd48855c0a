"""Traces of functions, norms and determinants match closed forms."""

import math

import numpy as np
import pytest
import scipy.special
from support.matrices import (
    haar,
    laplacian_1d,
    laplacian_2d,
    laplacian_2d_spectrum,
    with_spectrum,
)

import matfree as mf

A, SPECTRUM = laplacian_2d(30), laplacian_2d_spectrum(30)
EXACT = {
    "log": np.log(SPECTRUM).sum(),
    "inverse": (1 / SPECTRUM).sum(),
    "sqrt": np.sqrt(SPECTRUM).sum(),
    "exp": np.exp(SPECTRUM).sum(),
}


@pytest.mark.parametrize("name", EXACT)
def test_intervals_of_named_functions_cover_the_closed_form(name):
    inside = 0
    for seed in range(20):
        low, high = mf.trace_function(A, name, num_steps=40, num_probes=10, seed=seed).interval()
        inside += low <= EXACT[name] <= high
    assert inside >= 17


def test_too_few_steps_increase_the_bias_and_not_the_standard_error():
    ends = (SPECTRUM.min(), None)
    few = mf.trace_function(A, "inverse", num_steps=8, num_probes=10, spectrum=ends, seed=0)
    assert few.bias > few.stderr
    assert abs(few.value - EXACT["inverse"]) <= few.half_width()
    assert "quadrature" in str(few)


def test_a_budget_of_n_gives_the_exact_answer():
    exact = mf.logdet(A, max_matvecs=900)
    assert exact.method == "exact"
    assert exact.value == pytest.approx(EXACT["log"], rel=1e-12)


@pytest.mark.parametrize("name", ["log", "inverse", "sqrt"])
def test_a_negative_ritz_value_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"least Ritz value is -\d"):
        mf.trace_function(mf.aslinearoperator(A).shift(-1.0), name, seed=0)


def test_a_function_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite at the Ritz value"):
        mf.trace_function(np.diag([-1.0, 1.0]), np.log, num_probes=1, seed=0)
    with pytest.raises(ValueError, match="f must be a function or one of"):
        mf.trace_function(A, "cosine")


Z = 3.0 + 0.5j
RESOLVENT = (1 / (SPECTRUM - Z)).sum()


def resolvent(x):
    return 1 / (x - Z)


@pytest.mark.parametrize("estimate", ["trace_function", "density"])
def test_real_and_imaginary_part_of_a_resolvent_have_an_interval_each(estimate):
    inside = np.zeros(2)
    for seed in range(20):
        if estimate == "density":
            run = mf.spectral_density(A, num_steps=60, num_probes=8, seed=seed)
            result = run.trace_function(resolvent)
        else:
            result = mf.trace_function(A, resolvent, num_steps=60, num_probes=8, seed=seed)
        for j, (part, exact) in enumerate(
            ((result.real, RESOLVENT.real), (result.imag, RESOLVENT.imag))
        ):
            low, high = part.interval()
            inside[j] += low <= exact <= high
            assert part.stderr < result.stderr
    assert (inside >= 17).all()
    assert result.interval() == result.real.interval()
    assert "of the imaginary part" in str(result)


def test_a_budget_of_n_gives_the_exact_trace_of_a_complex_function():
    exact = mf.trace_function(A, resolvent, max_matvecs=900)
    assert exact.value == pytest.approx(RESOLVENT, rel=1e-12)
    assert exact.imag.interval() == (exact.value.imag, exact.value.imag)


def test_too_few_steps_of_a_complex_function_show_in_the_bias():
    few = mf.trace_function(A, resolvent, num_steps=6, num_probes=10, seed=0)
    assert few.bias > 0
    assert abs(few.value - RESOLVENT) <= few.half_width()


def test_the_traces_of_a_complex_operator_have_intervals_of_both_parts():
    C = with_spectrum(np.linspace(1, 3, 30)) * (1 + 2j)
    for part, exact in (("real", 60), ("imag", 120)):
        low, high = getattr(mf.trace(C, num_probes=30, seed=0), part).interval()
        assert low <= exact <= high
    diagonal = mf.diagonal(C, num_probes=200, seed=0)
    low, high = diagonal.imag.interval(0.9999)
    assert ((low <= np.diag(C).imag) & (np.diag(C).imag <= high)).all()
    assert np.array_equal(diagonal.interval()[0], diagonal.real.interval()[0])


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: 1.0, "<lambda>"),
        (lambda x: x.sum(), "<lambda>"),
        (lambda x: x[:-1], "<lambda>"),
        (lambda x: x[:, None] * x, "<lambda>"),
        (lambda x: np.array(["one"] * len(x)), "<lambda>"),
        (lambda x: 0.0 if x < 0 else 1.0, "<lambda>"),
        (math.log, "log"),
    ],
)
def test_a_function_that_is_not_elementwise_is_refused_under_its_name(f, name):
    density = mf.spectral_density(A, num_steps=5, num_probes=1, seed=0)
    for call in (
        lambda: mf.trace_function(A, f, num_steps=5, num_probes=1, seed=0),
        lambda: density.trace_function(f),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"f \({name}\) must map an array"):
            call()


def test_a_function_that_refuses_points_outside_of_the_spectrum_is_accepted():
    def positive_only(x):
        if (x <= 0).any():
            raise ValueError("x must be positive")
        return 1 / x

    estimate = mf.trace_function(A, positive_only, seed=0)
    assert estimate.value == mf.trace_function(A, "inverse", seed=0).value


def test_functions_may_overwrite_their_argument_and_masked_values_are_not_finite():
    density = mf.spectral_density(A, num_steps=5, num_probes=1, seed=0)
    before = density.nodes[0].copy()
    density.trace_function(lambda x: np.negative(x, out=x))
    assert np.array_equal(density.nodes[0], before)
    with pytest.raises(ValueError, match="not finite at the Ritz value"):
        mf.trace_function(mf.aslinearoperator(A).shift(-1.0), np.ma.log, num_probes=1, seed=0)


def test_norms_of_rectangular_matrices():
    M = with_spectrum(np.linspace(0.5, 3, 40))[:, :25]
    frobenius = mf.frobenius_norm(M, num_probes=400, seed=0)
    assert abs(frobenius.value - np.linalg.norm(M)) <= 5 * frobenius.stderr
    nuclear = mf.schatten_norm(M, 1, num_probes=200, num_steps=25, seed=0)
    assert abs(nuclear.value - np.linalg.norm(M, "nuc")) <= 5 * nuclear.stderr + nuclear.bias
    assert mf.frobenius_norm(np.zeros((3, 3)), num_probes=2, seed=0).value == 0
    with pytest.raises(ValueError, match="p must be positive"):
        mf.schatten_norm(M, 0)


def test_the_warning_advises_more_steps_if_the_bias_exceeds_the_tolerance():
    with pytest.warns(mf.ConvergenceWarning, match="raise num_steps, because"):
        mf.trace_function(A, "inverse", num_steps=8, rtol=1e-3, max_matvecs=200, seed=0)


def test_the_inverse_of_a_negative_definite_operator_has_its_trace():
    minus = -1 * mf.aslinearoperator(A)
    for options in ({"num_probes": 20}, {"max_matvecs": 900}):
        estimate = mf.trace_function(minus, "inverse", seed=0, **options)
        assert abs(estimate.value + EXACT["inverse"]) <= 1e-9 + estimate.half_width()


def test_the_inverse_across_zero_is_refused_unless_all_eigenvalues_are_known():
    B = with_spectrum(np.r_[np.linspace(-3, -0.5, 20), np.linspace(0.25, 2, 40)])
    refusal = r"least Ritz value is -\d.*those next to 0 are -0\.5 and 0\.25; .*max_matvecs"
    with pytest.raises(ValueError, match=refusal):
        mf.trace_function(B, "inverse", num_steps=60, seed=0)
    exact = mf.trace_function(B, "inverse", max_matvecs=60, seed=0)
    assert exact.value == pytest.approx(np.trace(np.linalg.inv(B)))
    with pytest.raises(ValueError, match="0 to rounding"):
        mf.trace_function(np.diag([0.0, 1.0, 2.0]), "inverse", seed=0)


def test_the_one_dimensional_laplacian_has_its_closed_forms():
    n = 40
    line, theta = laplacian_1d(n), np.arange(1, n + 1) * np.pi / (n + 1)
    bessel = scipy.special.iv(2 * (n + 1) * np.arange(3), 2.0)
    closed = {
        "log": np.log(n + 1),
        "inverse": n * (n + 2) / 6,
        # sum of 2 sin(theta / 2), a geometric series
        "sqrt": 1 / np.tan(np.pi / (4 * (n + 1))) - 1,
        # e^2 sum of exp(-2 cos theta), by Poisson summation
        "exp": np.exp(2) * ((n + 1) * (bessel[0] + 2 * bessel[1:].sum()) - np.cosh(2.0)),
    }
    spectrum = 2 - 2 * np.cos(theta)
    for name, f in (
        ("log", np.log),
        ("inverse", lambda x: 1 / x),
        ("sqrt", np.sqrt),
        ("exp", np.exp),
    ):
        assert closed[name] == pytest.approx(f(spectrum).sum())
        exact = mf.trace_function(line, name, max_matvecs=n)
        assert exact.value == pytest.approx(closed[name], rel=1e-12)
        estimate = mf.trace_function(line, name, num_steps=n, num_probes=60, seed=0)
        assert abs(estimate.value - closed[name]) <= 5 * estimate.stderr + estimate.bias


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 10])
def test_schatten_norms_are_those_of_the_singular_values(p):
    sigma = np.linspace(0.5, 3, 25)
    exact = np.sum(sigma**p) ** (1 / p)
    M = with_spectrum(np.r_[sigma, -sigma])
    estimate = mf.schatten_norm(M, p, num_probes=40, num_steps=50, reorthogonalize="full", seed=0)
    assert abs(estimate.value - 2 ** (1 / p) * exact) <= 5 * estimate.stderr + estimate.bias
    tall = haar(40, 0)[:, :25] * sigma @ haar(25, 1)
    for A in (tall, tall.T):
        assert mf.schatten_norm(A, p, max_matvecs=25).value == pytest.approx(exact, rel=1e-10)


def test_the_frobenius_norm_meets_a_tolerance_or_is_exact():
    M = haar(300, 0)[:, :200] * np.linspace(0.5, 3, 200)
    norm = np.linalg.norm(M)
    inside = 0
    for seed in range(20):
        estimate = mf.frobenius_norm(M, rtol=0.02, max_matvecs=190, seed=seed, kind="gaussian")
        assert estimate.converged
        assert estimate.half_width() <= 0.02 * estimate.value
        low, high = estimate.interval()
        inside += low <= norm <= high
    assert inside >= 17
    for N in (M, M.T):
        exact = mf.frobenius_norm(N, max_matvecs=300)
        assert exact.method == "exact"
        assert exact.value == pytest.approx(norm, rel=1e-13)
    other = mf.frobenius_norm(M, num_probes=10, first_probe=10, seed=0)
    assert other.probe_ranges == ((10, 20),)
    with pytest.raises(ValueError, match="cannot be merged"):
        other.merge(mf.frobenius_norm(M, num_probes=10, seed=0))
    with pytest.warns(mf.ConvergenceWarning):
        assert not mf.frobenius_norm(M.T, rtol=1e-6, max_matvecs=50, seed=0).converged


def test_a_tolerance_includes_the_bias():
    estimate = mf.trace_function(A, "log", rtol=0.02, max_matvecs=800, seed=0)
    assert estimate.converged
    assert estimate.half_width() <= 0.02 * estimate.value


@pytest.mark.parametrize("name", EXACT)
def test_as_many_steps_as_there_are_eigenvalues_leave_no_bias(name):
    line = laplacian_1d(60)
    whole = mf.trace_function(
        line, name, num_steps=60, num_probes=30, reorthogonalize="full", seed=0
    )
    assert whole.bias == 0
    levels = np.diag(np.repeat([1.0, 2.0, 5.0], 20))
    assert mf.trace_function(levels, name, num_steps=3, num_probes=2, seed=0).bias == 0


@pytest.mark.parametrize("p", [0.5, 1, 4])
def test_tolerances_of_schatten_norms_refer_to_the_norm(p):
    spectrum = np.linspace(1, 4, 300)
    estimate = mf.schatten_norm(with_spectrum(spectrum), p, num_steps=10, rtol=0.02, seed=0)
    assert estimate.converged
    assert estimate.half_width() <= 0.02 * estimate.value
    exact = np.sum(spectrum**p) ** (1 / p)
    assert abs(estimate.value - exact) <= 0.03 * exact
    assert estimate.history[-1][1] == estimate.value


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_shift_proposed_by_the_error_scales_with_the_operator(scale):
    B = scale * np.diag([0.0, 1.0, 2.0])
    with pytest.raises(
        ValueError, match=rf"\(A\)\.shift\({2e-8 * scale:.2g}\)".replace("+", r"\+")
    ):
        mf.trace_function(B, "log", num_steps=3, seed=0)


def of_rank(m, n, rank, smallest=1.0):
    """A matrix with singular values 1 to ``smallest``, and 0 for the others."""
    values = np.geomspace(1.0, smallest, rank)
    return (haar(m, 1)[:, :rank] * values) @ haar(n, 2)[:, :rank].T, values


@pytest.mark.parametrize("p", [2.0, 1.0, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_errors_of_singular_operators_are_no_singular_values(p, shape, dtype):
    A, values = of_rank(*shape, 3)
    A = A if shape[0] != shape[1] else A @ A.T
    norm = (values**p).sum() ** (1 / p)
    exact = mf.schatten_norm(A.astype(dtype), p, max_matvecs=1000)
    low, high = exact.interval()
    eps = float(np.finfo(dtype).eps)
    assert exact.value == pytest.approx(norm, rel=100 * eps / min(p, 1))
    assert low <= norm * (1 + 10 * eps)
    assert norm * (1 - 10 * eps) <= high
    sampled = mf.schatten_norm(A.astype(dtype), p, num_probes=40, seed=0)
    low, high = sampled.interval()
    assert low <= norm <= high


@pytest.mark.parametrize("p", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("smallest", [1e-6, 1e-9])
def test_small_singular_values_lie_in_the_interval_although_their_squares_are_rounding(p, smallest):
    A, values = of_rank(60, 40, 40, smallest)
    norm = (values**p).sum() ** (1 / p)
    low, high = mf.schatten_norm(A, p, max_matvecs=1000).interval()
    assert low <= norm <= high


def test_a_tolerance_that_rounding_prevents_is_not_met_and_says_so():
    A, _ = of_rank(60, 40, 3)
    with pytest.warns(mf.ConvergenceWarning, match="rounding leaves the exact answer"):
        estimate = mf.schatten_norm(A, 0.5, rtol=1e-12, max_matvecs=1000, seed=0)
    assert not estimate.converged
    assert mf.schatten_norm(A, 2, rtol=1e-9, max_matvecs=1000, seed=0).converged
