"""``aslinearoperator``: what it accepts, what it refuses, and how foreign matvecs are checked."""

import numpy as np
import pytest
import scipy.sparse.linalg
from support.backends import assert_close
from support.matrices import with_spectrum

import matfree as mf
from matfree.arrays import to_host
from matfree.operators import frontdoor

N = 12
A = with_spectrum(np.arange(1.0, N + 1))


class Duck:
    """An object with shape, dtype and matvec, the three required members of a LinearOperator."""

    def __init__(self, matvec, shape=(N, N), dtype=np.float64, **members):
        self.matvec, self.shape, self.dtype = matvec, shape, dtype
        self.__dict__.update(members)


class OnlyMatmul:
    shape, dtype = (N, N), np.float64

    def __matmul__(self, x):
        return A @ x


def matmat_of(obj, **options):
    operator = mf.aslinearoperator(obj, **options)
    X = np.random.default_rng(0).standard_normal((N, 3))
    return to_host(operator.matmat(X)), A @ X


@pytest.mark.parametrize(
    ("obj", "options"),
    [
        (A, {}),
        (Duck(lambda x: A @ x), {}),
        (Duck(lambda x: A @ x, matmat=lambda X: A @ X), {}),
        (OnlyMatmul(), {}),
        (lambda x: A @ x, {"shape": (N, N), "like": np.zeros(1)}),
        (scipy.sparse.linalg.aslinearoperator(A), {}),
        (mf.aslinearoperator(A), {}),
    ],
    ids=["array", "matvec", "matmat", "matmul", "function", "scipy", "ours"],
)
def test_every_accepted_object_multiplies_like_its_matrix(obj, options):
    got, expected = matmat_of(obj, **options)
    assert_close(got, expected)


def test_operators_and_ducks_satisfy_the_protocol():
    assert isinstance(mf.aslinearoperator(A), mf.LinearOperator)
    assert isinstance(Duck(lambda x: x), mf.LinearOperator)
    assert isinstance(scipy.sparse.linalg.aslinearoperator(A), mf.LinearOperator)


def test_an_operator_of_any_backend_multiplies_its_own_arrays(backend, dtype):
    operator = mf.aslinearoperator(backend.asarray(A, dtype))
    x = backend.asarray(np.ones(N), dtype)
    assert_close(operator.matvec(x), (A @ np.ones(N)).astype(dtype), dtype)
    assert_close(operator.to_dense(), A.astype(dtype), dtype)


@pytest.mark.parametrize("obj", [3.0, "A", None, object(), {"shape": (2, 2)}])
def test_any_other_object_is_a_type_error_that_lists_what_is_accepted(obj):
    with pytest.raises(TypeError, match=r"cannot use .* as a linear operator.*a function f\(x\)"):
        mf.aslinearoperator(obj)


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"like": np.zeros(1)}, "shape="), ({"shape": (N, N)}, "like=")],
)
def test_a_function_without_shape_or_example_says_which_is_missing(options, missing):
    with pytest.raises(TypeError, match=f"{missing}.* is missing"):
        mf.aslinearoperator(lambda x: x, **options)


def test_arrays_and_operators_that_are_not_two_dimensional_are_refused():
    with pytest.raises(mf.OperatorError, match="2 dimensions"):
        mf.aslinearoperator(np.zeros(3))
    with pytest.raises(mf.OperatorError, match="batched"):
        mf.aslinearoperator(Duck(lambda x: x, shape=(2, N, N)))


def test_an_object_without_dtype_is_refused_unless_an_example_is_passed():
    duck = Duck(lambda x: A @ x, dtype=None)
    with pytest.raises(mf.OperatorError, match=r"declares no dtype.*like="):
        mf.aslinearoperator(duck)
    assert_close(*matmat_of(duck, like=np.zeros(1)))


def test_integers_and_booleans_are_promoted():
    assert mf.trace(np.diag([1, 2, 3]), num_probes=1, seed=0).value == 6.0
    assert mf.trace(np.eye(3, dtype=bool), num_probes=1, seed=0).value == 3.0
    assert mf.aslinearoperator(np.eye(3, dtype=np.float16)).dtype == np.float32


# P32: the checks of foreign matvecs.
def test_a_matvec_may_return_a_list_or_a_column():
    assert_close(*matmat_of(Duck(lambda x: (A @ x).tolist())))
    assert_close(*matmat_of(Duck(lambda x: (A @ x)[:, None])))


def test_a_wrong_shape_is_refused_with_both_shapes_named():
    with pytest.raises(mf.OperatorError, match=rf"must return shape \({N},\).*got \({N - 1},\)"):
        matmat_of(Duck(lambda x: (A @ x)[1:]))


def test_another_librarys_array_is_refused_with_both_libraries_named():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(mf.OperatorError, match=r"array of .*numpy.*array_api_strict"):
        matmat_of(Duck(lambda x: strict.asarray(x)))


def test_a_complex_result_of_a_real_operator_is_refused():
    with pytest.raises(mf.OperatorError, match="declare a complex dtype"):
        matmat_of(Duck(lambda x: 1j * x))


def test_a_result_that_is_not_an_array_is_refused():
    with pytest.raises(mf.OperatorError, match="must return an array"):
        matmat_of(Duck(lambda x: None))


def test_matvec_is_called_with_vectors_only():
    seen = []
    matmat_of(Duck(lambda x: (seen.append(x.shape), A @ x)[1]))
    assert set(seen) == {(N,)}


@pytest.mark.parametrize("block", [False, True], ids=["matvec", "matmat"])
def test_a_function_may_modify_its_argument(block):
    def modify(X):
        Y = A @ X
        X[...] = np.nan
        return Y

    duck = Duck(modify, **({"matmat": modify} if block else {}))
    operator = mf.aslinearoperator(duck)
    X = np.ones((N, 2))
    for _ in range(3):
        assert_close(operator.matmat(X), A @ X)
        assert np.all(X == 1)


@pytest.mark.parametrize("block", [False, True], ids=["matvec", "matmat"])
def test_a_function_may_return_the_same_buffer_every_time(block):
    buffers = {}

    def reuse(X):
        buffer = buffers.setdefault(X.shape, np.empty_like(X))
        buffer[...] = A @ X
        return buffer[...]  # a new view of the same memory each time

    operator = mf.aslinearoperator(Duck(reuse, **({"matmat": reuse} if block else {})))
    blocks = [np.random.default_rng(j).standard_normal((N, 2)) for j in range(4)]
    results = [operator.matmat(X) for X in blocks]
    for X, Y in zip(blocks, results, strict=True):
        assert_close(Y, A @ X)


def test_a_function_may_return_its_argument():
    operator = mf.aslinearoperator(Duck(lambda x: x, matmat=lambda X: X))
    assert mf.trace(operator, num_probes=3, seed=0).value == N


def test_results_of_torch_are_detached_from_the_autograd_graph():
    torch = pytest.importorskip("torch")
    W = torch.tensor(A, requires_grad=True)
    operator = mf.aslinearoperator(lambda x: W @ x, shape=(N, N), like=torch.zeros(1).double())
    assert not operator.matvec(torch.ones(N).double()).requires_grad


class _Foreign:
    """A matrix of an unknown library."""

    __module__ = "fancylib.matrices"

    def __init__(self, matrix):
        self.matrix = matrix


def test_an_adapter_is_found_by_its_entry_point(monkeypatch):
    class Point:
        @staticmethod
        def load():
            return lambda obj: mf.aslinearoperator(obj.matrix)

    def entry_points(group, name):
        return [Point] if (group, name) == ("matfree.adapters", "fancylib") else []

    monkeypatch.setattr(frontdoor, "entry_points", entry_points)
    frontdoor._adapters.cache_clear()

    class Derived(_Foreign):  # found through its base class
        pass

    try:
        assert mf.trace(Derived(A), num_probes=1, seed=0).value is not None
        assert_close(*matmat_of(_Foreign(A)))
    finally:
        frontdoor._adapters.cache_clear()


# P17: NaN in matvec 3.
class Poisoned(Duck):
    def __init__(self, at, **options):
        self.calls = 0

        def matvec(x):
            self.calls += 1
            return A @ x * (np.nan if self.calls == at else 1.0)

        super().__init__(matvec, **options)


DRIVERS = {
    "trace": lambda B: mf.trace(B, num_probes=8, seed=0),
    "diagonal": lambda B: mf.diagonal(B, num_probes=8, seed=0),
    "xtrace": lambda B: mf.trace(B, method="xtrace", num_probes=4, seed=0),
    "power": lambda B: mf.power_iteration(B, seed=0),
    "eigsh": lambda B: mf.eigsh(B, 2, seed=0),
    "lanczos": lambda B: mf.lanczos(B, np.ones(N), 8),
    "density": lambda B: mf.spectral_density(B, num_probes=2, num_steps=5, seed=0),
}


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("run", DRIVERS.values(), ids=DRIVERS.keys())
def test_nan_is_refused_immediately_and_the_matvec_is_named(run, at):
    operator = Poisoned(at)
    with pytest.raises(mf.NonFiniteError, match=rf"matvec {at} .*NaN"):
        run(operator)
    assert operator.calls <= at + 1


@pytest.mark.parametrize("run", DRIVERS.values(), ids=DRIVERS.keys())
def test_nan_in_a_later_block_is_found_in_the_sums_on_the_host(run):
    calls = []

    def matmat(X):
        calls.append(X.shape[1])
        return A @ X * (np.nan if len(calls) == 2 else 1.0)

    duck = Duck(lambda x: A @ x, matmat=matmat)

    def twice():  # because a small trace needs only one block of probes
        run(duck)
        run(duck)

    with pytest.raises(mf.NonFiniteError, match="NaN or infinity"):
        twice()


def test_non_square_and_empty_operators_are_refused_by_every_driver():
    for run in DRIVERS.values():
        with pytest.raises(mf.OperatorError, match="must be square"):
            run(np.zeros((N, N + 1)))
        with pytest.raises(mf.OperatorError, match="empty"):
            run(np.zeros((0, 0)))
