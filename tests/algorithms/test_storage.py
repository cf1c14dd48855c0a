"""Lanczos vectors within a budget of memory: what is chosen, what it takes, what it costs."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from support.backends import MAKERS

import matfree as mf

N = 30_000
M = 24  # steps


def large(dtype):
    return mf.aslinearoperator(
        scipy.sparse.diags_array(np.linspace(0.5, 1.0, N).astype(dtype)).tocsr()
    )


@pytest.fixture(params=["numpy", "torch"])
def with_half(request):
    """The backends that have 16-bit numbers."""
    return MAKERS[request.param]()


def start_vectors(A, k):
    return A.space.probes(k, seed=3)


RUNS = {
    "density": lambda A, **options: mf.spectral_density(
        A, num_steps=M, num_probes=4, seed=0, **options
    ),
    "known eigenvalues": lambda A, **options: mf.spectral_density(
        A, num_steps=M, num_probes=4, seed=0, eigenpairs=few_pairs(A), **options
    ),
    "trace of a function": lambda A, **options: mf.trace_function(
        A, "log", num_steps=M, num_probes=4, reorthogonalize="full", seed=0, **options
    ),
    "lanczos": lambda A, **options: mf.lanczos(A, start_vectors(A, 4), M, **options),
    "kernel polynomials": lambda A, **options: mf.spectral_density(
        A, method="kpm", num_steps=M, num_probes=4, seed=0, **options
    ),
}


def few_pairs(A):
    """Eigenpairs of the diagonal operator above, without computing anything."""
    vectors = np.zeros((N, 3), dtype=A.space.dtype)
    vectors[[-1, -2, -3], [0, 1, 2]] = 1
    values = np.linspace(0.5, 1.0, N)[[-1, -2, -3]]
    return mf.EigenResult(
        values=values,
        vectors=vectors,
        residuals=np.zeros(3),
        converged=np.ones(3, dtype=bool),
        norm=1.0,
        which="LM",
        method="given",
        num_matvecs=0,
        num_steps=0,
        reason="",
        seed=0,
    )


def measured(function, *args, **options):
    """A result, and the most memory that was in use on the way to it."""
    tracemalloc.start()
    try:
        return function(*args, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_the_peak_is_within_the_budget_and_what_was_predicted(name, dtype):
    run, A = RUNS[name], large(dtype)
    vector = N * np.dtype(dtype).itemsize
    unbounded = run(A, memory=1 << 40).memory["predicted"]
    chosen = set()
    for budget in np.linspace(unbounded, 14 * vector, 4).astype(int):
        try:
            result, peak = measured(run, A, memory=int(budget))
        except MemoryError:
            continue
        told = result.memory
        assert told["predicted"] <= told["budget"] == budget
        assert 0.6 * told["predicted"] <= peak <= 1.02 * told["predicted"]  # T and the like
        chosen.add((told["basis"], told["at_once"]))
    assert len(chosen) >= (1 if name == "kernel polynomials" else 2)
