"""Matrices in the containers that people have at hand are accepted, or refused by their name."""

import numpy as np
import pytest
import scipy.sparse as sp
from support.backends import assert_close
from support.matrices import with_spectrum

import matfree as mf

A = with_spectrum(np.linspace(1.0, 3.0, 12))


class Table:
    """A table or labelled array as its library defines it; the libraries need not be installed."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def to_numpy(self):
        return self.matrix


class Coordinates:
    """An array of PyData sparse in coordinates."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.ndim = matrix, matrix.shape, matrix.ndim

    def to_scipy_sparse(self):
        return sp.coo_array(self.matrix)

    def todense(self):
        return self.matrix


class Dictionary:
    """An array of PyData sparse that has to be converted to another format first."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def asformat(self, name):
        return {"coo": Coordinates}[name](self.matrix)


def named_like(base, module, name):
    return type(name, (base,), {"__module__": module})


def installed(library, make):
    def form(matrix):
        return make(pytest.importorskip(library, reason=f"{library} is not installed"), matrix)

    return form


FORMS = {
    "numpy.matrix": np.matrix,
    "todense of a sparse matrix": lambda M: sp.csr_matrix(M).todense(),
    "lists": lambda M: M.tolist(),
    "tuple of arrays": tuple,
    "long double": lambda M: M.astype(np.longdouble),
    "complex long double": lambda M: M.astype(np.clongdouble),
    "long double, sparse": lambda M: sp.csr_array(M.astype(np.longdouble)),
    "foreign byte order": lambda M: M.astype(M.dtype.newbyteorder()),
    "read-only": lambda M: np.frombuffer(M.tobytes()).reshape(M.shape),
    "pandas": named_like(Table, "pandas.core.frame", "DataFrame"),
    "xarray": named_like(Table, "xarray.core.dataarray", "DataArray"),
    "polars": named_like(Table, "polars.dataframe.frame", "DataFrame"),
    "COO": named_like(Coordinates, "sparse.numba_backend._coo.core", "COO"),
    "DOK": named_like(Dictionary, "sparse.numba_backend._dok", "DOK"),
    "installed pandas": installed("pandas", lambda pandas, M: pandas.DataFrame(M)),
    "installed xarray": installed("xarray", lambda xarray, M: xarray.DataArray(M)),
    "installed COO": installed("sparse", lambda sparse, M: sparse.COO.from_numpy(M)),
    "installed GCXS": installed("sparse", lambda sparse, M: sparse.GCXS.from_numpy(M)),
    "installed DOK": installed("sparse", lambda sparse, M: sparse.DOK.from_numpy(M)),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", FORMS)
def test_every_function_takes_the_container(name):
    matrix = FORMS[name](A)
    n, start = len(A), np.ones(len(A))
    assert mf.trace(matrix, max_matvecs=n).value == pytest.approx(np.trace(A))
    assert_close(mf.diagonal(matrix, max_matvecs=n).value, np.diag(A), scale=10)
    assert mf.logdet(matrix, max_matvecs=n).value == pytest.approx(np.linalg.slogdet(A)[1])
    assert mf.logdet(matrix, num_probes=3, seed=0).value > 0
    assert mf.frobenius_norm(matrix, max_matvecs=n).value == pytest.approx(np.linalg.norm(A))
    assert mf.schatten_norm(matrix, 1, max_matvecs=n).value == pytest.approx(np.trace(A))
    assert mf.eigsh(matrix, 1, rtol=1e-8, seed=0).values[0] == pytest.approx(3.0)
    assert mf.svds(matrix, 1, seed=0).values[0] == pytest.approx(3.0)
    power = mf.power_iteration(matrix, 1, rtol=1e-4, max_steps=500, seed=0)
    assert power.values[0] == pytest.approx(3.0, rel=1e-3)
    assert mf.spectral_density(matrix, seed=0).support == pytest.approx((1.0, 3.0))
    assert mf.eigenvalue_count(matrix, 0.0, 4.0, num_probes=2, seed=0).value == pytest.approx(n)
    assert mf.lanczos(matrix, start, 3).alphas[0][0] == pytest.approx(start @ A @ start / n)
    assert mf.check_operator(matrix).ok
    assert mf.trace(mf.aslinearoperator(matrix, like=start), max_matvecs=n).converged


@pytest.mark.parametrize("mask", [False, np.eye(12) > 0])
@pytest.mark.parametrize("make", [mf.aslinearoperator, mf.DenseOperator, mf.trace])
def test_masked_arrays_are_refused_by_name(make, mask):
    with pytest.raises(mf.OperatorError, match=r"a masked array .*pass matrix.filled\(0.0\)"):
        make(np.ma.masked_array(A, mask=mask))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0], [3.0]], "equal lengths"),
        ([1.0, 2.0], "items are rows of numbers"),
        ([["one"]], "real or complex numbers as entries"),
        ([[None]], "real or complex numbers as entries"),
        ([], "2 dimensions"),
        (A.astype(object), "dtype object"),
        (np.zeros((2, 2), "M8[s]"), "datetime64"),
        (np.zeros((2, 2), [("a", float)]), "real or complex numbers"),
        (FORMS["pandas"](np.array([["a"]], dtype=object)), "dtype object"),
        (FORMS["pandas"](np.ones(3)), "2 dimensions"),
        (FORMS["COO"](np.ones((2, 2, 2))), "2 dimensions"),
    ],
)
def test_what_is_not_a_matrix_of_numbers_is_refused_with_the_reason(matrix, message):
    with pytest.raises(mf.OperatorError, match=message):
        mf.trace(matrix)
