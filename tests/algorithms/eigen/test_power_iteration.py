"""Power iteration: convergence, and spectra for which it must not report convergence."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import complex_hermitian, with_spectrum

import matfree as mf
from matfree.arrays import to_host


def test_it_finds_the_eigenvalues_of_largest_magnitude_in_order(backend, dtype):
    spectrum = np.r_[-9.0, 7.0, 4.0, np.linspace(-1, 1, 27)]
    A = with_spectrum(spectrum).astype(dtype)
    result = mf.power_iteration(backend.asarray(A), 3, rtol=1e-4, seed=0)
    # The error of an eigenvalue is at most the residual, and usually of the order of its square.
    np.testing.assert_allclose(result.values, [-9.0, 7.0, 4.0], atol=1e-4 * 9)
    assert result.converged.all()
    U = to_host(result.vectors)
    assert_close(U.conj().T @ U, np.eye(3), dtype)


def test_a_complex_hermitian_matrix_has_real_values():
    A = complex_hermitian(20)
    result = mf.power_iteration(A, 1, rtol=1e-6, max_steps=20_000, seed=0)
    exact = np.linalg.eigvalsh(A)
    assert abs(result.values[0] - exact[np.argmax(np.abs(exact))]) < 1e-5 * np.abs(exact).max()


def test_eigenvalues_of_equal_magnitude_and_opposite_sign_are_reported_as_unconverged():
    A = with_spectrum(np.r_[1.0, -1.0, np.linspace(-0.5, 0.5, 18)])
    with pytest.warns(mf.ConvergenceWarning, match="equal magnitude and opposite sign"):
        result = mf.power_iteration(A, 1, max_steps=200, seed=0)
    assert not result.converged[0]
    assert result.residuals[0] > 0.1


def test_history_contains_every_step_and_the_residual_decreases_by_the_ratio_of_eigenvalues():
    A = np.diag(np.r_[1.0, 0.5, np.linspace(-0.2, 0.2, 30)])
    result = mf.power_iteration(A, 1, rtol=1e-10, seed=1)
    assert len(result.history) == result.num_steps == result.num_matvecs
    residuals = np.array([entry[2] for entry in result.history])
    late = residuals[10:25]
    np.testing.assert_allclose(late[1:] / late[:-1], 0.5, rtol=0.05)  # |lambda_2 / lambda_1|


def test_all_eigenpairs_of_a_matrix_with_repeated_eigenvalues_are_found():
    result = mf.power_iteration(np.diag([3.0, 3.0, 3.0, 1.0]), 4, rtol=1e-8, seed=0)
    assert_close(result.values, [3.0, 3.0, 3.0, 1.0], scale=1e5)
    assert_close(result.vectors.T @ result.vectors, np.eye(4))


def test_a_callback_is_given_the_steps_and_may_end_the_iteration_of_a_pair():
    seen = []

    def stop(step):
        seen.append(step)
        return True

    with pytest.warns(mf.ConvergenceWarning):
        mf.power_iteration(np.diag(np.linspace(1, 1.01, 20)), 2, callback=stop, seed=0)
    assert [step.pair for step in seen] == [0, 1]


def test_an_interrupted_run_returns_the_pairs_found_so_far():
    def interrupt(step):
        if step.pair == 1:
            raise KeyboardInterrupt

    with pytest.raises(mf.Interrupted) as caught:
        mf.power_iteration(np.diag([5.0, 2.0, 1.0]), 2, callback=interrupt, seed=0)
    assert caught.value.result.values == pytest.approx([5.0], abs=1e-2)
    assert isinstance(caught.value, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rtol": 0}, "rtol must be positive"), ({"max_steps": 0}, "max_steps"), ({"k": 9}, "k must")],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mf.power_iteration(np.eye(4), **options)
