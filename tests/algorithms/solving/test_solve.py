"""``solve`` against dense solutions: definite, indefinite, singular, rectangular, and refusals."""

import itertools
import re
import warnings

import numpy as np
import pytest
import scipy.sparse
from support.backends import MAKERS, assert_close
from support.matrices import complex_hermitian, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host
from matfree.results import StoppingReason

N, K = 60, 3
RNG = np.random.default_rng(0)
B = RNG.standard_normal((N, K))
POSITIVE = with_spectrum(np.geomspace(1, 100, N))
INDEFINITE = with_spectrum(np.r_[-np.geomspace(1, 50, 20), np.geomspace(1, 100, 40)])
SINGULAR = with_spectrum(np.r_[np.zeros(5), np.geomspace(1, 100, N - 5)])
GENERAL = POSITIVE / 10 + RNG.standard_normal((N, N))
TALL = RNG.standard_normal((N, 25))

SYSTEMS = {
    "positive": (POSITIVE, "auto", "conjugate gradients"),
    "indefinite": (INDEFINITE, "auto", "conjugate gradients, then MINRES"),
    "minres": (INDEFINITE, "minres", "MINRES"),
    "general": (GENERAL, "auto", "conjugate gradients, then LSMR"),
    "lsmr": (GENERAL, "lsmr", "LSMR"),
}


class Counted:
    """A dense matrix that counts the columns that it and its adjoint are applied to."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def matvec(self, x):
        return self.matmat(x[:, None])[:, 0]

    def matmat(self, X):
        self.count += X.shape[1]
        return self.matrix @ X

    def rmatvec(self, x):
        return self.rmatmat(x[:, None])[:, 0]

    def rmatmat(self, X):
        self.count += X.shape[1]
        return self.matrix.conj().T @ X


def residuals(A, X, B):
    return np.linalg.norm(B - A @ X, axis=0) / np.linalg.norm(B, axis=0)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("columns", [1, 3])
def test_the_reported_residuals_are_those_of_the_solution(name, columns):
    A, method, expected = SYSTEMS[name]
    counted, sides = Counted(A), B[:, :columns]
    solution = mf.solve(counted, sides, method=method, rtol=1e-9)
    assert solution.method == expected
    assert solution.converged.all()
    assert solution.reason == StoppingReason.RESIDUALS
    found = residuals(A, solution.values, sides)
    assert found.max() <= 1e-9
    np.testing.assert_allclose(solution.residuals, found, rtol=1e-3)
    np.testing.assert_allclose(solution.values, np.linalg.solve(A, sides), atol=1e-6)
    assert solution.num_matvecs == counted.count


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_every_method_runs_on_every_backend(backend, dtype, method):
    complex_ = np.issubdtype(dtype, np.complexfloating)
    A = complex_hermitian(N) / 10 + 4 * np.eye(N) if complex_ else POSITIVE / 20
    sides = B + 1j * B[::-1] if complex_ else B
    operand = backend.asarray(A, dtype)
    solution = mf.solve(operand, backend.asarray(sides, dtype), method=method, rtol=1e-5)
    assert solution.converged.all()
    assert solution.values.dtype == operand.dtype
    assert residuals(A, to_host(solution.values), sides).max() <= 1.1e-5


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
@pytest.mark.parametrize("shard_sizes", [(40, 20), (1, 0, 59)])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_sharded_vectors_give_the_solution_of_whole_ones(name, shard_sizes, method):
    def run(operator):
        rows = operator.space.rows
        return mf.solve(operator, B[rows.start : rows.stop], method=method, rtol=1e-10)

    A = with_spectrum(np.linspace(1, 4, N))
    whole = mf.solve(A, B, method=method, rtol=1e-10)
    shards = run_sharded(shard_sizes, MAKERS[name](), A, run)
    assert_close(np.concatenate([to_host(s.values) for s in shards]), whole.values)
    for shard in shards:
        assert shard.num_matvecs == whole.num_matvecs
        assert shard.rows[2] == N


def test_a_sharded_rectangular_operator_gives_the_least_squares_solution():
    def run(operator):
        rows = operator.space.rows
        return mf.solve(operator, B[rows.start : rows.stop], rtol=1e-9)

    shards = run_sharded((40, 20), MAKERS["numpy"](), TALL, run, column_shard_sizes=(5, 20))
    found = np.concatenate([shard.values for shard in shards])
    np.testing.assert_allclose(found, np.linalg.lstsq(TALL, B)[0], atol=1e-8)


def test_right_hand_sides_that_share_a_krylov_space_cost_less_than_single_ones():
    A = with_spectrum(np.geomspace(1e-3, 1, 200))
    sides = np.random.default_rng(1).standard_normal((200, 8))
    together = mf.solve(A, sides)
    alone = [mf.solve(A, b).num_matvecs for b in sides.T]
    assert together.converged.all()
    assert together.num_matvecs <= 0.6 * sum(alone)


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_right_hand_sides_that_have_converged_cost_nothing(method):
    easy = np.linalg.eigh(POSITIVE)[1][:, :4].sum(1)  # in an invariant space of four vectors
    counted = Counted(POSITIVE)
    mf.solve(counted, np.c_[easy, easy, easy, B[:, 0]], method=method)
    alone = mf.solve(POSITIVE, B[:, 0], method=method).num_matvecs
    few = 40 if method == "lsmr" else 7
    assert counted.count <= alone + 3 * few


def test_dependent_right_hand_sides_are_solved():
    sides = np.c_[B[:, 0], 2 * B[:, 0], B[:, 0] + 1e-7 * B[:, 1], np.zeros(N)]
    solution = mf.solve(POSITIVE, sides, rtol=1e-11)
    np.testing.assert_allclose(solution.values, np.linalg.solve(POSITIVE, sides), atol=1e-9)
    assert solution.converged.all()
    assert not solution.values[:, 3].any()


def test_a_rectangular_operator_gives_least_squares_solutions():
    solution = mf.solve(TALL, B, rtol=1e-10)
    exact = np.linalg.lstsq(TALL, B)[0]
    np.testing.assert_allclose(solution.values, exact, atol=1e-9)
    np.testing.assert_allclose(solution.residuals, residuals(TALL, exact, B), rtol=1e-9)
    assert solution.converged.all()
    assert solution.reason == StoppingReason.LEAST_SQUARES
    wide = mf.solve(TALL.T, B[:25], rtol=1e-10)
    assert wide.reason == StoppingReason.RESIDUALS
    np.testing.assert_allclose(wide.values, np.linalg.pinv(TALL.T) @ B[:25], atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "minres", "lsmr"])
def test_a_singular_system_is_solved_if_it_has_a_solution(method):
    sides = SINGULAR @ B
    solution = mf.solve(SINGULAR, sides, method=method, rtol=1e-8)
    assert solution.converged.all()
    assert residuals(SINGULAR, solution.values, sides).max() <= 1e-8


@pytest.mark.parametrize("method", ["auto", "minres", "lsmr"])
def test_a_right_hand_side_outside_of_the_range_is_named(method):
    with pytest.warns(mf.ConvergenceWarning, match="not in the range.*least-squares"):
        solution = mf.solve(SINGULAR, B, method=method)
    assert solution.reason == StoppingReason.INCOMPATIBLE
    assert not solution.converged.any()
    best = residuals(SINGULAR, np.linalg.pinv(SINGULAR, rcond=1e-9) @ B, B)
    np.testing.assert_allclose(solution.residuals, best, rtol=1e-5)


def test_an_indefinite_operator_is_named_under_cg():
    with pytest.warns(mf.ConvergenceWarning, match=r'not positive definite.*method="minres"'):
        solution = mf.solve(INDEFINITE, B, method="cg")
    assert solution.reason == StoppingReason.INDEFINITE
    assert solution.residuals.max() <= 1
    np.testing.assert_allclose(residuals(INDEFINITE, solution.values, B), solution.residuals)


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("columns", [1, 3])
def test_an_operator_without_symmetry_is_refused_where_it_is_needed(method, columns):
    with pytest.raises(mf.NotHermitianError, match="lsmr"):
        mf.solve(GENERAL, B[:, :columns], method=method)
    without_adjoint = mf.aslinearoperator(lambda x: GENERAL @ x, shape=(N, N), like=B[0])
    with pytest.raises(mf.NotHermitianError, match="lsmr"):
        mf.solve(without_adjoint, B[:, :columns])
    with pytest.raises(mf.NoAdjointError):
        mf.solve(without_adjoint, B[:, :columns], method="lsmr")


def test_trivial_systems():
    assert mf.solve(POSITIVE, np.zeros(N)).num_matvecs == 0
    assert mf.solve(np.eye(N), B).num_matvecs == 2 * K
    np.testing.assert_allclose(mf.solve(np.eye(N), B).values, B)
    assert mf.solve(np.array([[-4.0]]), [2.0]).values == pytest.approx(-0.5)
    with pytest.warns(mf.ConvergenceWarning, match="not in the range"):
        assert not mf.solve(np.zeros((4, 4)), np.ones(4)).values.any()


@pytest.mark.parametrize("c", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_magnitude_of_the_operator_and_of_the_right_hand_sides_does_not_matter(name, c):
    A, method, _ = SYSTEMS[name]
    A = A / np.abs(A).max()
    exact = np.linalg.solve(A + 0.5 * np.eye(N), B)
    limit = 1e-7 * np.abs(exact).max()
    by_operator = mf.solve(A * c, B, method=method, shift=0.5 * c, rtol=1e-11)
    np.testing.assert_allclose(by_operator.values * c, exact, rtol=0, atol=limit)
    assert by_operator.shift == 0.5 * c
    by_sides = mf.solve(A, B * c, method=method, shift=0.5, rtol=1e-11)
    np.testing.assert_allclose(by_sides.values / c, exact, rtol=0, atol=limit)


def test_a_solution_beyond_the_range_of_the_data_type_is_an_error():
    with pytest.raises(OverflowError, match="range of float64"):
        mf.solve(1e-200 * POSITIVE, 1e200 * B)


def test_the_error_bound_holds_for_a_known_lower_bound_of_the_spectrum():
    A = with_spectrum(np.geomspace(1e-4, 1, N))
    exact = np.linalg.solve(A + 1e-2 * np.eye(N), B)
    solution = mf.solve(A, B, shift=1e-2, lower=0.0, rtol=1e-4)
    errors = np.linalg.norm(solution.values - exact, axis=0)
    assert np.all(errors <= solution.error_bound)
    assert np.all(solution.error_bound <= 1e4 * errors)
    assert mf.solve(A, B, shift=1e-2).error_bound is None
    assert mf.solve(A, B, shift=1e-2, lower=-1.0).error_bound is None


@pytest.mark.parametrize("method", ["auto", "minres"])
def test_a_lower_bound_that_a_rayleigh_quotient_contradicts_gives_no_error_bound(method):
    with pytest.warns(RuntimeWarning, match=r"lower=0\.5 is no lower bound of the spectrum"):
        assert mf.solve(INDEFINITE, B, lower=0.5, method=method).error_bound is None
    with pytest.warns(RuntimeWarning, match="no lower bound"):
        assert mf.solve(POSITIVE, B, lower=3.0, rtol=1e-10).error_bound is None
    with (
        pytest.warns(RuntimeWarning, match="no lower bound"),
        pytest.warns(mf.ConvergenceWarning, match="not in the range"),
    ):
        mf.solve(np.zeros((2, 2)), np.ones(2), lower=1.0)
    assert mf.solve(GENERAL, B, lower=0.5).error_bound is None  # it is not Hermitian


def test_shifts_real_and_complex():
    for shift, method in ((3.0, "conjugate gradients"), (-3.0, "MINRES"), (2j, "LSMR")):
        solution = mf.solve(POSITIVE, B, shift=shift, rtol=1e-10)
        assert solution.method.endswith(method)
        exact = np.linalg.solve(POSITIVE + shift * np.eye(N), B)
        np.testing.assert_allclose(solution.values, exact, atol=1e-8)


def test_a_good_start_saves_work_and_is_never_made_worse():
    exact = np.linalg.solve(POSITIVE, B)
    near = mf.solve(POSITIVE, B, start=exact * (1 + 1e-8), rtol=1e-10)
    assert near.num_matvecs < mf.solve(POSITIVE, B, rtol=1e-10).num_matvecs * 0.75
    again = mf.solve(POSITIVE, B, start=near, rtol=1e-10)
    assert again.num_matvecs == K
    np.testing.assert_array_equal(again.values, near.values)


def test_a_budget_that_ends_first_gives_the_best_vectors():
    counted = Counted(POSITIVE)
    with pytest.warns(mf.ConvergenceWarning, match="raise max_matvecs"):
        solution = mf.solve(counted, B, max_matvecs=20)
    assert counted.count == solution.num_matvecs <= 20
    assert solution.reason == StoppingReason.BUDGET
    assert solution.residuals.max() < 0.9
    with pytest.raises(ValueError, match=f"max_matvecs={2 * K} or more"):
        mf.solve(POSITIVE, B, max_matvecs=2 * K - 1)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_the_residual_never_grows(method):
    solution = mf.solve(POSITIVE, B[:, 0], method=method, rtol=1e-12)
    steps = [residual for _, residual in solution.history[:-1]]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(steps))


def test_rounding_is_named_where_it_limits_the_residual():
    with pytest.warns(mf.ConvergenceWarning, match="rounding in float64 limits"):
        solution = mf.solve(POSITIVE, B, rtol=1e-18)
    assert solution.reason == StoppingReason.ROUNDING
    assert solution.residuals.max() <= 1e-13


def test_noise_is_named_where_it_limits_the_residual():
    rng = np.random.default_rng(3)

    def noisy(x):
        return POSITIVE @ x + 1e-5 * rng.standard_normal(N)

    A = mf.aslinearoperator(noisy, shape=(N, N), like=np.zeros(1))
    with pytest.warns(mf.ConvergenceWarning, match="noisy"):
        solution = mf.solve(A, B, rtol=1e-9)
    assert solution.reason == StoppingReason.INCONSISTENT
    assert residuals(POSITIVE, solution.values, B).max() <= 1e-3


def test_a_preconditioner_reduces_the_steps_and_must_be_positive():
    scales = np.geomspace(1, 1e4, N)
    A = scales[:, None] ** 0.5 * POSITIVE * scales[None, :] ** 0.5
    for method in ("cg", "minres"):
        plain = mf.solve(A, B, method=method)
        helped = mf.solve(A, B, method=method, preconditioner=np.diag(1 / scales))
        assert residuals(A, helped.values, B).max() <= 1e-6
        assert helped.num_matvecs < plain.num_matvecs
        with pytest.raises(ValueError, match="positive definite"):
            mf.solve(A, B, method=method, preconditioner=-np.eye(N))
    with pytest.raises(mf.OperatorError, match="shape"):
        mf.solve(A, B, preconditioner=np.eye(3))
    with pytest.raises(ValueError, match="LSMR"):
        mf.solve(TALL, B, preconditioner=np.eye(N))


def test_nan_is_found_when_it_appears():
    calls = []

    def third(x):
        calls.append(1)
        return POSITIVE @ x * (np.nan if len(calls) == 3 else 1.0)

    A = mf.aslinearoperator(third, shape=(N, N), like=np.zeros(1))
    for method in ("cg", "minres"):
        calls.clear()
        with pytest.raises(mf.NonFiniteError, match="matvec"):
            mf.solve(A, B[:, 0], method=method)
        assert len(calls) <= 4


WRONG = {
    "length": ({"B": np.ones(N + 1)}, f"B must have shape \\({N},\\)"),
    "dimensions": ({"B": np.ones((N, 2, 2))}, "B must have shape"),
    "no columns": ({"B": np.ones((N, 0))}, "k > 0"),
    "complex": ({"B": 1j * B}, "B is complex"),
    "nan": ({"B": np.where(B > 2, np.nan, B)}, "B must be finite: column"),
    "start": ({"start": np.ones(3)}, "start must have shape"),
    "columns of start": ({"start": np.ones(N)}, "as many columns as B"),
    "method": ({"method": "gmres"}, "method must be"),
    "rtol": ({"rtol": -1.0}, "rtol must be"),
    "no tolerance": ({"rtol": 0.0}, "must be positive"),
    "shift": ({"shift": np.nan}, "shift must be a finite number"),
    "lower": ({"lower": "zero"}, "lower must be a finite number"),
    "block size": ({"block_size": 0}, "block_size must be"),
    "sparse": ({"B": scipy.sparse.csr_array(B)}, "B must"),
    "objects": ({"B": np.array([None] * N)}, "array of numbers"),
    "complex shift": ({"shift": 1j, "method": "cg"}, "real shift"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        mf.solve(POSITIVE, **{"B": B, **options})


@pytest.mark.parametrize(
    "options", [{"method": "cg"}, {"method": "minres"}, {"shift": 1.0}, {"lower": 1.0}]
)
def test_what_needs_a_square_operator_is_named(options):
    with pytest.raises(mf.OperatorError, match=r"needs a square operator|on eigenvalues"):
        mf.solve(TALL, B, **options)


def test_right_hand_sides_of_another_library_are_converted():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    here = mf.solve(POSITIVE, torch.tensor(B))
    there = mf.solve(torch.tensor(POSITIVE), B.tolist())
    assert isinstance(here.values, np.ndarray)
    assert isinstance(there.values, torch.Tensor)
    np.testing.assert_allclose(here.values, there.values.numpy(), atol=1e-6)


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_a_killed_run_resumes_to_the_same_solution(method, tmp_path):
    class Killed(BaseException):
        pass

    class Mortal(Counted):
        last = 10**6

        def matmat(self, X):
            if self.last == 0:
                raise Killed
            self.last -= 1
            return super().matmat(X)

    options = {"method": method, "rtol": 1e-9, "block_size": 2, "seed": 0}
    A = with_spectrum(np.linspace(1, 4, N))
    start = np.linalg.solve(A, B) + 1e-3
    unbroken = mf.solve(A, B, start=start, **options)
    for last in (1, 2, 7, 18, 24):
        path = tmp_path / f"{last}.npz"
        mortal = Mortal(A)
        mortal.last = last
        with pytest.raises(Killed):
            mf.solve(mortal, B, start=start, checkpoint=path, **options)
        resumed = mf.solve(A, B, start=start, checkpoint=path, **options)
        np.testing.assert_allclose(resumed.values, unbroken.values, rtol=1e-12)
        assert resumed.num_steps == unbroken.num_steps
    with pytest.raises(ValueError, match="another run"):
        mf.solve(A, 2 * B, start=start, checkpoint=path, **options)


def test_a_callback_stops_the_run_with_what_was_found():
    seen = []

    def stop(step):
        seen.append(step)
        return bool(step.residuals.max() < 1e-2)

    with pytest.warns(mf.ConvergenceWarning, match="pass this result as start"):
        solution = mf.solve(POSITIVE, B, callback=stop)
    assert solution.reason == StoppingReason.CALLBACK
    assert solution.residuals.max() <= 1e-2
    assert len(seen) == solution.num_steps

    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(mf.Interrupted) as stopped:
        mf.solve(POSITIVE, B, callback=interrupt)
    assert stopped.value.result.num_steps == 1
    assert stopped.value.result.residuals.max() < 1


def test_a_solution_is_saved_and_printed(tmp_path):
    solution = mf.solve(POSITIVE, np.tile(B, 5), lower=1.0, seed=0)
    read = mf.Solution.load(solution.save(tmp_path / "solution"))
    np.testing.assert_array_equal(read.values, solution.values)
    assert str(read) == str(solution)
    assert re.search("largest residual", str(solution))
    np.testing.assert_allclose(solution.times(2.0).values * 2, solution.values)


@pytest.mark.parametrize("options", [{}, {"preconditioner": "nystrom", "shift": 0.1}])
@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_other_processes_resume_a_sharded_run(method, options, tmp_path):
    if method == "lsmr" and options:
        options = {"shift": 0.1}
    A = with_spectrum(np.linspace(1, 4, N))
    options = {"method": method, "rtol": 1e-9, "seed": 0, **options}

    def run(operator, stop=None):
        rows = operator.space.rows
        sides = B[rows.start : rows.stop]
        callback = None if stop is None else lambda step: step.num_matvecs > stop
        return mf.solve(operator, sides, checkpoint=tmp_path / "run", callback=callback, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        run_sharded((40, 20), MAKERS["numpy"](), A, lambda operator: run(operator, 25))
    shards = run_sharded((25, 0, 35), MAKERS["numpy"](), A, run)
    whole = mf.solve(A, B, **options)
    assert_close(np.concatenate([shard.values for shard in shards]), whole.values)
    assert shards[0].num_steps == whole.num_steps
