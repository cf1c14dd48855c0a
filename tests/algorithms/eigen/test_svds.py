"""``svds`` compared with NumPy's dense SVD, also for singular values whose squares are lost."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from support.backends import MAKERS, assert_close, tolerance
from support.matrices import haar
from support.sharded import run_sharded

import matfree as mf
from matfree.algorithms.eigen.small_svd import small_svd
from matfree.arrays import to_host
from matfree.results import StoppingReason


def with_singular_values(m, n, values, dtype=np.float64):
    r = len(values)
    A = (haar(m, 1)[:, :r] * values) @ haar(n, 2)[:, :r].T
    if np.issubdtype(dtype, np.complexfloating):
        A = A * np.exp(1j * np.arange(n))
    return A.astype(dtype)


def assert_triplets(A, result, slack, loss=None):
    """The triplets agree with the dense SVD, and the residuals are the actual ones."""
    loss = tolerance(A.dtype) if loss is None else loss  # allowed loss of orthogonality
    k, exact = len(result.values), np.linalg.svd(A, compute_uv=False)
    U, V = to_host(result.left), to_host(result.right)
    assert U.shape == (A.shape[0], k)
    assert V.shape == (A.shape[1], k)
    for Q in (U, V):
        assert np.abs(Q.conj().T @ Q - np.eye(k)).max() <= loss
    scale = exact[0]
    assert np.abs(result.values - exact[:k]).max() <= slack * scale
    assert np.all(np.diff(result.values) <= 0)
    forward = np.linalg.norm(A @ V - U * result.values, axis=0)
    adjoint = np.linalg.norm(A.conj().T @ U - V * result.values, axis=0)
    actual = np.maximum(forward, adjoint)
    assert np.all(np.abs(actual - result.residuals * result.norm) <= loss * scale)


SHAPES = [(60, 35), (35, 60), (40, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_finds_the_largest_singular_values_on_every_backend(backend, dtype, shape):
    A = with_singular_values(*shape, 1 / np.arange(1.0, 31), dtype)
    result = mf.svds(backend.asarray(A, dtype), 5, seed=0)
    assert result.converged.all()
    assert result.verified
    assert_triplets(A, result, max(1e-6, 100 * np.finfo(dtype).eps))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_singular_values_keep_the_digits_that_their_squares_lose(shape):
    A = with_singular_values(*shape, [1, 1e-3, 1e-6, 1e-9, 1e-11])
    result = mf.svds(A, 5, rtol=1e-12, seed=0)
    assert result.converged.all()
    assert_triplets(A, result, 1e-14, loss=1e-12)
    squares = mf.eigsh(A.T @ A, 5, rtol=1e-12, seed=0).values
    assert abs(squares[4]) > 1e-20  # the exact square is 1e-22


CASES = {
    "rank 3, six requested": (with_singular_values(50, 30, [3.0, 2, 1]), 6),
    "a fourfold singular value": (with_singular_values(50, 30, [3.0] * 4 + [1] * 26), 6),
    "all triplets": (with_singular_values(20, 14, np.linspace(1, 2, 14)), 14),
    "all triplets, over 8 orders of magnitude": (
        with_singular_values(14, 20, 0.25 ** np.arange(14)),
        14,
    ),
    "half of the values zero": (with_singular_values(20, 20, np.linspace(1, 2, 10)), 20),
    "one row": (np.arange(1.0, 9)[None, :], 1),
    "one column": (np.arange(1.0, 9)[:, None], 1),
    "a single entry": (np.array([[-7.0]]), 1),
    "zero": (np.zeros((12, 9)), 4),
    "an orthogonal matrix": (np.array([[0.0, -1], [1, 0]]), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_degenerate_operators_converge_and_are_verified(name):
    A, k = CASES[name]
    result = mf.svds(A, k, seed=0)
    assert result.converged.all()
    assert result.verified
    assert_triplets(A, result, 1e-9, loss=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [2.0**100, 1e-30, 1e30])
def test_a_scaled_operator_takes_the_same_steps(dtype, scale):
    A = with_singular_values(40, 25, 1 / np.arange(1.0, 26), dtype)
    plain, scaled = (mf.svds(c * A, 4, seed=0) for c in (dtype(1), dtype(scale)))
    np.testing.assert_allclose(scaled.values / scale, plain.values, rtol=30 * np.finfo(dtype).eps)
    np.testing.assert_allclose(scaled.norm / scale, plain.norm, rtol=30 * np.finfo(dtype).eps)
    assert scaled.num_matvecs == plain.num_matvecs
    if np.log2(scale) % 1 == 0:
        assert np.array_equal(scaled.values, scale * plain.values)


def test_sparse_matrices_linear_operators_and_adjoints_are_accepted():
    S = scipy.sparse.random_array((80, 30), density=0.2, rng=np.random.default_rng(0))
    exact = np.linalg.svd(S.toarray(), compute_uv=False)[:3]
    L = scipy.sparse.linalg.aslinearoperator(S)
    for A in (S, L, mf.aslinearoperator(S).H, 2 * mf.aslinearoperator(S).T):
        values = mf.svds(A, 3, rtol=1e-10, seed=0).values
        assert_close(values / (2 if A.__class__.__name__ == "Scaled" else 1), exact)


class Counting:
    """A matrix that counts its matvecs. Its adjoint may be missing or wrong."""

    def __init__(self, A, adjoint):
        self.shape, self.dtype, self.A, self.count = A.shape, A.dtype, A, 0
        if adjoint is not None:
            self.rmatvec = lambda y: self._counted(adjoint @ y)

    def _counted(self, y):
        self.count += 1
        return y

    def matvec(self, x):
        return self._counted(self.A @ x)


def test_matvecs_with_the_operator_and_its_adjoint_are_counted():
    A = with_singular_values(40, 25, 0.5 ** np.arange(25))
    for B in (A, A.T):
        result = mf.svds(operator := Counting(B, B.T), 8, seed=0)
        assert result.num_matvecs == operator.count
        assert_triplets(B, result, 1e-6)


def test_a_missing_adjoint_is_reported_before_the_first_matvec():
    operator = Counting(np.ones((5, 4)), None)
    with pytest.raises(mf.OperatorError, match=r"give it rmatvec \(A\^H x\)"):
        mf.svds(operator, 2)
    assert operator.count == 0
    for shape in ((5, 4), (4, 4)):
        foreign = scipy.sparse.linalg.LinearOperator(
            shape, matvec=lambda x, m=shape[0]: np.zeros(m), dtype=float
        )
        with pytest.raises(mf.OperatorError, match="rmatvec"):
            mf.svds(foreign, 2)
        assert mf.check_operator(foreign).adjoint is None


def test_a_wrong_adjoint_is_detected():
    A = with_singular_values(30, 20, np.linspace(1, 2, 20))
    with pytest.raises(mf.OperatorError, match="fix rmatvec"):
        mf.svds(Counting(A, np.roll(A.T, 1, axis=0)), 3, seed=0)


def test_a_matvec_with_nan_is_reported():
    A = np.ones((6, 5))
    A[2, 3] = np.nan
    with pytest.raises(mf.NonFiniteError, match="NaN or infinity"):
        mf.svds(A, 2, seed=0)


def test_an_insufficient_budget_warns_and_returns_the_triplets_so_far():
    A = with_singular_values(300, 200, np.linspace(1, 1.001, 200))
    with pytest.warns(mf.ConvergenceWarning, match="pass this result as start"):
        rough = mf.svds(A, 4, rtol=1e-10, max_matvecs=100, seed=0)
    assert not rough.converged.any()
    assert rough.num_matvecs <= 100
    assert_triplets(A, rough, 1e-2)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)], ids=str)
def test_a_warm_start_saves_half_of_the_matvecs(shape):
    A = with_singular_values(*shape, np.linspace(1, 0, 200) ** 3)
    cold = mf.svds(A, 3, seed=0, verify=False)
    warm = mf.svds(A, 3, seed=0, verify=False, start=cold)
    block = mf.svds(A, 3, seed=0, verify=False, start=cold.right)
    assert max(warm.num_matvecs, block.num_matvecs) <= cold.num_matvecs / 2
    assert_close(warm.values, cold.values, scale=1e3)


def test_a_callback_is_given_singular_values_and_may_stop_the_run():
    A = with_singular_values(60, 40, np.linspace(4, 0.1, 40))
    seen = []
    with pytest.warns(mf.ConvergenceWarning):
        result = mf.svds(
            A, 2, rtol=1e-12, seed=0, callback=lambda s: seen.append(s) or len(seen) == 9
        )
    assert result.reason == "stopped by the callback"
    assert abs(seen[-1].values[0] - result.norm) <= 0.05 * result.norm
    assert 0.1 < seen[-1].residuals[0] / result.residuals[0] < 10


def test_an_interrupted_run_returns_its_triplets():
    def interrupt(step):
        if step.num_matvecs > 80:
            raise KeyboardInterrupt

    A = with_singular_values(60, 40, np.linspace(4, 0.1, 40))
    with pytest.raises(mf.Interrupted) as caught:
        mf.svds(A, 3, rtol=1e-13, seed=0, callback=interrupt)
    result = caught.value.result
    assert result.reason == "interrupted"
    assert_triplets(A, result, 0.1)


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path):
    class Killed(BaseException):
        pass

    A = with_singular_values(60, 40, 0.5 ** np.arange(40))
    whole = mf.svds(A, 9, seed=0)
    for last in (10, whole.num_matvecs // 2, whole.num_matvecs - 30):

        class Killer(Counting):
            def _counted(self, y, last=last):
                if self.count == last:
                    raise Killed
                return super()._counted(y)

        path = tmp_path / f"{last}"
        with pytest.raises(Killed):
            mf.svds(Killer(A, A.T), 9, seed=0, checkpoint=path)
        resumed = mf.svds(A, 9, seed=0, checkpoint=path)
        assert_close(resumed.values, whole.values)
        assert_close(resumed.residuals, whole.residuals, scale=1.0)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_triplets_of_sharded_operators_are_those_of_whole_ones(name):
    rows, columns = (30, 20), (7, 13)
    for A, cuts, column_cuts in (
        (with_singular_values(50, 20, 1 / np.arange(1.0, 21)), rows, columns),
        (with_singular_values(20, 50, 1 / np.arange(1.0, 21)), columns, rows),
    ):
        whole = mf.svds(A, 3, seed=0)
        shards = run_sharded(
            cuts,
            MAKERS[name](),
            A,
            lambda B: mf.svds(B, 3, seed=0),
            column_shard_sizes=column_cuts,
        )
        assert all(shard.num_matvecs == whole.num_matvecs for shard in shards)
        for side in ("left", "right"):
            Q = np.concatenate([to_host(getattr(shard, side)) for shard in shards])
            assert_close(np.abs(np.sum(Q * getattr(whole, side), axis=0)), np.ones(3))
        assert_close(shards[1].values, whole.values)


def test_a_result_is_printed_and_saved(tmp_path):
    result = mf.svds(np.diag([3.0, 2.0, 1.0]), 2, seed=0)
    assert "singular value 1  3" in str(result)
    assert np.array_equal(mf.load(result.save(tmp_path / "result")).left, result.left)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be in"),
        ({"k": 31}, r"k must be in \[1, min\(m, n\)\]: got 31"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"block_size": 0}, "block_size"),
        ({"max_matvecs": 0}, "max_matvecs"),
        ({"num_vectors": 2}, "num_vectors must be at least"),
        ({"start": np.ones(3)}, "start must have shape"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mf.svds(np.eye(50, 30), **options)


@pytest.mark.parametrize("seed", range(4))
def test_values_over_many_orders_of_magnitude_take_several_rounds_within_the_budget(seed):
    A = with_singular_values(60, 40, np.geomspace(1, 1e-14, 30))
    result = mf.svds(A, 20, rtol=1e-13, seed=seed)
    assert result.converged.all()
    assert result.verified
    assert_triplets(A, result, 1e-14, loss=1e-12)
    with pytest.warns(mf.ConvergenceWarning, match="the budget of matvecs ended first"):
        short = mf.svds(A, 20, rtol=1e-13, seed=seed, max_matvecs=300)
    assert short.num_matvecs <= 300
    assert not short.verified


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_tighter_tolerance_is_never_worse_than_rounding(dtype):
    eps = float(np.finfo(dtype).eps)
    for seed in range(10):
        A = decaying(seed).astype(dtype)
        exact = A.astype(float)
        for factor in (2, 3, 5, 10, 100):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", mf.ConvergenceWarning)
                r = mf.svds(A, 4, rtol=factor * eps, seed=seed)
            ahead = np.linalg.norm(exact @ r.right - r.left * r.values, axis=0)
            back = np.linalg.norm(exact.T @ r.left - r.right * r.values, axis=0)
            # Single precision does not resolve the square of the third value, 1e-8.
            assert max(ahead.max(), back.max()) <= (10 if dtype is np.float64 else 100) * eps
            assert r.converged.all() != (r.reason == StoppingReason.ROUNDING)
            assert r.converged.all() or factor < (10 if dtype is np.float64 else 100)


def decaying(seed):
    g = np.random.default_rng(seed)
    left, right = (np.linalg.qr(g.standard_normal((m, 20)))[0] for m in (21, 20))
    return (left * 100.0 ** -np.arange(20)) @ right


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_reaches_a_few_eps(seed):
    A = np.random.default_rng(seed).standard_normal((200, 100)).astype(np.float32)
    result = mf.svds(A, 4, rtol=6e-7, seed=seed)  # 5 eps
    assert result.converged.all()
    exact = np.linalg.svd(A.astype(float), compute_uv=False)[:4]
    np.testing.assert_allclose(result.values, exact, rtol=3e-7)


def test_the_small_decomposition_is_accurate_for_graded_matrices():
    eps = np.finfo(float).eps
    for seed in range(300):
        g = np.random.default_rng(seed)
        left, right = (np.linalg.qr(g.standard_normal((4, 4)))[0] for _ in range(2))
        C = (left * 100.0 ** -np.arange(4)) @ right
        X, values, Y = small_svd(C)
        assert np.linalg.norm(C @ Y - X * values) <= 10 * eps
        assert np.linalg.norm(C.T @ X - Y * values) <= 10 * eps
        np.testing.assert_allclose(values, 100.0 ** -np.arange(4), atol=10 * eps)
