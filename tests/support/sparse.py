"""Sparse matrices that are difficult for kernels which process them row by row."""

import numpy as np
import scipy.sparse as sp

from support.matrices import nn_spectrum, with_spectrum


def sparse_hermitian(n, dtype=np.float64, seed=0):
    """Rows of very different lengths, some of them empty."""
    rng = np.random.default_rng(seed)
    G = np.where(rng.random((n, n)) < 0.1, rng.standard_normal((n, n)), 0.0)
    if np.issubdtype(dtype, np.complexfloating):
        G = G * (1 + 0.5j * rng.standard_normal((n, n)))
    G[:, 0] = rng.standard_normal(n)
    H = (G + G.conj().T).astype(dtype)
    empty = rng.choice(np.arange(1, n), n // 8, replace=False)
    H[empty, :] = 0
    H[:, empty] = 0
    return H


def with_indices(A, index_type):
    A = sp.csr_array(A)
    A.indices, A.indptr = A.indices.astype(index_type), A.indptr.astype(index_type)
    return A


def in_disorder(A):
    """The same matrix with unsorted indices, and with every entry split into two duplicates."""
    A = sp.csr_array(A)
    rows = []
    for i in range(A.shape[0]):
        entries = slice(A.indptr[i], A.indptr[i + 1])
        columns, data = A.indices[entries], A.data[entries]
        rows.append((np.r_[columns[::-1], columns], np.r_[0.25 * data[::-1], 0.75 * data]))
    indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    indices, data = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    B = sp.csr_array((data, indices, indptr), shape=A.shape)
    assert B.nnz == 0 or not B.has_canonical_format
    return B


HARD = {  # dense, symmetric
    "identity": np.eye(600),
    "zero": np.zeros((40, 40)),
    "one by one": np.full((1, 1), 3.0),
    "few eigenvalues": np.diag(np.r_[np.ones(20), 3.0 * np.ones(19), 0.0]),
    "empty rows": sparse_hermitian(80),
    "tiny": 1e-30 * sparse_hermitian(80),
    "huge": 1e30 * sparse_hermitian(80),
    "rank one": np.outer(np.r_[1.0, np.zeros(39)], np.r_[1.0, np.zeros(39)]),
    "network": with_spectrum(nn_spectrum(80)),
}
