"""``check_operator`` distinguishes correct operators from incorrect ones and names the defect."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
from support.matrices import complex_hermitian

import matfree as mf


def function(f, n=20, dtype=np.float64):
    return mf.aslinearoperator(f, shape=(n, n), like=np.zeros(1, dtype))


A = complex_hermitian(20).real


def test_a_symmetric_matrix_passes_everywhere(backend, dtype):
    report = mf.check_operator(backend.asarray(A, dtype))
    assert report.ok
    assert report.hermitian
    assert "NO" not in str(report)


def test_an_unsymmetric_matrix_is_an_operator_but_not_hermitian():
    report = mf.check_operator(np.triu(A))
    assert report.ok
    assert not report.hermitian


def test_a_nonlinear_function_is_found():
    report = mf.check_operator(function(lambda x: x**2))
    assert report.linearity > 0.01
    assert not report.ok


def test_a_random_matvec_is_found_and_its_noise_is_measured():
    rng = np.random.default_rng(0)
    noisy = function(lambda x: A @ x * (1 + 1e-3 * rng.standard_normal(20)))
    report = mf.check_operator(noisy)
    assert 1e-4 < report.determinism < 1e-2
    assert not report.ok


def test_blocks_that_disagree_with_their_columns_are_found():
    space = mf.space_like(A, 20)
    bad = mf.FunctionOperator(lambda x: A @ x, space=space, matmat=lambda X: A @ X[:, ::-1])
    report = mf.check_operator(bad)
    assert report.consistency > 0.1
    assert not report.ok


class Counting:
    """An operator whose functions for vectors and blocks have a factor each."""

    shape, dtype = (20, 20), np.dtype(float)

    def __init__(self, **factors):
        self.factors, self.calls = factors, dict.fromkeys(FUNCTIONS, 0)

    def _apply(self, name, x):
        self.calls[name] += x.shape[1] if x.ndim == 2 else 1
        return self.factors.get(name, 2.0) * x


FUNCTIONS = ("matvec", "matmat", "rmatvec", "rmatmat")
for _name in FUNCTIONS:
    setattr(Counting, _name, lambda self, x, name=_name: self._apply(name, x))


def as_given(operator):
    return operator


def as_scipys(operator):
    functions = {name: getattr(operator, name) for name in FUNCTIONS}
    return sla.LinearOperator((20, 20), dtype=float, **functions)


@pytest.mark.parametrize("form", [as_given, as_scipys])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vectors_and_blocks_that_disagree_are_found_in_both_directions(name, form):
    assert mf.check_operator(form(Counting())).ok
    report = mf.check_operator(form(Counting(**{name: 3.0})))
    assert report.consistency > 0.1
    assert not report.ok


def test_the_number_of_matvecs_is_the_number_of_columns_that_were_multiplied():
    operator = Counting()
    report = mf.check_operator(operator)
    assert operator.calls == {"matvec": 2, "matmat": 5, "rmatvec": 1, "rmatmat": 1}
    assert report.num_matvecs == sum(operator.calls.values()) == 9
    assert mf.check_operator(function(lambda x: A @ x)).num_matvecs == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", [*FUNCTIONS, "matrix", "later"])
def test_matvecs_that_are_not_finite_are_an_error(name, bad):
    if name == "matrix":
        operator = np.where(np.eye(20) > 0, bad, A)
    elif name == "later":  # only functions of the first matvec are checked elsewhere
        factors = iter([2.0, 2.0, bad] + 10 * [2.0])
        operator = Counting()
        operator.matmat = lambda X: next(factors) * X
    else:
        operator = Counting(**{name: bad})
    with pytest.raises(mf.NonFiniteError, match="NaN or infinity"):
        mf.check_operator(operator)


def test_a_wrong_adjoint_is_found_and_a_missing_one_is_reported():
    space = mf.space_like(A, 20)
    wrong = mf.FunctionOperator(lambda x: A @ x, space=space, rmatvec=lambda x: 2 * (A @ x))
    assert mf.check_operator(wrong).adjoint > 0.01
    missing = mf.check_operator(function(lambda x: A @ x))
    assert missing.adjoint is None
    assert "no adjoint given" in str(missing)


def test_rectangular_and_zero_operators_can_be_checked():
    assert mf.check_operator(A[:, :7]).ok
    assert mf.check_operator(A[:, :7]).symmetry is None
    assert mf.check_operator(np.zeros((4, 4))).hermitian
