"""Spectral norms and condition numbers, against LAPACK's singular values."""

import numpy as np
import pytest
from support.backends import MAKERS
from support.matrices import with_spectrum
from support.sharded import run_sharded

import matfree as mf

N = 50
RNG = np.random.default_rng(0)
G = RNG.standard_normal((N, N)) + 4 * np.eye(N)
MATRICES = {
    "definite": with_spectrum(np.geomspace(0.01, 10.0, N), seed=1),
    "indefinite": with_spectrum(np.r_[np.linspace(-3, -0.1, N // 2), np.linspace(0.2, 2, N // 2)]),
    "general": G,
    "complex": G + 1j * RNG.standard_normal((N, N)),
    "tall": RNG.standard_normal((N, 20)),
    "wide": RNG.standard_normal((20, N)),
    "identity": np.eye(N),
    "one entry": np.array([[-3.0]]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_bounds_enclose_the_singular_values(name):
    values = np.linalg.svd(MATRICES[name], compute_uv=False)
    norm = mf.spectral_norm(MATRICES[name], seed=0)
    assert norm.value == pytest.approx(values[0], rel=1e-9)
    assert norm.low <= values[0] * (1 + 1e-12)
    assert norm.high >= values[0] * (1 - 1e-12)
    kappa, exact = mf.condition_number(MATRICES[name], seed=0), values[0] / values[-1]
    assert kappa.value == pytest.approx(exact, rel=1e-5)
    assert kappa.low <= exact * (1 + 1e-9)
    assert kappa.high >= exact * (1 - 1e-9)
    for found in (norm, kappa):
        assert found.converged
        assert found.low_is_certain
        assert not found.high_is_certain
        assert "certain" in str(found)


def test_the_lower_bound_holds_for_a_search_that_was_stopped():
    A = with_spectrum(np.linspace(1.0, 2.0, 300), seed=2)
    with pytest.warns(mf.ConvergenceWarning):
        norm = mf.spectral_norm(A, max_matvecs=8, seed=0)
    assert norm.low <= 2.0 * (1 + 1e-12)
    assert not norm.converged


def test_a_singular_operator_has_an_infinite_condition_number():
    D = np.diag(np.r_[0.0, np.arange(1.0, 20.0)])
    kappa = mf.condition_number(D, seed=0)
    assert kappa.value == np.inf == kappa.high
    assert kappa.low > 1e8  # the residual of the null vector
    assert mf.spectral_norm(np.zeros((5, 5)), seed=0).value == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_operators_of_every_magnitude(scale):
    A = MATRICES["definite"] * scale
    assert mf.spectral_norm(A, seed=0).value == pytest.approx(10.0 * scale, rel=1e-9)
    assert mf.condition_number(A, seed=0).value == pytest.approx(1000.0, rel=1e-6)


def test_other_libraries_and_sharded_vectors():
    A = MATRICES["indefinite"]
    expected = mf.condition_number(A, seed=0).value
    there = mf.condition_number(MAKERS["torch"]().asarray(A), seed=0)
    assert there.value == pytest.approx(expected, rel=1e-8)
    for shard in run_sharded(
        (30, 20), MAKERS["numpy"](), A, lambda B: mf.condition_number(B, seed=0)
    ):
        assert shard.value == pytest.approx(expected, rel=1e-8)


def test_an_operator_without_symmetry_and_adjoint_is_refused():
    operator = mf.aslinearoperator(lambda x: G @ x, shape=G.shape, like=np.zeros(1))
    with pytest.raises(mf.NotHermitianError):
        mf.spectral_norm(operator, seed=0)


def test_a_saved_number_is_loaded(tmp_path):
    norm = mf.spectral_norm(G, seed=0)
    assert mf.load(norm.save(tmp_path / "norm")).interval() == norm.interval()
    assert float(norm) == norm.value
