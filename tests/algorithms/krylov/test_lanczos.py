"""The Lanczos factorization satisfies the equations of its docstring."""

import numpy as np
import pytest
import scipy.sparse as sp
from support.backends import assert_close, tolerance
from support.matrices import complex_hermitian, nn_spectrum, with_spectrum

import matfree as mf
from matfree.arrays import to_host


def hermitian(dtype, n=60):
    if np.issubdtype(dtype, np.complexfloating):
        return complex_hermitian(n).astype(dtype)
    return with_spectrum(nn_spectrum(n)).astype(dtype)


def test_the_factorization_holds_and_the_basis_is_orthonormal(backend, dtype):
    A = hermitian(dtype)
    operator = backend.asarray(A)
    start = mf.space_like(operator, 60).probes(2, seed=0, kind="gaussian")
    T = mf.lanczos(operator, start, 10)
    scale = np.linalg.norm(A, 2)
    for p in range(2):
        V = to_host(T.bases[p])
        R = A @ V.T - V.T @ T.dense(p)
        assert_close(np.linalg.norm(R[:, -1]), T.residual_norms[p], dtype, scale=scale)
        assert np.abs(R[:, :-1]).max() <= tolerance(dtype) * scale
        assert np.abs(V @ V.conj().T - np.eye(10)).max() <= tolerance(dtype)
        assert_close(V[0] * T.start_norms[p], to_host(start)[:, p], dtype)


def test_a_block_of_start_vectors_gives_the_results_of_separate_runs(backend):
    A = backend.asarray(hermitian(np.float64))
    start = mf.space_like(A, 60).probes(3, seed=0)
    batch = mf.lanczos(A, start, 15)
    for p in range(3):
        alone = mf.lanczos(A, start[:, p], 15)
        assert_close(batch.alphas[p], alone.alphas[0], scale=150)
        assert_close(batch.betas[p], alone.betas[0], scale=150)
    assert batch.num_matvecs == 45


def test_every_run_of_a_block_ends_when_its_own_krylov_space_is_invariant():
    A = np.diag(np.r_[1.0, 2.0, 3.0, np.linspace(4, 9, 27)])
    start = np.zeros((30, 3))
    start[0, 0] = 5.0  # an eigenvector
    start[:3, 1] = 1.0  # a sum of three
    start[:, 2] = 1.0
    T = mf.lanczos(A, start, 20)
    assert [len(a) for a in T.alphas] == [1, 3, 20]
    assert T.residual_norms[0] == 0.0
    assert_close(T.quadrature(1)[0], [1.0, 2.0, 3.0])
    assert_close(T.quadrature(1)[1], np.ones(3) / 3)


def test_moments_without_reorthogonalization_are_the_same():
    A = with_spectrum(np.linspace(1, 2, 200))
    v = mf.space_like(A, 200).probes(1, seed=0)
    full, bare = (mf.lanczos(A, v, 25, reorthogonalize=r) for r in ("full", "none"))
    for p in range(1, 6):
        moments = [t.quadrature()[1] @ t.quadrature()[0] ** p for t in (full, bare)]
        assert abs(moments[0] / moments[1] - 1) < 1e-10
    assert mf.lanczos(A, v, 5, reorthogonalize="none", keep_basis=False).bases == ()


def test_all_n_steps_give_every_eigenvalue():
    A = hermitian(np.float64, 30)
    nodes, _ = mf.lanczos(A, np.ones(30), 30).quadrature()
    assert_close(nodes, np.linalg.eigvalsh(A))


@pytest.mark.parametrize(
    ("start", "steps", "message"),
    [
        (np.ones(5), 3, r"start must have shape \(60,\)"),
        (np.zeros(60), 3, "start must not be zero"),
        (np.ones(60), 0, r"num_steps must be in \[1, n\]: got 0"),
        (np.ones(60), 61, "pass num_steps=60 or fewer"),
    ],
)
def test_bad_arguments_are_refused(start, steps, message):
    with pytest.raises(ValueError, match=message):
        mf.lanczos(hermitian(np.float64), start, steps)
    with pytest.raises(ValueError, match="reorthogonalize"):
        mf.lanczos(np.eye(60), np.ones(60), 2, reorthogonalize="partial")


class Stepping:
    """A user's operator with a ``lanczos_step`` method."""

    shape, dtype, calls = (60, 60), np.float64, 0

    def __init__(self):
        self.matrix = hermitian(np.float64)

    def matvec(self, x):
        return self.matrix @ x

    def lanczos_step(self, V, previous, beta, scale):
        self.calls += 1
        U = V * scale
        assert_close(np.linalg.norm(U, axis=0), np.ones(U.shape[1]))
        W = self.matrix @ U - previous * beta
        alpha = np.sum(U * W, axis=0)
        R = W - U * alpha
        return R, alpha, np.linalg.norm(R, axis=0)


def test_the_lanczos_step_of_an_operator_is_used_without_reorthogonalization():
    start = mf.space_like(np.empty(0), 60).probes(3, seed=0)
    operator, steps = Stepping(), 10
    T = mf.lanczos(operator, start, steps, reorthogonalize="none")
    plain = mf.lanczos(operator.matrix, start, steps, reorthogonalize="none")
    # The first step shows the magnitude; the second checks that the operator is Hermitian.
    assert operator.calls == steps - 2
    assert T.num_matvecs == plain.num_matvecs
    assert_close(T.alphas, plain.alphas, scale=1e3)
    assert_close(T.betas, plain.betas, scale=1e3)
    mf.lanczos(operator, start, steps)
    assert operator.calls == steps - 2  # none if the whole basis is projected out


def equicorrelation(n, correlation, rest):
    """correlation * ones + rest * I, of which every balanced vector of signs is an eigenvector."""
    return np.full((n, n), correlation) + rest * np.eye(n)


SYMMETRIC_PATHS = {
    "logdet": lambda A, seed: mf.logdet(A, num_probes=8, seed=seed),
    "norm": lambda A, seed: mf.schatten_norm(A, 1, num_probes=8, seed=seed),
    "bare": lambda A, seed: mf.spectral_density(A, reorthogonalize="none", seed=seed),
    "half": lambda A, seed: mf.spectral_density(A, reorthogonalize="half", seed=seed),
    "full": lambda A, seed: mf.spectral_density(A, seed=seed),
    "kpm": lambda A, seed: mf.spectral_density(A, method="kpm", seed=seed),
    "eigsh": lambda A, seed: mf.eigsh(
        A, 2, rtol=1e-4, start=mf.aslinearoperator(A).space.probes(1, seed=seed), seed=seed
    ),
    "svds": lambda A, seed: mf.svds(A, 2, seed=seed),
}


@pytest.mark.parametrize("name", SYMMETRIC_PATHS)
@pytest.mark.parametrize(("n", "correlation", "rest"), [(8, 1.0, 0.01), (20, 1.0, 0.02)])
def test_symmetric_matrices_are_not_refused_if_a_start_vector_is_an_eigenvector(
    name, n, correlation, rest, backend, dtype
):
    matrix = backend.asarray(equicorrelation(n, correlation, rest), dtype)
    if name == "half" and not hasattr(backend.xp, "float16"):
        pytest.skip("the library has no 16-bit numbers")
    for seed in range(6):
        SYMMETRIC_PATHS[name](matrix, seed)  # raises NotHermitianError otherwise


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_the_end_of_a_krylov_space_gives_the_exact_measure_of_the_probe(form, seed):
    A = equicorrelation(30, 0.9, 0.1)
    truth = 29 * np.log(0.1) + np.log(0.1 + 30 * 0.9)
    estimate = mf.logdet(form(A), num_probes=4, seed=seed)
    w = mf.space_like(np.zeros(1), 30).probes(4, seed=seed)
    weights = (w.sum(axis=0) / 30) ** 2
    samples = 30 * (weights * np.log(27.1) + (1 - weights) * np.log(0.1))
    np.testing.assert_allclose(estimate.samples, samples, rtol=1e-9)
    assert estimate.bias <= 1e-9 * abs(truth)


def test_a_balanced_start_does_not_hide_an_asymmetry():
    A = equicorrelation(20, 1.0, 0.02)
    A[0, 1] += 0.5
    for seed in range(6):
        with pytest.raises(mf.NotHermitianError):
            mf.logdet(A, num_probes=8, seed=seed)
