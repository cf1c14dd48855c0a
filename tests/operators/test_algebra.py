"""The algebra of operators is compared with the algebra of their dense matrices."""

import numpy as np
import pytest
from support.backends import assert_close

import matfree as mf
from matfree.arrays import to_host


def matrices(dtype, m=5, n=5):
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, m, n))
    if np.issubdtype(dtype, np.complexfloating):
        pair = pair + 1j * rng.standard_normal((2, m, n))
    return pair.astype(dtype)


def test_sums_products_multiples_adjoints_and_shifts_are_those_of_the_matrices(backend, dtype):
    A, B = matrices(dtype)
    a, b = (mf.aslinearoperator(backend.asarray(M)) for M in (A, B))
    identity = np.eye(5)
    cases = [
        (a + b, A + B),
        (a - b, A - B),
        (2 * a, 2 * A),
        (a / 4, A / 4),
        (-a, -A),
        (a @ b, A @ B),
        (a.H, A.conj().T),
        (a.T, A.T),
        ((a @ b).H, (A @ B).conj().T),
        ((a + 3 * b).T, (A + 3 * B).T),
        (a.shift(2.5), A + 2.5 * identity),
        (a.restrict(1, 4), A[1:4, 1:4]),
        (a.restrict(1, 4).H, A[1:4, 1:4].conj().T),
        (a.T.H, A.conj()),
        (a.H.T, A.conj()),
    ]
    for operator, dense in cases:
        assert_close(operator.to_dense(), dense, dtype, scale=20)
    assert a.H.H is a
    assert a.T.T is a


def test_complex_factors_conjugate_in_the_adjoint():
    A, _ = matrices(np.complex128)
    assert_close((2j * mf.aslinearoperator(A)).H.to_dense(), (2j * A).conj().T)


def test_rectangular_operators_have_a_space_and_a_domain():
    A, _ = matrices(np.float64, 3, 5)
    a = mf.aslinearoperator(A)
    assert a.shape == (3, 5)
    assert_close((a.H @ a).to_dense(), A.T @ A)
    assert_close(a.rmatvec(np.ones(3)), A.T @ np.ones(3))
    with pytest.raises(mf.OperatorError, match="cannot be multiplied"):
        a @ a
    with pytest.raises(mf.OperatorError, match="cannot be added"):
        a + a.H
    with pytest.raises(mf.OperatorError, match="only a square operator"):
        a.restrict(0, 2)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_lists_and_tables_are_multiplied_like_arrays(backend):
    A, _ = matrices(np.float64, 5, 3)
    a, x = mf.aslinearoperator(backend.asarray(A)), np.arange(3.0)
    assert_close(a @ x.tolist(), A @ x)
    assert_close(a @ np.eye(3).tolist(), A)
    assert_close(np.ones(5).tolist() @ a, np.ones(5) @ A)
    assert_close(mf.aslinearoperator(A) @ np.matrix(np.eye(3)), A)


def test_the_names_of_scipy_are_those_of_the_algebra(backend, dtype):
    A, _ = matrices(dtype, 5, 3)
    a, x = mf.aslinearoperator(backend.asarray(A)), backend.asarray(np.ones(3, dtype))
    assert_close(a.dot(x), A @ np.ones(3), dtype)
    assert_close(a.adjoint().toarray(), A.conj().T, dtype)
    assert_close(a.transpose().toarray(), A.T, dtype)
    assert_close(a.H.dot(a).to_dense(), A.conj().T @ A, dtype)


def test_powers_are_repeated_products(backend, dtype):
    A, _ = matrices(dtype, 5, 3)
    square = A.conj().T @ A
    a = mf.aslinearoperator(backend.asarray(square))
    for exponent in (0, 1, 3, np.int64(2)):
        expected = np.linalg.matrix_power(square, exponent)
        assert_close((a**exponent).to_dense(), expected, dtype)
        assert_close((a**exponent).H.to_dense(), expected.conj().T, dtype)
    with pytest.raises(mf.OperatorError, match="only a square operator"):
        mf.aslinearoperator(backend.asarray(A)) ** 2
    for exponent in (-1, 1.5):
        with pytest.raises(ValueError, match="whole number, at least 0"):
            a**exponent


@pytest.mark.parametrize("factor", [2j, np.complex64(1 - 1j), np.complex128(3j)])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_a_complex_factor_makes_a_real_operator_complex(factor, real, backend):
    A = np.arange(15.0).reshape(5, 3).astype(real)
    a, c = mf.aslinearoperator(backend.asarray(A)), complex(factor)
    product = factor * a
    kind = np.result_type(real, np.complex64)
    assert backend.xp.isdtype(product.dtype, "complex floating")
    assert_close(product.to_dense(), c * A, kind)
    assert_close(product.H.to_dense(), (c * A).conj().T, kind)
    assert_close(product.T.to_dense(), (c * A).T, kind)
    assert_close((a - product).to_dense(), A - c * A, kind)
    assert_close((product.H @ a).to_dense(), np.conj(c) * A.T @ A, kind)
    assert_close((a.H @ a).shift(factor).to_dense(), A.T @ A + c * np.eye(3), kind)


def test_an_array_on_the_left_is_a_row_vector_or_a_block_of_rows():
    A, _ = matrices(np.float64)
    a = mf.aslinearoperator(A)
    assert_close(np.ones(5) @ a, np.ones(5) @ A)
    assert_close(np.eye(5)[:2] @ a, A[:2])


def test_results_have_as_many_dimensions_as_the_arguments():
    a = mf.aslinearoperator(np.diag([1.0, 2.0]))
    assert a.matvec(np.ones(2)).shape == (2,)
    assert a.matvec(np.ones((2, 1))).shape == (2, 1)
    assert (a @ np.ones((2, 3))).shape == (2, 3)
    assert a.matmat(np.ones((2, 0))).shape == (2, 0)


def test_to_dense_gives_the_columns_asked_for(backend):
    A, _ = matrices(np.float64)
    for operator in (mf.aslinearoperator(backend.asarray(A)), 1 * mf.aslinearoperator(A)):
        assert np.array_equal(to_host(operator.to_dense(columns=range(1, 3))), A[:, 1:3])


def test_without_an_adjoint_the_error_says_what_to_define():
    a = mf.aslinearoperator(lambda x: x, shape=(3, 3), like=np.zeros(1))
    with pytest.raises(NotImplementedError, match="define rmatvec"):
        a.H.matvec(np.ones(3))


def test_operators_of_different_precision_cannot_be_combined():
    double, single = (mf.aslinearoperator(np.eye(3, dtype=t)) for t in (np.float64, np.float32))
    with pytest.raises(mf.OperatorError, match="differ in library, dtype or device"):
        double + single


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(4), r"must have shape \(3, k\)"),
        (np.ones(3) * 1j, "x is complex, but the operator is real"),
        ([1.0, 2.0, 3.0], "takes a vector"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_description(x, message):
    with pytest.raises(mf.OperatorError, match=message):
        mf.aslinearoperator(np.eye(3)).matvec(x)


def test_arguments_of_another_library_are_refused():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(mf.OperatorError, match="convert it first"):
        mf.aslinearoperator(np.eye(3)).matvec(strict.ones(3))


def test_repr_names_size_kind_and_precision():
    assert repr(mf.aslinearoperator(np.eye(3))) == "<3x3 DenseOperator of dtype float64>"
    named = mf.aslinearoperator(lambda x: x, shape=(2, 2), like=np.zeros(1))
    assert "<lambda>" in repr(named)
