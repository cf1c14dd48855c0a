"""Operators for which intervals of traces are difficult, or were found to be."""

import numpy as np
import scipy.linalg
import scipy.sparse

import matfree as mf


def operators(n=100):
    """Hermitian matrices by name, (m, m) with m from 1 to n."""
    rng = np.random.default_rng(7)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    i, eye = np.arange(1.0, n + 1), np.eye(n)

    def rotated(spectrum):
        return symmetric((Q * spectrum) @ Q.T)

    G = rng.standard_normal((n, n))
    found = {
        "flat, 1 to 2": rotated(np.linspace(1, 2, n)),
        "identity + noise": eye + 0.01 * symmetric(G) / n**0.5,
        "1/i": rotated(1 / i),
        "i^-1.5": rotated(i**-1.5),
        "i^-2": rotated(i**-2),
        "0.7^i": rotated(0.7**i),
        "heavy tails": rotated(np.sort(np.abs(rng.standard_cauchy(n)))),
        "network": rotated(
            np.r_[50, 30, 20, 10, 5, 3, 2, 1, 0.5, 0.5, 0.2 * rng.standard_normal(n - 10)]
        ),
        "one outlier": rotated(np.r_[50.0, np.ones(n - 1)]),
        "two outliers of opposite sign": rotated(np.r_[50.0, -50.0, np.ones(n - 2)]),
        "rank one": rotated(np.r_[1.0, np.zeros(n - 1)]),
        "rank ten": rotated(np.r_[np.ones(10), np.zeros(n - 10)]),
        "all ones": np.ones((n, n)),
        "outlier on an axis": np.diag(np.r_[50.0, np.ones(n - 1)]) + 0.1 * symmetric(G) / n**0.5,
        "Gaussian, trace near 0": symmetric(G) / n**0.5,
        "skewed, trace near 0": rotated(np.r_[n - 1.0, -np.ones(n - 1)]),
        "Wishart": wishart(rng, n, n // 2),
        "diagonal": np.diag(i),
        "log of 1/i": rotated(-np.log(i)),
    }
    return found | graphs(rng, n) | blocks(rng, n) | others(rng, n, Q)


def graphs(rng, n):
    eye = np.eye(n)
    star = np.zeros((n, n))
    star[0, 1:] = star[1:, 0] = -1
    adjacency = np.triu(rng.random((n, n)) < 0.06, 1) * 1.0
    adjacency += adjacency.T
    values, V = np.linalg.eigh(adjacency)
    path = 2 * eye - np.eye(n, k=1) - np.eye(n, k=-1)
    arrow = np.diag(np.linspace(1, 2, n))
    arrow[0, 1:] = arrow[1:, 0] = 1
    return {
        "path Laplacian": path,
        "inverse of a path Laplacian": symmetric(np.linalg.inv(path)),
        "star Laplacian": star - np.diag(star.sum(0)),
        "random graph": adjacency,
        "Laplacian of a random graph": np.diag(adjacency.sum(0)) - adjacency,
        "exponential of a random graph": symmetric((V * np.exp(values)) @ V.T),
        "cube of a random graph": symmetric(adjacency @ adjacency @ adjacency),
        "complete graph": np.ones((n, n)) - eye,
        "arrow": arrow,
    }


def blocks(rng, n):
    """Matrices whose samples of random signs take few values."""
    found = {}
    for width in (2, 3, 4):
        A = np.eye(n) if width == 2 else np.zeros((n, n))
        A[:width, :width] += 50 * (np.ones((width, width)) - np.eye(width))
        found[f"{width} x {width} block"] = A
    found["pairs"] = scipy.linalg.block_diag(*[[[1.0, 0.9], [0.9, 1.0]]] * (n // 2))
    found["growing pairs"] = scipy.linalg.block_diag(
        *[[[1.0, 0.9 * 1.3**-j], [0.9 * 1.3**-j, 1.0]] for j in range(n // 2)]
    )
    found["dense blocks"] = scipy.linalg.block_diag(*[wishart(rng, 10, 3)] * (n // 10))
    return found


def others(rng, n, Q):
    i, x = np.arange(n), np.sort(rng.random(n))
    graded = 10.0 ** (-4 * i / n)
    found = {
        "kernel matrix": np.exp(-((x[:, None] - x) ** 2) / 0.02),
        "Hilbert": 1 / (i[:, None] + i + 1.0),
        "graded": symmetric(rng.standard_normal((n, n))) * np.sqrt(np.outer(graded, graded)),
        "equicorrelated": 0.5 * np.eye(n) + 0.5,
        "n = 2": np.array([[1.0, 0.7], [0.7, 2.0]]),
        "n = 3": wishart(rng, 3, 3),
        "n = 5": wishart(rng, 5, 5),
        "n = 8, rank two": wishart(rng, 8, 2),
    }
    C = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    unitary = np.linalg.qr(C)[0]
    found["complex Gaussian"] = (C + C.conj().T) / (2 * n) ** 0.5
    decaying = (unitary * (i + 1.0) ** -2) @ unitary.conj().T
    found["complex i^-2"] = (decaying + decaying.conj().T) / 2
    found["i^-2 in single precision"] = symmetric((Q * (i + 1.0) ** -2) @ Q.T).astype(np.float32)
    return found


def symmetric(A):
    return (A + A.T) / 2


def wishart(rng, n, rank):
    X = rng.standard_normal((n, rank))
    return X @ X.T


def low_rank(values, n=4000, shift=0.0):
    """shift I plus an operator with the given eigenvalues, and its trace; n is large."""
    U = np.linalg.qr(np.random.default_rng(1).standard_normal((n, len(values))))[0]
    d = np.asarray(values, dtype=float)
    space = mf.space_like(np.zeros(1), n)

    def matmat(X):
        return U @ (d[:, None] * (U.T @ X)) + shift * X

    A = mf.FunctionOperator(lambda x: matmat(x[:, None])[:, 0], space=space, matmat=matmat)
    return A, d.sum() + n * shift


def large():
    """Operators with n = 4000, for which a tolerance is met long before the exact answer."""
    i = np.arange(1.0, 41)
    network = [50, 30, 20, 10, 5, 3, 2, 1, 0.5, 0.5]
    found = {
        "one outlier": low_rank([1.0]),
        "two outliers": low_rank([1.0, 0.1]),
        "network": low_rank(network),
        "network + 0.01": low_rank(network, shift=0.01),
        "ten equal": low_rank(np.ones(10)),
        "1/i": low_rank(1 / i),
        "i^-2": low_rank(i**-2),
        "0.5^i": low_rank(0.5**i),
        "linear": low_rank(np.linspace(1, 2, 40)),
        "positive and negative": low_rank(np.r_[3.0, 2.0, 1.0, -1.0, -0.5]),
    }
    main, off = 2 * np.ones(4000), -np.ones(3999)
    path = scipy.sparse.diags_array([main, off, off], offsets=[0, 1, -1], format="csr")
    return found | {"path Laplacian": (path, 8000.0)}
