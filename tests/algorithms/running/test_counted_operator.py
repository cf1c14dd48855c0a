"""Vectors from outside are converted to the operator's space, or refused with the reason."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import complex_hermitian

import matfree as mf

N = 30
A = np.diag(np.arange(1.0, N + 1))
START = np.random.default_rng(0).standard_normal((N, 2))

CALLS = {
    "eigsh": lambda B, start: mf.eigsh(B, 2, start=start, seed=0).values,
    "svds": lambda B, start: mf.svds(B, 2, start=start, seed=0).values,
    "svds of a wide matrix": lambda B, start: mf.svds(B[:20, :], 2, start=start, seed=0).values,
    "lanczos": lambda B, start: mf.lanczos(B, start, 5).alphas[0],
    "lanczos of one vector": lambda B, start: mf.lanczos(B, start[:, 0], 5).alphas[0],
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_complex_start_for_a_real_operator_is_refused(name, precision, backend):
    matrix = backend.asarray(A, precision)
    start = backend.asarray(START + 1j, np.result_type(precision, np.complex64))
    with pytest.raises(ValueError, match=r"start is complex \(.*\), but the operator is real"):
        CALLS[name](matrix, start)


def test_complex_eigenpairs_of_another_operator_are_refused_for_a_real_one():
    pairs = mf.eigsh(complex_hermitian(N), 2, seed=0)
    triplets = mf.svds(complex_hermitian(N), 2, seed=0)
    for call in (
        lambda: mf.eigsh(A, 2, start=pairs, seed=0),
        lambda: mf.svds(A, 2, start=triplets, seed=0),
        lambda: mf.trace(A, method="deflated", eigenpairs=pairs, num_probes=9, seed=0),
        lambda: mf.spectral_density(A, eigenpairs=pairs, seed=0),
    ):
        with pytest.raises(ValueError, match="is complex"):
            call()


@pytest.mark.parametrize("name", ["eigsh", "svds", "lanczos"])
def test_a_real_start_for_a_complex_operator_and_nested_lists_are_accepted(name):
    expected = CALLS[name](A, START)
    assert_close(CALLS[name](A.astype(complex), START), expected, scale=1e3)
    assert_close(CALLS[name](A, START.tolist()), expected, scale=1e3)
