"""Traces of functions with a Krylov space that is not sampled."""

import warnings

import numpy as np
import pytest
from support.backends import MAKERS
from support.matrices import with_spectrum
from support.sharded import run_sharded

import matfree as mf

N = 512
BUDGET = {"max_matvecs": 400, "num_steps": 25}


def ising(num_spins):
    """The Hamiltonian of the Ising chain in a transverse field of strength 1, dense."""
    z, x = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    H = np.zeros((2**num_spins, 2**num_spins))

    def at(operator, site):
        return np.kron(np.kron(np.eye(2**site), operator), np.eye(2 ** (num_spins - site - 1)))

    for site in range(num_spins):
        H -= at(x, site)
    for site in range(num_spins - 1):
        H -= at(z, site) @ at(z, site + 1)
    return H


CHAIN = ising(9)
FLAT = with_spectrum(np.random.default_rng(0).uniform(0.1, 2.0, N), seed=1)
PROBLEMS = {
    "cold chain": (-3.0 * CHAIN, "exp", np.exp),
    "warm chain": (-0.6 * CHAIN, "exp", np.exp),
    "decay": (with_spectrum(1 / np.arange(1.0, N + 1), seed=2), "sqrt", np.sqrt),
    "flat": (FLAT, "log", np.log),
}
GAINS = {"cold chain": 100.0, "warm chain": 4.0, "decay": 4.0}


def exact(name):
    A, _, f = PROBLEMS[name]
    return f(np.linalg.eigvalsh(A)).sum()


def runs(name, method, seeds=12):
    A, f, _ = PROBLEMS[name]
    return [mf.trace_function(A, f, method=method, seed=seed, **BUDGET) for seed in range(seeds)]


def error(estimates, value):
    return float(np.sqrt(np.mean([(e.value - value) ** 2 for e in estimates])))


@pytest.mark.parametrize("method", ["krylov", "auto"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_intervals_hold_and_the_budget_is_an_upper_bound(name, method):
    value, found = exact(name), runs(name, method)
    inside = [low <= value <= high for low, high in (e.interval() for e in found)]
    assert sum(inside) >= 10  # 12 trials of 95 %: fewer happens once in 50 problems
    assert all(e.num_matvecs <= 400 for e in found)
    assert not any(e.mergeable for e in found)


@pytest.mark.parametrize("method", ["krylov", "auto"])
@pytest.mark.parametrize("name", GAINS)
def test_errors_are_far_below_those_of_sampling_alone(name, method):
    value = exact(name)
    assert error(runs(name, method), value) * GAINS[name] <= error(runs(name, "slq"), value)


def test_auto_declines_a_space_without_gain():
    assert {e.method for e in runs("flat", "auto")} == {"Lanczos quadrature"}
    assert {e.method for e in runs("flat", "krylov")} != {"Lanczos quadrature"}
    with_space = runs("cold chain", "auto")
    assert {e.method for e in with_space} == {"Lanczos quadrature outside a Krylov space"}


def test_the_mean_over_many_seeds_is_the_trace():
    A = with_spectrum(np.geomspace(0.01, 10.0, 90), seed=3)
    options = {"max_matvecs": 80, "num_steps": 8, "reorthogonalize": "full"}
    found = [mf.trace_function(A, np.sqrt, method="krylov", seed=s, **options) for s in range(60)]
    values = np.array([e.value for e in found])
    value = np.sqrt(np.geomspace(0.01, 10.0, 90)).sum()
    bias = max(e.bias for e in found)
    assert abs(values.mean() - value) <= 4 * values.std() / np.sqrt(60) + min(bias, 0.02 * value)
    assert abs(values.mean() / value - 1) < 0.02


def test_a_complex_function_has_both_parts():
    A, _, _ = PROBLEMS["decay"]
    z = 0.3 + 0.2j
    found = mf.trace_function(A, lambda x: 1 / (x - z), method="krylov", seed=0, **BUDGET)
    value = (1 / (1 / np.arange(1.0, N + 1) - z)).sum()
    for part, wanted in ((found.real, value.real), (found.imag, value.imag)):
        assert abs(part.value - wanted) <= 2 * part.half_width()


def test_a_complex_operator():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((200, 200)) + 1j * rng.standard_normal((200, 200)))[0]
    spectrum = np.r_[np.linspace(6, 8, 5), np.linspace(0, 1, 195)]
    A = (Q * spectrum) @ Q.conj().T
    found = mf.trace_function(A, "exp", method="krylov", max_matvecs=150, num_steps=12, seed=0)
    assert abs(found.value / np.exp(spectrum).sum() - 1) < 1e-2


def test_a_fixed_number_of_probes_has_a_space_of_the_same_cost():
    A, f, _ = PROBLEMS["cold chain"]
    found = mf.trace_function(A, f, method="krylov", num_probes=4, num_steps=25, seed=0)
    assert found.num_probes == 4
    assert found.num_matvecs == 200
    assert abs(found.value / exact("cold chain") - 1) < 1e-2


@pytest.mark.parametrize("name", ["torch", "strict"])
def test_other_libraries_give_the_same_numbers(name):
    A, f, _ = PROBLEMS["warm chain"]
    options = {"method": "auto", "max_matvecs": 200, "num_steps": 12, "seed": 1}
    here = mf.trace_function(A, f, **options)
    there = mf.trace_function(MAKERS[name]().asarray(A), f, **options)
    assert there.value == pytest.approx(here.value, rel=1e-6)
    assert there.num_matvecs == here.num_matvecs


def test_sharded_vectors_give_the_same_numbers():
    A, f, _ = PROBLEMS["warm chain"]

    def run(operator):
        return mf.trace_function(
            operator, f, method="krylov", max_matvecs=200, num_steps=12, seed=1
        )

    whole = run(mf.aslinearoperator(A))
    for shard in run_sharded((300, 12, 200), MAKERS["numpy"](), A, run):
        assert shard.value == pytest.approx(whole.value, rel=1e-6)


@pytest.mark.parametrize("method", ["krylov", "auto"])
def test_an_interrupted_run_continues_from_its_checkpoint(tmp_path, method):
    A, f, _ = PROBLEMS["warm chain"]
    options = {"method": method, "seed": 3, "checkpoint": tmp_path / "run.npz", **BUDGET}
    whole = mf.trace_function(A, f, **{**options, "checkpoint": None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        mf.trace_function(A, f, block_size=1, callback=lambda e: e.num_probes >= 2, **options)
    found = mf.trace_function(A, f, block_size=1, **options)
    assert found.value == pytest.approx(whole.value, rel=1e-9)
    assert found.num_probes == whole.num_probes


def test_a_small_memory_makes_the_space_smaller():
    A, f, _ = PROBLEMS["cold chain"]
    found = mf.trace_function(A, f, method="krylov", seed=0, memory=300_000, **BUDGET)
    assert abs(found.value / exact("cold chain") - 1) < 0.1


def test_what_is_contradictory_is_refused():
    with pytest.raises(ValueError, match='method must be "slq", "krylov" or "auto"'):
        mf.trace_function(FLAT, "log", method="all")
    with pytest.raises(ValueError, match="not both"):
        mf.trace_function(FLAT, "log", method="krylov", eigenpairs=3, **BUDGET)
