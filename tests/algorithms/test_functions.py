"""Traces of functions, norms and determinants against closed forms."""

import numpy as np
import pytest
from support.matrices import laplacian_2d, laplacian_2d_spectrum, with_spectrum

import matfree as mf

A, SPECTRUM = laplacian_2d(30), laplacian_2d_spectrum(30)
EXACT = {
    "log": np.log(SPECTRUM).sum(),
    "inverse": (1 / SPECTRUM).sum(),
    "sqrt": np.sqrt(SPECTRUM).sum(),
    "exp": np.exp(SPECTRUM).sum(),
}


@pytest.mark.parametrize("name", EXACT)
def test_intervals_of_named_functions_hold_the_closed_form(name):
    inside = 0
    for seed in range(20):
        low, high = mf.trace_function(A, name, num_steps=40, num_probes=10, seed=seed).interval()
        inside += low <= EXACT[name] <= high
    assert inside >= 17


def test_too_few_steps_show_in_the_bias_not_in_the_standard_error():
    few = mf.trace_function(A, "inverse", num_steps=8, num_probes=10, seed=0)
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


def test_norms_of_rectangular_matrices():
    M = with_spectrum(np.linspace(0.5, 3, 40))[:, :25]
    frobenius = mf.frobenius_norm(M, num_probes=400, seed=0)
    assert abs(frobenius.value - np.linalg.norm(M)) <= 5 * frobenius.stderr
    nuclear = mf.schatten_norm(M, 1, num_probes=200, num_steps=25, seed=0)
    assert abs(nuclear.value - np.linalg.norm(M, "nuc")) <= 5 * nuclear.stderr + nuclear.bias
    assert mf.frobenius_norm(np.zeros((3, 3)), num_probes=2, seed=0).value == 0
    with pytest.raises(ValueError, match="p must be positive"):
        mf.schatten_norm(M, 0)


def test_a_tolerance_counts_the_bias_too():
    estimate = mf.trace_function(A, "log", rtol=0.02, max_matvecs=800, seed=0)
    assert estimate.converged
    assert estimate.half_width() <= 0.02 * estimate.value
