"""``max_matvecs`` is an upper bound, and a budget below the smallest unit of work is refused.

The matvecs are counted in the operator, independently of the library's own count.
"""

import re
import warnings

import numpy as np
import pytest
from support.matrices import with_spectrum

import matfree as mf

N = 24
SPECTRUM = np.geomspace(1.0, 50.0, N)
A = with_spectrum(SPECTRUM, seed=3)
PARTS = {"first": slice(0, 5), "second": slice(5, 9), "third": slice(9, N)}


class Counted:
    """A dense matrix that counts the columns that it is applied to, with its adjoint."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def matvec(self, x):
        return self.matmat(x[:, None])[:, 0]

    def matmat(self, X):
        self.count += X.shape[1]
        return self.matrix @ X

    def rmatvec(self, x):
        return self.rmatmat(x[:, None])[:, 0]

    def rmatmat(self, X):
        self.count += X.shape[1]
        return self.matrix.conj().T @ X


def sampled(function, *arguments, **options):
    return lambda B, **budget: function(B, *arguments, seed=1, **options, **budget)


PAIRS = mf.eigsh(A, 6, seed=0)
OTHER_PAIRS = mf.eigsh(with_spectrum(SPECTRUM, seed=4), 6, seed=0)

SAMPLING = {
    **{
        f"trace {method}": sampled(mf.trace, method=method)
        for method in ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated")
    },
    **{
        f"diagonal {method}": sampled(mf.diagonal, method=method)
        for method in ("hutchinson", "diag++", "xdiag", "xnysdiag", "deflated")
    },
    "trace with given pairs": sampled(mf.trace, method="deflated", eigenpairs=PAIRS),
    "diagonal with other pairs": sampled(mf.diagonal, method="deflated", eigenpairs=OTHER_PAIRS),
    "weighted diagonal": sampled(mf.diagonal, kind="gaussian"),
    "frobenius_norm": sampled(mf.frobenius_norm),
    "schatten_norm": sampled(mf.schatten_norm, 3.0, num_steps=7),
    "logdet": sampled(mf.logdet, num_steps=7),
    "trace_function": sampled(mf.trace_function, np.sqrt, num_steps=7),
    "eigenvalue_count": sampled(mf.eigenvalue_count, 2.0, 9.0, num_steps=7),
    "block_traces": sampled(mf.block_traces, PARTS),
    "block_traces joint": sampled(mf.block_traces, PARTS, joint=True),
    "block_diagonals joint": sampled(mf.block_diagonals, PARTS, joint=True),
}
SEARCHES = {
    "eigsh": lambda B, **budget: mf.eigsh(B, 3, seed=1, **budget),
    "eigsh wide": lambda B, **budget: mf.eigsh(B, 2, block_size=5, seed=1, **budget),
    "eigsh both ends": lambda B, **budget: mf.eigsh(B, 4, which="BE", seed=1, **budget),
    "eigsh warm": lambda B, **budget: mf.eigsh(B, 6, start=PAIRS, seed=1, **budget),
    "eigsh without a search": lambda B, **budget: mf.eigsh(B, 3, verify=False, seed=1, **budget),
    "svds": lambda B, **budget: mf.svds(B, 3, seed=1, **budget),
    "svds tight": lambda B, **budget: mf.svds(B, 3, rtol=1e-15, seed=1, **budget),
}


def numbers(result):
    """The numbers of a result that must be finite."""
    if isinstance(result, dict):
        return np.concatenate([np.atleast_1d(e.value) for e in result.values()])
    if isinstance(result, mf.Estimate):
        return np.atleast_1d(result.value)
    return np.concatenate((result.values, result.residuals))


def run(function, matrix, **budget):
    """The result and the counted matvecs; the ValueError instead of a result if it is refused."""
    B = Counted(matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        try:
            return function(B, **budget), B.count
        except ValueError as refusal:
            return refusal, B.count


def cost(result):
    if isinstance(result, dict):
        values = [estimate.num_matvecs for estimate in result.values()]
        return values[0] if len(set(values)) == 1 else sum(values)
    return result.num_matvecs


@pytest.mark.parametrize("tolerance", [{}, {"rtol": 1e-9}, {"atol": 0.3}], ids=str)
@pytest.mark.parametrize("name", SAMPLING)
def test_no_budget_is_exceeded_by_sampling(name, tolerance):
    for budget in range(1, 2 * N + 5):
        result, count = run(SAMPLING[name], A, max_matvecs=budget, **tolerance)
        assert count <= budget
        if isinstance(result, ValueError):
            assert count == 0
            least = int(re.search(r"which takes (\d+) matvecs", str(result))[1])
            assert budget < least < N
            assert not isinstance(run(SAMPLING[name], A, max_matvecs=least)[0], ValueError)
        else:
            assert count >= 1
            assert np.isfinite(numbers(result)).all()
            assert cost(result) <= count or "joint" in name


@pytest.mark.parametrize("name", SEARCHES)
def test_no_budget_is_exceeded_by_searches(name):
    for budget in range(1, 60):
        result, count = run(SEARCHES[name], A, max_matvecs=budget)
        assert count <= budget
        if isinstance(result, ValueError):
            assert count == 0
            least = int(re.search(r"which takes (\d+) matvecs", str(result))[1])
            assert budget < least < N
            assert not isinstance(run(SEARCHES[name], A, max_matvecs=least)[0], ValueError)
        else:
            assert count >= len(result.values)
            assert cost(result) == count
            assert np.isfinite(numbers(result)).all()


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_no_budget_is_exceeded_by_rectangular_operators(shape):
    M = np.random.default_rng(0).standard_normal(shape)
    calls = {
        "svds": lambda B, **budget: mf.svds(B, 3, seed=1, **budget),
        "svds warm": lambda B, **budget: mf.svds(B, 3, start=np.eye(shape[1])[:, :4], **budget),
        "frobenius_norm": sampled(mf.frobenius_norm, rtol=1e-9),
    }
    for call in calls.values():
        for budget in range(1, 60):
            result, count = run(call, M, max_matvecs=budget)
            assert count <= budget
            assert isinstance(result, ValueError) or np.isfinite(numbers(result)).all()


def test_the_answer_does_not_get_lost_in_the_warning():
    """One probe has no standard error; a tolerance of 0 cannot be met; neither is an error."""
    for options in ({"rtol": 1e-3, "max_matvecs": 1}, {"rtol": 0.0, "max_matvecs": 20}):
        with pytest.warns(mf.ConvergenceWarning, match=f"raise max_matvecs.* (12|{N})[ ,]"):
            estimate = mf.trace(A, seed=0, **options)
        assert not estimate.converged
        assert estimate.num_matvecs == options["max_matvecs"]
        assert estimate.value == mf.trace(A, num_probes=estimate.num_probes, seed=0).value


@pytest.mark.parametrize("name", [n for n in SAMPLING if "block" not in n])
def test_advice_is_at_most_the_cost_of_the_exact_answer(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate = SAMPLING[name](A, rtol=1e-9, max_matvecs=N - 1)
    if estimate.converged:
        return
    (warning,) = caught
    advised = re.search(r"raise max_matvecs to (\d+), which gives the exact", str(warning.message))
    assert int(advised[1]) == N
    assert SAMPLING[name](A, rtol=1e-9, max_matvecs=N).converged
