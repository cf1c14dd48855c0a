"""f(A) B against dense references: eigendecompositions, and SciPy's functions of matrices."""

import re
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.backends import MAKERS, PARAMS, assert_close
from support.matrices import with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.algorithms.functions.krylov_iterates import KrylovIterates
from matfree.arrays import to_host

N = 60
SPECTRUM = np.geomspace(0.1, 10.0, N)
A = with_spectrum(SPECTRUM, seed=5)
B = np.random.default_rng(1).standard_normal((N, 3))

NAMED = {
    "exp": scipy.linalg.expm,
    "log": scipy.linalg.logm,
    "sqrt": scipy.linalg.sqrtm,
    "inverse": np.linalg.inv,
    "inverse sqrt": lambda M: np.linalg.inv(scipy.linalg.sqrtm(M)),
}
CALLABLE = {
    "resolvent": lambda x: 1 / (x - 0.5j),
    "cosine": np.cos,
    "rational": lambda x: 1 / (1 + x**2),
    "complex exponential": lambda x: np.exp(-1j * x),
}


def dense_function(M, f):
    """f(M) from the eigendecomposition of a dense Hermitian matrix."""
    values, U = np.linalg.eigh(M)
    return (U * f(values)) @ U.conj().T


def errors(found, exact):
    return np.linalg.norm(to_host(found) - exact, axis=-2 if exact.ndim > 1 else 0)


def hermitian(n, seed=0):
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    return (G + G.conj().T) / (2 * n**0.5)


@pytest.mark.parametrize("name", NAMED)
def test_named_functions_are_those_of_dense_matrices(name):
    exact = NAMED[name](A) @ B
    found = mf.apply_function(A, name, B, rtol=1e-8)
    assert np.all(found.converged)
    assert found.values.shape == B.shape
    assert np.all(errors(found.values, exact) <= 1.01e-8 * np.linalg.norm(exact, axis=0))


@pytest.mark.parametrize("name", CALLABLE)
def test_any_function_may_be_passed_with_complex_values_too(name):
    f = CALLABLE[name]
    exact = dense_function(A, f) @ B
    found = mf.apply_function(A, f, B)
    assert np.iscomplexobj(found.values) == np.iscomplexobj(exact)
    assert np.all(errors(found.values, exact) <= found.error)


@pytest.mark.parametrize("operator", [A, hermitian(N)], ids=["real", "complex"])
@pytest.mark.parametrize(
    "vectors",
    [B, B[:, 0], B + 1j * B[::-1], 1j * B[:, :1]],
    ids=["real", "one", "complex", "imaginary"],
)
def test_real_and_complex_operators_and_vectors_may_be_combined(operator, vectors):
    exact = scipy.linalg.expm(-1j * operator) @ vectors
    found = mf.apply_function(operator, "exp", vectors, t=-1j, rtol=1e-9)
    assert found.values.shape == vectors.shape
    assert np.all(errors(found.values, exact) <= 1.01e-9 * np.linalg.norm(vectors, axis=0))


def test_many_times_from_one_krylov_space_are_those_of_expm_multiply():
    expected = sla.expm_multiply(-A, B, start=0.0, stop=2.0, num=5, endpoint=True)
    found = mf.apply_function(A, "exp", B, t=-np.linspace(0.0, 2.0, 5), rtol=1e-9)
    single = mf.apply_function(A, "exp", B, t=-2.0, rtol=1e-9)
    assert found.values.shape == expected.shape
    assert found.error.shape == found.converged.shape == (5, 3)
    assert_close(found.values, expected, scale=1e4)
    assert_close(found.values[0], B)
    assert found.num_matvecs <= single.num_matvecs + 3 * 16


@pytest.mark.parametrize("stored", [0, 8, 16])
def test_two_passes_agree_with_a_stored_basis(stored):
    least = int(str(_refusal(memory=0)).split("pass memory=")[1].split()[0])
    memory = least + (stored + 1) * 3 * 8 * N if stored else least
    whole = mf.apply_function(A, "log", B, rtol=1e-7)
    twice = mf.apply_function(A, "log", B, rtol=1e-7, memory=memory)
    assert twice.method == "Lanczos, run twice"
    assert twice.memory["stored"] == stored
    assert_close(twice.values, whole.values, scale=1e6)
    steps = twice.num_steps
    assert 3 * steps < twice.num_matvecs <= 3 * (2 * steps - stored + 1)


def _refusal(**options):
    with pytest.raises((ValueError, MemoryError)) as refusal:
        mf.apply_function(A, "exp", B, **options)
    return refusal.value


@pytest.mark.parametrize("name", ["exp", "log", "inverse", "resolvent", "cosine"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "run twice"])
def test_the_error_is_within_the_estimate_and_not_far_below_it(name, stored):
    f = CALLABLE.get(name, name)
    dense = CALLABLE.get(name, {"exp": np.exp, "log": np.log, "inverse": lambda x: 1 / x}.get(name))
    rng, size = np.random.default_rng(0), 300
    memory = None if stored else 30 * 8 * size
    for spectrum in (
        np.linspace(0.01, 10.0, size),
        np.geomspace(1e-4, 1.0, size),
        np.r_[np.linspace(0.01, 1.0, size - 4), 5.0, 20.0, 50.0, 100.0],
        1 / np.arange(1.0, size + 1),
    ):
        b = rng.standard_normal(size)
        exact = dense(spectrum) * b
        for rtol in (1e-2, 1e-4, 1e-7):
            found = mf.apply_function(sp.diags_array(spectrum), f, b, rtol=rtol, memory=memory)
            error = np.linalg.norm(found.values - exact)
            assert error <= found.error <= rtol * np.linalg.norm(found.values)
            assert found.error <= 100 * error or found.error <= 1e-9 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("name", PARAMS)
def test_every_backend_and_data_type(name, dtype):
    backend = MAKERS[name]()
    matrix = (A if np.dtype(dtype).kind == "f" else hermitian(N) + 5 * np.eye(N)).astype(dtype)
    vectors = B.astype(dtype)
    exact = dense_function(matrix.astype(np.complex128), np.sqrt) @ vectors
    found = mf.apply_function(backend.asarray(matrix), "sqrt", backend.asarray(vectors))
    assert found.values.dtype == backend.asarray(vectors).dtype
    assert np.all(found.converged)
    assert np.all(errors(found.values, exact) <= found.error)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "run twice"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("sizes", [(40, 20), (1, 39, 20), (13, 0, 47)], ids=str)
def test_sharded_vectors_give_the_rows_of_whole_ones(name, sizes, stored):
    backend, memory = MAKERS[name](), None if stored else 10**5

    def run(operator):
        rows = getattr(operator.space, "rows", range(N))
        part = backend.asarray(B)[rows.start : rows.stop, :] * 1e-200
        return mf.apply_function(
            operator, "exp", part, t=[0.5, -1j], rtol=1e-8, memory=memory if stored else 30_000
        )

    whole = mf.apply_function(A, "exp", B * 1e-200, t=[0.5, -1j], rtol=1e-8)
    shards = run_sharded(sizes, backend, A, run)
    joined = np.concatenate([to_host(shard.values) for shard in shards], axis=1)
    assert_close(joined, whole.values, scale=1e3 * np.abs(whole.values).max())
    for shard in shards:
        np.testing.assert_allclose(shard.error, whole.error, rtol=1e-2, atol=1e-6 * 1e-200)


def test_a_sharded_result_is_saved_and_joined(tmp_path):
    def run(operator):
        rows = operator.space.rows
        found = mf.apply_function(
            operator, "exp", B[rows.start : rows.stop], t=[0.0, 1.0], rtol=1e-9
        )
        found.save(tmp_path / "values")
        return found

    run_sharded((40, 20), MAKERS["numpy"](), A, run)
    whole = mf.load(tmp_path / "values")
    assert_close(whole.values, np.stack((B, scipy.linalg.expm(A) @ B)), scale=1e9)


HARD = {
    "zero operator": np.zeros((5, 5)),
    "identity": np.eye(5),
    "one row": np.array([[3.0]]),
    "repeated": np.diag([1.0, 1.0, 2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("name", HARD)
def test_krylov_spaces_that_end_early_give_exact_values(name):
    matrix = HARD[name]
    b = np.random.default_rng(0).standard_normal(len(matrix))
    found = mf.apply_function(matrix, "exp", b, rtol=1e-12)
    assert found.converged
    assert_close(found.values, scipy.linalg.expm(matrix) @ b)
    assert found.num_matvecs <= 3


def test_an_eigenvector_takes_one_step():
    unit = np.eye(N)[:, 7]
    found = mf.apply_function(sp.diags_array(SPECTRUM), "log", unit, rtol=1e-10)
    assert found.num_matvecs == 1
    assert_close(found.values, np.log(SPECTRUM[7]) * unit)


def test_zero_columns_cost_nothing():
    vectors = B.copy()
    vectors[:, 1] = 0.0
    found = mf.apply_function(A, "exp", vectors)
    assert found.num_matvecs == 2 * found.num_steps
    assert not found.values[:, 1].any()
    nothing = mf.apply_function(A, "exp", np.zeros(N), t=[1.0, 2.0])
    assert nothing.num_matvecs == 0
    assert not nothing.values.any()
    assert np.all(nothing.converged)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_operators_and_vectors_of_every_magnitude(scale):
    exact = dense_function(A, np.sqrt) @ B
    big = mf.apply_function(A * scale, "sqrt", B, rtol=1e-8)
    assert_close(big.values / scale**0.5, exact, scale=1e6)
    far = mf.apply_function(A, "sqrt", B * scale, rtol=1e-8)
    assert_close(far.values / scale, exact, scale=1e6)
    assert np.all(far.converged)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_functions_with_values_of_every_magnitude():
    for scale in (1e-200, 1e200):
        found = mf.apply_function(A * scale, np.abs, B, rtol=1e-8)
        assert np.all(found.converged)
        assert np.all(np.isfinite(found.error))
        assert_close(found.values / scale, A @ B, scale=1e6)


def test_functions_that_are_not_defined_on_the_spectrum_are_refused_by_name():
    indefinite = A - np.eye(N)
    with pytest.raises(ValueError, match="log needs a positive definite operator"):
        mf.apply_function(indefinite, "log", B)
    with pytest.raises(ValueError, match="inverse sqrt needs a positive definite operator"):
        mf.apply_function(indefinite, "inverse sqrt", B)
    with pytest.raises(ValueError, match="sqrt needs a positive semidefinite operator"):
        mf.apply_function(indefinite, "sqrt", B)
    with pytest.raises(ValueError, match=r"inverse needs a definite operator.*Use matfree.solve"):
        mf.apply_function(indefinite, "inverse", B)
    with pytest.raises(ValueError, match="f is not finite at the Ritz value"):
        mf.apply_function(indefinite, np.log, B)
    with pytest.raises(ValueError, match="t must be real for f='log'"):
        mf.apply_function(A, "log", B, t=1j)
    with pytest.raises(ValueError, match="f must be a function or one of"):
        mf.apply_function(A, "cosine", B)


def test_operators_that_are_not_hermitian_are_refused():
    with pytest.raises(mf.NotHermitianError, match="expm_multiply"):
        mf.apply_function(np.triu(np.ones((N, N))), "exp", B)


def test_nan_in_a_later_matvec_is_an_error():
    calls = []

    def matvec(x):
        calls.append(1)
        return A @ x * (np.nan if len(calls) == 5 else 1.0)

    operator = mf.aslinearoperator(matvec, shape=A.shape, like=np.zeros(1))
    with pytest.raises(mf.NonFiniteError, match="NaN"):
        mf.apply_function(operator, "exp", B[:, 0])


@pytest.mark.parametrize(
    "vectors",
    [np.ones(N - 1), np.ones((N, 2, 1)), 3.0, "b", np.ones((N, 0))],
    ids=["short", "three axes", "number", "text", "empty"],
)
def test_vectors_of_a_wrong_shape_are_refused(vectors):
    with pytest.raises(ValueError, match="B must have shape"):
        mf.apply_function(A, "exp", vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": "now"}, "t must be a number"),
        ({"t": [[1.0]]}, "t must be a finite number"),
        ({"t": []}, "t must be a finite number"),
        ({"t": np.nan}, "t must be a finite number"),
        ({"rtol": -1.0}, "rtol must be finite"),
        ({"max_matvecs": 2}, "max_matvecs=2 is too small .* which takes 3 matvecs"),
        ({"memory": 100}, "memory=100 .* is too small"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options, message):
    assert re.search(message, str(_refusal(**options)))


def test_nan_in_the_vectors_is_refused():
    vectors = B.copy()
    vectors[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in column 1"):
        mf.apply_function(A, "exp", vectors)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "run twice"])
@pytest.mark.parametrize("budget", [3, 10, 30, 50, 77, 200])
def test_the_budget_is_an_upper_bound_and_the_best_values_are_returned(budget, stored):
    count = [0]

    def matmat(X):
        count[0] += X.shape[1]
        return A @ X

    operator = mf.FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0], matmat=matmat, space=mf.space_like(np.zeros(1), N)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = mf.apply_function(
            operator, "log", B, rtol=1e-14, max_matvecs=budget, memory=None if stored else 30_000
        )
    assert found.num_matvecs == count[0] <= budget
    assert np.all(np.isfinite(found.values))
    assert [w.category for w in caught] == [mf.ConvergenceWarning]
    assert not np.all(found.converged)


def test_more_than_rounding_permits_is_said_to_be_rounding():
    with pytest.warns(mf.ConvergenceWarning, match="rounding in float32 limits the error"):
        found = mf.apply_function(A.astype(np.float32), "exp", B.astype(np.float32), rtol=1e-9)
    assert not np.any(found.converged)


def test_a_callback_sees_the_errors_and_stops_the_run():
    seen = []
    with pytest.warns(mf.ConvergenceWarning, match="stopped by the callback"):
        found = mf.apply_function(
            A, "log", B, rtol=1e-12, callback=lambda s: seen.append(s) or s.num_steps >= 16
        )
    assert found.num_steps == 16
    assert seen[0].error.shape == seen[0].norm.shape == (1, 3)


@pytest.mark.parametrize("memory", [None, 40_000, 30_000])
@pytest.mark.parametrize("stop_at", [9, 17, 40])
def test_an_interrupted_run_continues_from_its_checkpoint(tmp_path, memory, stop_at):
    calls = [0]

    def matmat(X):
        calls[0] += 1
        if calls[0] == stop_at:
            raise RuntimeError("out of power")
        return A @ X

    operator = mf.FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0], matmat=matmat, space=mf.space_like(np.zeros(1), N)
    )
    path = tmp_path / "run.npz"
    whole = mf.apply_function(A, "log", B, rtol=1e-9, memory=memory)

    def run(**options):
        return mf.apply_function(
            operator, "log", B, rtol=1e-9, memory=memory, checkpoint=path, **options
        )

    with pytest.raises(RuntimeError, match="out of power"):
        run()
    before, found = calls[0], run()
    # One matvec identifies the operator; the steps since the last check point are repeated.
    assert calls[0] - before <= found.num_matvecs // 3 + 1 - (stop_at - 1) + 8 + 1
    assert_close(found.values, whole.values, scale=1e5)
    with pytest.raises(ValueError, match="belongs to another run"):
        mf.apply_function(operator, "log", 2 * B, rtol=1e-9, memory=memory, checkpoint=path)


def test_the_coordinates_are_those_of_a_dense_tridiagonal_matrix():
    alphas, betas = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.25, 0.125])
    T = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    iterates = KrylovIterates(alphas, betas, lambda x: np.stack((np.exp(x), x**2)), 1e-16)
    expected = np.stack((scipy.linalg.expm(T[:3, :3])[:, 0], (T[:3, :3] @ T[:3, :3])[:, 0]), 1)
    assert_close(iterates.coordinates(3), expected)
