"""SciPy's own tests of ``eigsh`` and ``svds``, run with matfree's functions."""

import pytest
from support import scipy_suite

# SciPy asks for the precision of the data type, which the last digits of some residuals miss.
pytestmark = pytest.mark.filterwarnings("ignore::matfree.ConvergenceWarning")

arpack = scipy_suite.load("scipy.sparse.linalg._eigen.arpack.tests.test_arpack")
arpack.eigsh = scipy_suite.eigsh
singular = scipy_suite.load("scipy.sparse.linalg._eigen.tests.test_svds")
singular.svds = scipy_suite.svds

# Left out: test_reentering, whose function is not linear, so that matfree refuses it.
test_symmetric_modes = arpack.test_symmetric_modes
test_hermitian_modes = arpack.test_hermitian_modes
test_symmetric_starting_vector = arpack.test_symmetric_starting_vector
test_symmetric_no_convergence = arpack.test_symmetric_no_convergence
test_parallel_threads = arpack.test_parallel_threads


@pytest.fixture
def num_parallel_threads():
    """The fixture of pytest-run-parallel that ``test_parallel_threads`` asks for."""
    return 1


class Common:
    def setup_method(self):
        # A name that is none of SciPy's solvers, whose known failures its tests allow for.
        self.solver = "matfree"


# Left out are the tests of argument checks, which match SciPy's messages, and the one of ``tol``,
# which compares with the accuracy of SciPy's three solvers.
for _name in (
    "test_svds_int_A",
    "test_svds_diff0_docstring_example",
    "test_svds_parameter_k_which",
    "test_svd_v0",
    "test_svd_rng",
    "test_svd_rng_2",
    "test_svd_rng_3",
    "test_svd_maxiter",
    "test_svd_return_singular_vectors",
    "test_svd_linop",
    "test_small_sigma_sparse",
    "test_svd_LM_ones_matrix",
    "test_zero_matrix",
    "test_small_sigma",
    "test_small_sigma2",
):
    setattr(Common, _name, getattr(singular.SVDSCommonTests, _name))


class TestSingularTriplets(Common):
    pass


class TestCompleteDecompositions:
    A1, A2 = singular.SVDSCommonTests.A1, singular.SVDSCommonTests.A2

    def setup_method(self):
        # SciPy tests k = min(m, n) only for the solver with this name.
        self.solver = "propack"

    test_svd_simple = singular.SVDSCommonTests.test_svd_simple
