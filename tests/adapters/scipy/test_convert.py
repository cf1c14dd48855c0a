"""Conversion from SciPy objects and back, with the properties of SciPy's operators as tests."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.backends import assert_close
from support.matrices import complex_hermitian

import matfree as mf
from matfree_scipy import to_scipy

RNG = np.random.default_rng(0)
DENSE = np.where(RNG.random((30, 30)) < 0.2, RNG.standard_normal((30, 30)), 0.0)
DENSE = DENSE + DENSE.T + 9 * np.eye(30)
FORMATS = ["csr", "csc", "coo", "dia", "bsr", "lil", "dok"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
def test_every_sparse_format_multiplies_like_its_dense_matrix(name, kind):
    rectangular = DENSE[:, :20]
    A = getattr(sp, f"{name}_{kind}")(rectangular)
    ours = mf.aslinearoperator(A)
    X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal((30, 2))
    assert_close(ours @ X, rectangular @ X)
    assert_close(ours.H @ Y, rectangular.T @ Y)
    assert (ours @ X).flags.c_contiguous
    assert type(ours @ X) is np.ndarray


@pytest.mark.parametrize("wrong", [33, 10**8, -5])
@pytest.mark.parametrize("name", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("form", [mf.aslinearoperator, sla.aslinearoperator])
def test_indices_out_of_range_are_refused_before_the_first_product(name, wrong, form):
    A = sp.csr_array(DENSE).asformat(name, copy=True)
    (A.coords[0] if name == "coo" else A.indices)[3] = wrong
    with pytest.raises(mf.OperatorError, match=rf"index {wrong}, which is not in \[0, \d+\)"):
        mf.trace(form(A), num_probes=2, seed=0)


def test_indices_out_of_range_are_found_inside_of_sums_and_products():
    A = sp.csr_array(DENSE)
    damaged = A.copy()
    damaged.indices[3] = 10**8
    a, b = sla.aslinearoperator(A), sla.aslinearoperator(damaged)
    for operator in (a + b, a @ b, 2 * b, b.T):
        with pytest.raises(mf.OperatorError, match="index 100000000"):
            mf.aslinearoperator(operator)


@pytest.mark.parametrize(("place", "wrong"), [(5, 10**6), (-1, 10**6), (0, -4), (5, 0)])
@pytest.mark.parametrize("name", ["csr", "csc"])
def test_pointers_that_do_not_ascend_within_the_entries_are_refused(name, place, wrong):
    A = sp.csr_array(DENSE).asformat(name, copy=True)
    A.indptr[place] = wrong
    with pytest.raises(mf.OperatorError, match="pointers of the sparse matrix must be 31 numbers"):
        mf.trace(A, num_probes=2, seed=0)


def test_a_matrix_with_fewer_entries_than_indices_is_refused():
    A = sp.csr_array(DENSE)
    A.data = A.data[:10]
    with pytest.raises(mf.OperatorError, match="pointers of the sparse matrix"):
        mf.trace(A, num_probes=2, seed=0)


def test_an_operator_without_adjoint_raises_not_implemented_error():
    with pytest.raises(NotImplementedError):
        mf.aslinearoperator(Strict()).H.matmat(np.ones((30, 2)))


def test_csr_is_not_copied_and_integers_are_promoted():
    A = sp.csr_array(DENSE)
    assert np.shares_memory(mf.aslinearoperator(A).matrix.data, A.data)
    assert mf.trace(sp.eye_array(5, dtype=np.int64), num_probes=1, seed=0).value == 5.0


def test_complex_sparse_adjoints_conjugate():
    A = complex_hermitian(12) @ np.diag(np.arange(12) + 1j)
    ours = mf.aslinearoperator(sp.csc_array(A))
    assert_close(ours.H.to_dense(), A.conj().T)
    assert_close(ours.T.to_dense(), A.T)


class Strict(sla.LinearOperator):
    """A subclass that accepts only vectors of shape (n,), as SciPy 1.18 requires."""

    def __init__(self):
        super().__init__(np.float64, (30, 30))

    def _matvec(self, x):
        assert x.shape == (30,), "matvec is called with vectors only"
        return DENSE @ x

    def _matmat(self, X):
        assert X.shape[0] == 30
        return DENSE @ X


def test_a_linear_operator_receives_blocks_by_matmat_and_vectors_by_matvec():
    ours = mf.aslinearoperator(Strict())
    X = RNG.standard_normal((30, 4))
    assert_close(ours @ X, DENSE @ X)
    assert_close(ours @ X[:, 0], DENSE @ X[:, 0])


class Batched1_18(sla.LinearOperator):
    """The rule of SciPy 1.18: matvec takes a 2-D argument as a batch of rows."""

    def __init__(self):
        super().__init__(np.float64, (30, 30))

    def _matvec(self, x):
        return x @ DENSE.T  # correct for (n,) and for a batch (..., n), but not for columns

    def _matmat(self, X):
        return DENSE @ X


def test_blocks_are_not_taken_as_the_row_batches_of_scipy_1_18():
    X = RNG.standard_normal((30, 30))  # square, so that the shape would not reveal a mistake
    assert_close(mf.aslinearoperator(Batched1_18()) @ X, DENSE @ X)


def test_an_operator_without_dtype_is_refused_unless_an_example_is_passed():
    operator = Strict()
    operator.dtype = None
    with pytest.raises(mf.OperatorError, match="declares no dtype"):
        mf.aslinearoperator(operator)
    X = RNG.standard_normal((30, 2))
    assert_close(mf.aslinearoperator(operator, like=np.zeros(1)) @ X, DENSE @ X)


def test_batched_operators_are_refused():
    batched = Strict()
    batched.shape = (2, 30, 30)
    with pytest.raises(mf.OperatorError, match="batched"):
        mf.aslinearoperator(batched)


def test_to_scipy_keeps_matmat_which_scipy_does_not():
    blocks = []

    def matmat(X):
        blocks.append(X.shape)
        return DENSE @ X

    ours = mf.FunctionOperator(lambda x: DENSE @ x, space=mf.space_like(DENSE, 30), matmat=matmat)
    there = to_scipy(ours)
    blocks.clear()
    assert_close(there.matmat(np.eye(30)), DENSE)
    assert blocks == [(30, 30)]
    assert there.dtype == np.float64


def test_to_scipy_converts_arrays_of_other_libraries():
    torch = pytest.importorskip("torch")
    there = to_scipy(torch.tensor(DENSE))
    values = sla.eigsh(there, 3, return_eigenvectors=False)
    assert_close(np.sort(values), np.linalg.eigvalsh(DENSE)[-3:], scale=1e3)
    assert_close(there.rmatvec(np.ones(30)), DENSE.T @ np.ones(30))


SOLVERS = {
    "eigsh": lambda A, b: sla.eigsh(A, 2)[0],
    "cg": lambda A, b: sla.cg(A, b)[0],
    "minres": lambda A, b: sla.minres(A, b)[0],
    "gmres": lambda A, b: sla.gmres(A, b)[0],
    "lsqr": lambda A, b: sla.lsqr(A, b)[0],
    "lsmr": lambda A, b: sla.lsmr(A, b)[0],
    "svds": lambda A, b: sla.svds(A, 2)[1],
    "lobpcg": lambda A, b: sla.lobpcg(A, np.eye(30)[:, :3], maxiter=200, tol=1e-6)[0],
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_scipys_solvers_accept_operators_directly(solver):
    b = np.ones(30)
    np.testing.assert_allclose(
        solver(mf.aslinearoperator(DENSE), b), solver(DENSE, b), rtol=1e-4, atol=1e-6
    )
