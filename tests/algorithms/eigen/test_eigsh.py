"""``eigsh`` finds all wanted eigenpairs, including those that small residuals do not reveal."""

import itertools

import numpy as np
import pytest
from support.backends import assert_close, tolerance
from support.matrices import (
    complex_hermitian,
    laplacian_2d,
    laplacian_2d_spectrum,
    nn_spectrum,
    with_spectrum,
)

import matfree as mf
from matfree.arrays import to_host
from matfree.results import StoppingReason


def test_it_finds_the_wanted_pairs_on_every_backend(backend, dtype):
    if np.issubdtype(dtype, np.complexfloating):
        A = complex_hermitian(80)
    else:
        A = with_spectrum(nn_spectrum(80))
    exact = np.linalg.eigvalsh(A)
    wanted = exact[np.argsort(-np.abs(exact))][:5]
    result = mf.eigsh(backend.asarray(A, dtype), 5, seed=0)
    assert result.converged.all()
    assert result.verified
    limit = max(1e-6, 100 * np.finfo(dtype).eps)
    assert np.abs(result.values - wanted).max() <= limit * np.abs(exact).max()
    U = to_host(result.vectors)
    assert np.abs(U.conj().T @ U - np.eye(5)).max() <= tolerance(dtype)


@pytest.mark.parametrize("seed", range(6))
def test_no_copy_of_a_multiple_eigenvalue_is_missed(seed):
    A, exact = laplacian_2d(25), laplacian_2d_spectrum(25)
    result = mf.eigsh(A, 10, seed=seed, max_matvecs=3000)
    assert np.abs(result.values - exact[::-1][:10]).max() < 1e-5
    assert result.verified


@pytest.mark.parametrize("k", [3, 5])
def test_rounding_errors_of_a_low_rank_operator_are_not_taken_for_asymmetry(k):
    A = with_spectrum(np.r_[1.0, 0.5, -0.25, np.zeros(57)])
    result = mf.eigsh(A, k, rtol=1e-10, seed=0)
    assert result.verified
    assert_close(result.values, [1, 0.5, -0.25, 0, 0][:k])


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_a_tenfold_eigenvalue_is_found_ten_times(block_size):
    cube = np.array([2.0 * sum(corner) - 10 for corner in itertools.product([0, 1], repeat=10)])
    A = np.diag(cube)
    result = mf.eigsh(A, 11, which="LA", block_size=block_size, seed=0)
    assert_close(result.values, np.r_[10.0, np.full(10, 8.0)], scale=1e4)
    assert result.verified


def test_a_result_without_the_verification_search_is_not_verified():
    result = mf.eigsh(with_spectrum(nn_spectrum(100)), 3, verify=False, seed=0)
    assert result.converged.all()
    assert not result.verified


def test_a_warm_start_saves_most_matvecs():
    A = with_spectrum(np.linspace(0, 1, 400) ** 3)
    cold = mf.eigsh(A, 3, seed=0, verify=False)
    warm = mf.eigsh(A, 3, start=cold, seed=0, verify=False)
    assert warm.num_matvecs <= cold.num_matvecs / 4
    assert_close(warm.values, cold.values, scale=1e6)


def test_eigenpairs_converge_with_few_vectors_per_restart():
    A = laplacian_2d(25)
    short = mf.eigsh(A, 4, num_vectors=12, seed=0, max_matvecs=5000)
    assert short.converged.all()
    assert np.abs(short.values - laplacian_2d_spectrum(25)[::-1][:4]).max() < 1e-5


def test_an_insufficient_budget_warns_and_returns_the_pairs_so_far():
    A = np.diag(np.linspace(1, 1.001, 500))
    with pytest.warns(mf.ConvergenceWarning, match="pass this result as start"):
        result = mf.eigsh(A, 4, rtol=1e-12, max_matvecs=40, seed=0)
    assert not result.converged.all()
    assert result.num_matvecs <= 40 + 4  # and four to recompute the residuals


def test_an_interrupted_run_returns_its_pairs():
    def interrupt(step):
        if step.num_matvecs > 60:
            raise KeyboardInterrupt

    A = np.diag(np.linspace(1, 2, 300))
    with pytest.raises(mf.Interrupted) as caught:
        mf.eigsh(A, 3, num_vectors=20, rtol=1e-12, seed=0, callback=interrupt)
    result = caught.value.result
    U = result.vectors
    assert_close(U.T @ U, np.eye(3))
    assert_close(np.sum(U * (A @ U), axis=0), result.values)


def test_a_callback_may_stop_the_run():
    with pytest.warns(mf.ConvergenceWarning):
        result = mf.eigsh(np.diag(np.linspace(1, 2, 300)), 2, callback=lambda s: True, seed=0)
    assert result.reason == "stopped by the callback"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k must be in \[1, n\]"),
        ({"which": "XX"}, "near a number, pass it as sigma"),
        ({"rtol": -1.0}, "rtol must be positive"),
        ({"block_size": 0}, "block_size"),
        ({"num_vectors": 2}, "num_vectors must be at least"),
        ({"start": np.ones(3)}, "start must have shape"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mf.eigsh(np.eye(50), **options)


def test_both_ends_of_a_spectrum_with_few_distinct_values_do_not_overlap():
    rng = np.random.default_rng(0)
    exact = np.r_[np.full(6, 0.1), np.linspace(0.15, 0.6, 12)]
    Q = np.linalg.qr(rng.normal(size=(18, 18)))[0]
    A = (Q * exact) @ Q.T
    for k in (11, 15, 18):
        found = mf.eigsh((A + A.T) / 2, k, which="BE", rtol=1e-10, seed=0)
        wanted = np.r_[exact[18 - (k + 1) // 2 :], exact[: k // 2]]
        assert np.allclose(np.sort(found.values), np.sort(wanted), atol=1e-9)
        assert found.converged.all()


@pytest.mark.filterwarnings("ignore::matfree.ConvergenceWarning")
@pytest.mark.parametrize("budget", range(20, 120, 7))
def test_the_verification_search_stays_within_the_budget(budget):
    A = with_spectrum(np.r_[np.full(4, 3.0), np.linspace(-1, 2, 60)])
    result = mf.eigsh(A, 4, block_size=4, max_matvecs=budget, seed=0)
    assert result.num_matvecs <= budget + 4  # and four to recompute the residuals
    assert result.converged.all() or not result.verified


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(np.float32, 3e-7), (np.float32, 1e-8), (float, 1e-15)]
)
def test_a_tolerance_below_rounding_is_named_as_the_reason(dtype, rtol):
    M = np.random.default_rng(0).standard_normal((200, 200))
    A = ((M + M.T) / 2).astype(dtype)
    calls = {
        "eigsh": lambda: mf.eigsh(A, 4, which="LA", rtol=rtol, max_matvecs=20_000, seed=0),
        "svds": lambda: mf.svds(A, 3, rtol=rtol / 10, max_matvecs=20_000, seed=0),
        "power": lambda: mf.power_iteration(
            np.diag([9, 1, 0.3]).astype(dtype) + dtype(0.1), 1, rtol=1e-18, seed=0
        ),
    }
    for call in calls.values():
        with pytest.warns(mf.ConvergenceWarning, match="rounding in float.. limits") as caught:
            result = call()
        assert not result.converged.all()
        assert result.reason == StoppingReason.ROUNDING
        assert result.num_matvecs < 2000  # no budget is spent on rounding errors
        assert "raise max" not in str(caught[0].message)
        reachable = float(str(caught[0].message).split("pass rtol=")[1].split()[0])
        assert (result.residuals <= reachable).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_single_copy_among_many_of_another_eigenvalue_is_found(seed):
    """The first random block of a search contains eigenvectors of the other eigenvalue."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 20))
    spectrum = np.repeat([3.0, -1.0], [n // 2, n - n // 2])
    k = n // 2 + 1
    found = mf.eigsh(with_spectrum(spectrum, seed=seed), k, seed=seed)
    assert found.verified
    assert_close(np.sort(found.values), np.sort(spectrum)[-k:])
