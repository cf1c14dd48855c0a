"""SciPy's own tests of ``LinearOperator``, run with matfree's operators."""

from types import SimpleNamespace

import pytest
import scipy
import scipy.sparse.linalg as sla
from support import scipy_operators, scipy_suite

if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
    # They ask for batches of matrices, which matfree does not have.
    pytest.skip("the tests of SciPy 1.18 need its own fixtures", allow_module_level=True)

suite = scipy_suite.load("scipy.sparse.linalg.tests.test_interface")

# Operators made of functions are matfree's, and so is the conversion of SciPy's own operators.
suite.interface = SimpleNamespace(
    LinearOperator=scipy_operators.from_functions,
    aslinearoperator=scipy_operators.aslinearoperator,
    _ScaledLinearOperator=scipy_operators.Scaled,
    _SumLinearOperator=scipy_operators.Sum,
    _ProductLinearOperator=scipy_operators.Product,
    _PowerLinearOperator=scipy_operators.Power,
)

# Left out are the tests of SciPy's class itself: how it is inherited, pickled and freed, how it
# finds its data type, and its identity operator. matfree's own are in tests/operators.
TestOperatorsOfFunctions = suite.TestLinearOperator
test_dtypes_of_operator_sum = suite.test_dtypes_of_operator_sum
test_adjoint_conjugate = suite.test_adjoint_conjugate
test_ndim = suite.test_ndim
test_transpose_noconjugate = suite.test_transpose_noconjugate
test_sparse_matmat_exception = suite.test_sparse_matmat_exception


class TestConversion(suite.TestAsLinearOperator):
    """Its operators to convert are classes that inherit from SciPy's ``LinearOperator``."""

    def setup_method(self):
        ours = suite.interface.LinearOperator
        suite.interface.LinearOperator = sla.LinearOperator
        try:
            super().setup_method()
        finally:
            suite.interface.LinearOperator = ours
