"""Matrices with known spectra, traces and diagonals."""

import numpy as np
import scipy.fft
import scipy.sparse

from matfree import FunctionOperator, space_like


def haar(n, seed):
    """A random orthogonal matrix, Haar-distributed."""
    G = np.random.default_rng(seed).standard_normal((n, n))
    Q, R = np.linalg.qr(G)
    return Q * np.sign(np.diag(R))


def with_spectrum(spectrum, seed=0):
    """Q diag(spectrum) Q^T with a Haar-distributed Q, exactly symmetric."""
    Q = haar(len(spectrum), seed)
    A = (Q * spectrum) @ Q.T
    return (A + A.T) / 2


def implicit_with_spectrum(spectrum, seed=0):
    """The operator Q diag(spectrum) Q^T, where Q alternates random signs and cosine transforms."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2, len(spectrum), 1))

    def matmat(X):
        for sign in signs:
            X = scipy.fft.dct(sign * X, norm="ortho", axis=0)
        X = spectrum[:, None] * X
        for sign in signs[::-1]:
            X = sign * scipy.fft.idct(X, norm="ortho", axis=0)
        return X

    space = space_like(np.zeros(1), len(spectrum))
    return FunctionOperator(lambda x: matmat(x[:, None])[:, 0], space=space, matmat=matmat)


def nn_spectrum(n):
    """Ten outliers, and a bulk near 0 over many orders of magnitude, 15 % of it negative."""
    u = (np.arange(n - 10) + 0.5) / (n - 10)
    positive = 10 ** (-6 + 5.5 * u / 0.85)
    negative = -(10 ** (-6 + 4.5 * (u - 0.85) / 0.15))
    return np.concatenate((np.geomspace(1, 150, 10), np.where(u < 0.85, positive, negative)))


def wishart(n, samples, seed=42):
    X = np.random.default_rng(seed).standard_normal((samples, n))
    return X.T @ X / samples


def complex_hermitian(n, seed=5):
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    return (G + G.conj().T) / 2


def laplacian_1d(n):
    off = -np.ones(n - 1)
    return scipy.sparse.diags_array([off, 2 * np.ones(n), off], offsets=[-1, 0, 1]).tocsr()


def laplacian_2d(n):
    """The five-point stencil on an n x n grid with Dirichlet boundary conditions."""
    T, identity = laplacian_1d(n), scipy.sparse.eye_array(n)
    return (scipy.sparse.kron(T, identity) + scipy.sparse.kron(identity, T)).tocsr()


def laplacian_2d_spectrum(n):
    line = 2 - 2 * np.cos(np.arange(1, n + 1) * np.pi / (n + 1))
    return np.sort((line[:, None] + line[None, :]).ravel())
