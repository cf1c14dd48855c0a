"""Peak memory is that of the Cost sections: a growing basis is never in memory twice."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse

import matfree as mf

N = 100_000
B, K, M = 4, 16, 10  # block size, probes, steps


def operator():
    spectrum = np.linspace(0.0, 1.0, N)
    spectrum[:8] = np.linspace(2.0, 9.0, 8)
    return mf.aslinearoperator(scipy.sparse.diags_array(spectrum).tocsr())


CASES = {
    "xtrace": (
        2 * K + 5 * B,
        lambda A: mf.trace(A, method="xtrace", num_probes=K, block_size=B, seed=0),
    ),
    "xtrace to a tolerance": (
        2 * K + 5 * B,
        lambda A: mf.trace(A, method="xtrace", rtol=1e-9, max_matvecs=2 * K, block_size=B, seed=0),
    ),
    "xnystrace": (
        K + 5 * B,
        lambda A: mf.trace(A, method="xnystrace", num_probes=K, block_size=B, seed=0),
    ),
    "xdiag": (
        2 * K + 7 * B,
        lambda A: mf.diagonal(A, method="xdiag", num_probes=K, block_size=B, seed=0),
    ),
    "eigsh": (30 + 2 * 4 + 8 * 2, lambda A: mf.eigsh(A, 4, num_vectors=30, seed=0)),
    "density": (
        B * (M + 6),
        lambda A: mf.spectral_density(A, num_steps=M, num_probes=B, block_size=B, seed=0),
    ),
    "density without a basis": (
        6 * B,
        lambda A: mf.spectral_density(
            A, num_steps=M, num_probes=B, block_size=B, reorthogonalize="none", seed=0
        ),
    ),
}


@pytest.mark.filterwarnings("ignore::matfree.ConvergenceWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_at_most_a_fifth_above_the_docstring(name):
    claim, call = CASES[name]
    A = operator()
    tracemalloc.start()
    try:
        call(A)
        peak = tracemalloc.get_traced_memory()[1] / (8 * N)
    finally:
        tracemalloc.stop()
    assert peak <= 1.2 * claim
