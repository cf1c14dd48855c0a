"""Eigenpairs that are projected out of traces of functions: their part is exact."""

import warnings

import numpy as np
import pytest
from support.backends import MAKERS
from support.matrices import complex_hermitian, with_spectrum
from support.sharded import run_sharded

import matfree as mf

N = 120
SPECTRUM = np.r_[9.0, 7.0, 6.0, np.linspace(0.5, 2, N - 3)]
A = with_spectrum(SPECTRUM, seed=3)
PAIRS = mf.eigsh(A, 3, rtol=1e-9, seed=0)
RUNS = {
    "exp": (lambda **o: mf.trace_function(A, "exp", **o), np.exp(SPECTRUM).sum()),
    "log": (lambda **o: mf.logdet(A, **o), np.log(SPECTRUM).sum()),
    "schatten": (lambda **o: mf.schatten_norm(A, 3, **o), np.sum(SPECTRUM**3) ** (1 / 3)),
    "count": (
        lambda **o: mf.eigenvalue_count(A, 1.0, 6.5, **o),
        np.sum((SPECTRUM >= 1) & (SPECTRUM < 6.5)),
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("pairs", [PAIRS, 3], ids=["given", "computed"])
def test_the_interval_contains_the_value_and_is_narrower(name, pairs):
    run, exact = RUNS[name]
    options = {"num_probes": 12, "num_steps": 30}
    inside, narrower = 0, 0
    for seed in range(20):
        known, plain = run(eigenpairs=pairs, seed=seed, **options), run(seed=seed, **options)
        low, high = known.interval()
        inside += low <= exact <= high
        narrower += known.half_width() < plain.half_width()
        assert known.num_matvecs > plain.num_matvecs
    assert inside >= 16  # at 95 %, fewer have a probability of 3e-4
    assert narrower >= (19 if name != "log" else 0)


@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
@pytest.mark.parametrize("matrix", [A, complex_hermitian(40)], ids=["real", "complex"])
def test_deviations_are_those_of_the_projected_function(kind, matrix):
    pairs = mf.eigsh(matrix, 3, rtol=1e-10, seed=0)
    values, V = np.linalg.eigh(matrix)
    keep = np.argsort(np.abs(values))[:-3]
    B = (V[:, keep] * np.cos(values[keep])) @ V[:, keep].conj().T
    n, c = len(matrix), 1 if np.iscomplexobj(matrix) else 2
    estimate = mf.trace_function(
        matrix, np.cos, num_steps=n, num_probes=15, kind=kind, eigenpairs=pairs, seed=1,
        reorthogonalize="full",
    )  # fmt: skip
    W = mf.space_like(matrix, n).probes(15, seed=1, kind=kind)
    x = np.sum(W.conj() * (B @ W), axis=0).real
    squares = c * np.sum(np.abs(B @ W) ** 2, axis=0)
    if kind == "sphere":
        squares -= c * x**2 / n
    known = np.sum(np.cos(pairs.values))
    np.testing.assert_allclose(estimate.samples, x + known, atol=1e-8)
    np.testing.assert_allclose(estimate.deviations**2, squares, rtol=1e-6)


def test_functions_of_rank_zero_on_the_complement_are_exact():
    values, V = np.linalg.eigh(A)
    low_rank = (V[:, -3:] * values[-3:]) @ V[:, -3:].T
    pairs = mf.eigsh(low_rank, 3, rtol=1e-10, seed=0)
    estimate = mf.trace_function(low_rank, np.square, num_probes=8, eigenpairs=pairs, seed=0)
    assert estimate.value == pytest.approx(np.sum(values[-3:] ** 2), rel=1e-12)
    assert estimate.stderr < 1e-10


@pytest.mark.parametrize("budget", [41, 45, 60, 100, 119])
@pytest.mark.parametrize("pairs", [PAIRS, 3, 50], ids=["given", "3", "50"])
def test_no_budget_is_exceeded(budget, pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        for options in ({}, {"rtol": 1e-9}):
            estimate = mf.trace_function(
                A, "exp", max_matvecs=budget, eigenpairs=pairs, seed=0, **options
            )
            assert estimate.num_matvecs <= budget
    exact = mf.trace_function(A, "exp", rtol=1e-9, max_matvecs=8 * N, eigenpairs=pairs, seed=0)
    assert exact.value == pytest.approx(np.exp(SPECTRUM).sum(), rel=1e-10)
    assert exact.converged


def test_runs_with_the_same_pairs_merge_and_resume(tmp_path):
    options = {"num_steps": 20, "seed": 2, "eigenpairs": PAIRS, "block_size": 3}
    whole = mf.logdet(A, num_probes=12, **options)
    parts = [mf.logdet(A, num_probes=6, first_probe=first, **options) for first in (0, 6)]
    merged = parts[0].merge(parts[1])
    assert merged.value == pytest.approx(whole.value, rel=1e-12)
    assert merged.stderr == pytest.approx(whole.stderr, rel=1e-9)
    for pairs in (PAIRS, 3):
        path = tmp_path / f"{type(pairs).__name__}.npz"
        options["eigenpairs"] = pairs
        unbroken = mf.logdet(A, num_probes=12, **options)
        mf.logdet(A, num_probes=12, checkpoint=path, callback=lambda e: True, **options)
        resumed = mf.logdet(A, num_probes=12, checkpoint=path, **options)
        assert resumed.value == pytest.approx(unbroken.value, rel=1e-12)
        assert resumed.stderr == pytest.approx(unbroken.stderr, rel=1e-9)
        assert not list(tmp_path.glob("*eigenpairs*"))
        with pytest.raises(ValueError, match="eigenpairs"):
            mf.logdet(A, num_probes=12, checkpoint=path, **(options | {"eigenpairs": 2}))


def test_pairs_of_another_operator_and_other_values_are_refused():
    with pytest.raises(ValueError, match="not those of this operator"):
        mf.logdet(A + np.diag(np.arange(N)), eigenpairs=PAIRS, num_probes=2, seed=0)
    for wrong in (-1, 2.5, "three", True):
        with pytest.raises(ValueError, match="eigenpairs, unless it is an EigenResult"):
            mf.logdet(A, eigenpairs=wrong, num_probes=2, seed=0)


def test_sharded_vectors_give_the_same_trace():
    def run(B):
        return mf.trace_function(B, "exp", num_probes=4, num_steps=15, eigenpairs=2, seed=1)

    whole = run(A)
    for found in run_sharded((70, 50), MAKERS["numpy"](), A, run):
        assert found.value == pytest.approx(whole.value, rel=1e-9)
        assert found.stderr == pytest.approx(whole.stderr, rel=1e-6)
