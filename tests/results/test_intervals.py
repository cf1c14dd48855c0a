"""Errors of means of quadratic forms: the rules for few-valued and nearly equal samples."""

import numpy as np
import pytest
from scipy.stats import t

from matfree.results.intervals import mean_error, norm_error, student_quantile


def half_width(error):
    return student_quantile(0.95, error.degrees_of_freedom) * error.stderr


def test_without_deviations_the_error_is_students():
    samples = np.array([1.0, 4.0, 2.0, 9.0])
    error = mean_error(samples)
    assert error.stderr == pytest.approx(np.std(samples, ddof=1) / 2)
    assert error.degrees_of_freedom == 3
    both = mean_error(samples + 1j * samples[::-1])
    assert both.stderr == pytest.approx(np.sqrt(2) * error.stderr)
    assert mean_error(samples[:1]) == (np.inf, 0.0)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_degrees_of_freedom_follow_from_the_spread_of_the_deviations(scale):
    deviations = scale * np.array([1.0, 2.0, 3.0])
    error = mean_error(scale * np.array([5.0, 1.0, 3.0]), deviations, kind="gaussian", size=9)
    squares = np.array([1.0, 4.0, 9.0])
    v = squares.var(ddof=1) / (2 * squares.mean() ** 2)
    assert error.stderr == pytest.approx(scale * np.sqrt(squares.mean() / 3))
    assert error.degrees_of_freedom == pytest.approx(3 / ((4 + 2 * v) / 6))
    equal = mean_error(scale * np.arange(3.0), scale * np.ones(3), kind="gaussian", size=9)
    assert equal.degrees_of_freedom == pytest.approx(3 / (4 / 6))


def test_a_single_gaussian_deviation_gives_the_widest_interval():
    error = mean_error(np.array([5.0]), np.array([2.0]), kind="sphere", size=9)
    assert error == (2.0, 1.0)
    assert mean_error(np.array([5.0]), np.zeros(0), kind="rademacher", size=9) == (np.inf, 0.0)


@pytest.mark.parametrize("values", [[1, 1, 3, 1, 3, 1, 1], [2, 2, 2, 2, 2, 2, 2]])
def test_samples_with_one_or_two_values_get_a_correction_for_continuity(values):
    samples, deviations = np.array(values, dtype=float), np.full(6, 4.0)
    corrected = mean_error(samples, deviations, kind="rademacher", size=9)
    assert corrected.degrees_of_freedom == 6  # the smallest possible
    expected = t.ppf(0.975, 6) * 4 / np.sqrt(7) + 4 / 7
    assert half_width(corrected) == pytest.approx(expected)
    spread = mean_error(np.arange(7.0), deviations, kind="rademacher", size=9)
    assert spread.stderr == pytest.approx(4 / np.sqrt(7))
    few = mean_error(samples[:5], deviations[:4], kind="rademacher", size=9)
    assert few.stderr == pytest.approx(4 / np.sqrt(5))


def test_a_diagonal_operator_has_no_error_with_signs():
    samples = np.full(7, 3.0)
    assert mean_error(samples, np.zeros(6), kind="rademacher", size=9).stderr == 0
    # Deviations from a multiple of the identity show no diagonal, but eight equal samples do.
    assert mean_error(samples, np.ones(7), kind="rademacher", size=9).stderr > 0
    assert mean_error(np.full(8, 3.0), np.ones(8), kind="rademacher", size=9).stderr == 0
    assert mean_error(np.full(8, 3.0), np.ones(8), kind="sphere", size=9).stderr > 0


def test_one_deviation_per_vector_of_signs_is_completed_by_the_scatter():
    samples, deviations = np.array([1.0, 5.0, 3.0]), np.array([1.0, 2.0, 2.0])
    error = mean_error(samples, deviations, kind="rademacher", size=4)
    squares = deviations**2 + 2 / 4 * (samples - 3) ** 2 * 3 / 2
    assert error.stderr == pytest.approx(np.sqrt(squares.mean() / 3))


def test_complex_deviations_belong_to_both_parts():
    samples, deviations = np.array([1 + 2j, 3 - 1j, 2j]), np.array([1 + 2j, 3 + 1j, 2 + 2j])
    both = mean_error(samples, deviations, kind="gaussian", size=9)
    parts = [mean_error(samples.real, deviations.real), mean_error(samples.imag, deviations.imag)]
    parts = [
        mean_error(getattr(samples, p), getattr(deviations, p), kind="gaussian", size=9)
        for p in ("real", "imag")
    ]
    assert both.stderr**2 == pytest.approx(sum(part.stderr**2 for part in parts))


def test_the_error_of_squared_norms_uses_the_larger_variance():
    samples = np.array([4.0, 5.0, 6.0, 5.0])
    for pairs, deviation in (
        (np.array([0.1, 0.2]), np.std(samples, ddof=1)),
        ([3.0, 4.0], 12.5**0.5),
    ):
        error = norm_error(samples, np.asarray(pairs), kind="gaussian")
        half = t.ppf(0.975, 3) * deviation / 2
        assert half_width(error) == pytest.approx(5 * np.expm1(half / 5))
    signs = norm_error(samples, np.array([30.0, 40.0]), kind="rademacher")
    half = t.ppf(0.975, 3) * 2 * np.std(samples, ddof=1) / 2
    assert half_width(signs) == pytest.approx(5 * np.expm1(half / 5))
    assert norm_error(np.full(4, 5.0), np.ones(2), kind="rademacher").stderr == 0
