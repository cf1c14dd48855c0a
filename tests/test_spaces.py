"""Sums over rows are computed in double precision, and orthonormal bases from Gram matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import assert_close, tolerance
from support.matrices import haar

import matfree as mf
from matfree.arrays import to_host


def _block(n, k, dtype, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, k))
    if np.issubdtype(dtype, np.complexfloating):
        X = X + 1j * rng.standard_normal((n, k))
    return X.astype(dtype)


def test_gram_dots_and_norms_are_those_of_numpy(backend, dtype):
    X, Y = _block(50, 3, dtype), _block(50, 4, dtype, seed=1)
    space = mf.space_like(backend.asarray(X), 50)
    x, y = backend.asarray(X), backend.asarray(Y)
    assert_close(space.gram(x, y), X.conj().T @ Y, dtype)
    assert_close(space.gram(y, x), Y.conj().T @ X, dtype)
    assert_close(space.dots(x, y[:, :3]), np.sum(X.conj() * Y[:, :3], axis=0), dtype)
    assert_close(space.norms(x), np.linalg.norm(X, axis=0), dtype)


def test_float32_sums_over_a_million_rows_are_accurate_to_double_precision():
    X = np.random.default_rng(0).random((1_000_003, 2)).astype(np.float32)
    space = mf.space_like(X, X.shape[0])
    exact = X.astype(np.float64)
    np.testing.assert_allclose(space.gram(X, X), exact.T @ exact, rtol=1e-12)
    np.testing.assert_allclose(space.dots(X, X), np.sum(exact**2, axis=0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_of_large_or_small_float32_numbers_neither_overflow_nor_underflow(scale):
    X = (np.ones((9, 1)) * scale).astype(np.float32)
    assert_close(mf.space_like(X, 9).norms(X), [3 * scale], np.float32)


SPECTRA = {
    "well conditioned": np.linspace(1, 2, 12),
    "condition 1e14": np.logspace(0, -13.4, 20),
    "rank 5 of 12": np.r_[np.ones(5), np.zeros(7)],
    "one column": np.ones(1),
    "zero": np.zeros(4),
    "tiny": 1e-30 * np.linspace(1, 2, 6),
    "huge": 1e30 * np.linspace(1, 2, 6),
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_orthonormalize_spans_the_range_with_orthonormal_columns(backend, dtype, spectrum):
    k = len(spectrum)
    X = (haar(60, 1)[:, :k] * spectrum @ haar(k, 2)).astype(dtype)
    space = mf.space_like(backend.asarray(X), 60)
    Q = to_host(space.orthonormalize(backend.asarray(X)))
    floor = 32 * np.finfo(dtype).eps * np.abs(spectrum).max()
    assert Q.shape[1] <= k
    assert Q.shape[1] >= np.sum(spectrum > 10 * floor)
    assert np.abs(Q.conj().T @ Q - np.eye(Q.shape[1])).max(initial=0) < tolerance(dtype)
    missed = X - Q @ (Q.conj().T @ X)
    assert np.abs(missed).max(initial=0) <= tolerance(dtype) * np.abs(spectrum).max()


def test_orthonormalize_drops_repeated_and_zero_columns(backend):
    X = np.zeros((30, 5))
    X[3, 0] = X[3, 1] = 1.0
    X[7, 4] = 2.0
    space = mf.space_like(backend.asarray(X), 30)
    assert space.orthonormalize(backend.asarray(X)).shape == (30, 2)


def test_orthonormalize_against_a_basis_spans_only_the_new_directions(backend, dtype):
    U = haar(40, 5).astype(dtype)
    space = mf.space_like(backend.asarray(U), 40)
    taken = backend.asarray(U[:, :4])
    X = (U[:, 2:7] @ haar(5, 1)).astype(dtype)
    Q = to_host(space.orthonormalize(backend.asarray(X), against=taken))
    assert Q.shape == (40, 3)
    assert np.abs(U[:, :4].conj().T @ Q).max() < tolerance(dtype)


def test_unit_vectors_are_columns_of_the_identity(backend, dtype):
    space = mf.space_like(backend.asarray([0], dtype), 6)
    assert np.array_equal(to_host(space.unit_vectors(range(2, 5))), np.eye(6)[:, 2:5])


def test_sixteen_bit_examples_give_float32_and_integers_float64():
    assert mf.space_like(np.zeros(1, np.float16), 3).dtype == np.float32
    assert mf.space_like(np.zeros(1, np.int8), 3).dtype == np.float64


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(0, 6),
    j=st.integers(0, 6),
    dtype=st.sampled_from([np.float32, np.float64, np.complex64, np.complex128]),
    seed=st.integers(0, 2**32),
)
def test_gram_and_orthonormalize_hold_for_any_shape(n, k, j, dtype, seed):
    X, Y = _block(n, k, dtype, seed), _block(n, j, dtype, seed + 1)
    space = mf.space_like(X, n)
    assert_close(space.gram(X, Y), X.conj().T @ Y, dtype, scale=max(1, n))
    Q = space.orthonormalize(X)
    assert Q.shape[1] <= min(n, k)
    assert_close(Q.conj().T @ Q, np.eye(Q.shape[1]), dtype, scale=1)
    assert_close(X - Q @ (Q.conj().T @ X), np.zeros((n, k)), dtype, scale=10)


def test_orthonormalize_does_not_modify_its_arguments(backend):
    X = np.random.default_rng(0).standard_normal((30, 4))
    taken = np.linalg.qr(X[:, :2])[0]
    block, against = backend.asarray(X), backend.asarray(taken)
    Q = to_host(mf.space_like(block, 30).orthonormalize(block, against=against))
    assert Q.shape == (30, 2)
    assert np.array_equal(to_host(block), X)
    assert np.array_equal(to_host(against), taken)
