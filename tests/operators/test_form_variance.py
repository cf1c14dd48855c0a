"""The variance of quadratic forms that stored entries show, compared with averages over probes."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

import matfree as mf
from matfree.operators import csr

N = 6
RNG = np.random.default_rng(0)
G = RNG.standard_normal((N, N)) + 1j * RNG.standard_normal((N, N))
MATRICES = {
    "symmetric": (G + G.conj().T).real,
    "not symmetric": G.real,
    "Hermitian": G + G.conj().T,
    "not Hermitian": G,
    "float32": (G + G.conj().T).real.astype(np.float32),
}


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr(csr, "_LEAST_SIZE", 1)


def variance(A, kind):
    return mf.aslinearoperator(sp.csr_array(A)).form_variance(kind)


def over_all(letters, A):
    """The variance of the real part of w^H A w over all probes with these entries."""
    W = np.array(list(itertools.product(letters, repeat=N))).T
    return np.sum(W.conj() * (A @ W), axis=0).real.var()


@pytest.mark.parametrize("name", MATRICES)
def test_that_of_random_signs_and_roots_of_unity_is_the_average_over_all_of_them(name):
    A = MATRICES[name]
    real = not np.iscomplexobj(A)
    kind, letters = ("rademacher", [-1, 1]) if real else ("z4", [1, -1, 1j, -1j])
    exact = over_all(letters, A)
    if "not" in name:  # an upper bound, which a symmetric part attains
        assert exact < variance(A, kind) < 3 * exact
    else:
        assert variance(A, kind) == pytest.approx(exact, rel=1e-5)
    assert variance(A, "rademacher") >= over_all([-1, 1], A) * (1 - 1e-5)


@pytest.mark.parametrize("name", ["symmetric", "Hermitian"])
def test_that_of_continuous_probes_is_the_average_over_many_of_them(name):
    A, rng = MATRICES[name], np.random.default_rng(1)
    W = rng.standard_normal((N, 400_000))
    if np.iscomplexobj(A):
        W = (W + 1j * rng.standard_normal(W.shape)) / np.sqrt(2)
    forms = np.sum(W.conj() * (A @ W), axis=0).real
    assert variance(A, "gaussian") == pytest.approx(forms.var(), rel=0.02)
    forms *= N / np.sum(np.abs(W) ** 2, axis=0)  # of the same directions, scaled to sqrt(n)
    assert variance(A, "sphere") == pytest.approx(forms.var(), rel=0.02)


def test_entries_that_do_not_show_it():
    assert variance(np.diag([1.0, 2.0, 3.0]), "rademacher") is None  # rounding errors only
    assert variance(np.ones((2, 3)), "rademacher") is None
    parts = sp.coo_array(([1.0, 1.0, 1.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    repeated = sp.csr_array(([1.0, 1.0, 2.0], [1, 1, 0], [0, 2, 3]), shape=(2, 2))
    assert mf.aslinearoperator(repeated).form_variance("rademacher") is None
    assert variance(parts, "rademacher") == pytest.approx(2 * (4 + 1))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_a_trace_has_the_standard_error_that_the_entries_show(kind):
    rng = np.random.default_rng(2)
    B = rng.standard_normal((400, 400)) * (rng.random((400, 400)) < 0.05)
    A = sp.csr_array(B + B.T)
    estimate = mf.trace(A, num_probes=25, kind=kind, seed=0)
    assert estimate.stderr == pytest.approx(np.sqrt(variance(A, kind) / 25), rel=1e-9)
    assert estimate.degrees_of_freedom > 100
    first = mf.trace(A, num_probes=10, kind=kind, seed=0)
    merged = first.merge(mf.trace(A, num_probes=15, first_probe=10, kind=kind, seed=0))
    assert merged.stderr == pytest.approx(estimate.stderr, rel=1e-9)
    assert merged.num_matvecs == estimate.num_matvecs == 25


def test_small_matrices_have_the_error_of_a_dense_one(monkeypatch):
    monkeypatch.undo()
    A = MATRICES["symmetric"]
    assert variance(A, "rademacher") is None
    sparse = mf.trace(sp.csr_array(A), num_probes=5, seed=0)
    assert sparse.stderr == pytest.approx(mf.trace(A, num_probes=5, seed=0).stderr, rel=1e-9)


def test_large_matrices_keep_their_fused_quadratic_forms(monkeypatch):
    monkeypatch.undo()
    n = 1 << 14
    A = sp.diags_array([np.ones(n - 1), np.full(n, 2.0), np.ones(n - 1)], offsets=[-1, 0, 1])
    estimate = mf.trace(A.tocsr(), num_probes=8, kind="gaussian", seed=0)
    squares = 4 * n + 2 * (n - 1)
    assert estimate.stderr == pytest.approx(np.sqrt(2 * squares / 8), rel=1e-9)
