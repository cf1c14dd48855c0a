"""Traces and diagonals of diagonal blocks do not depend on the other blocks."""

import itertools

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.intervals import error_of_runs
from support.matrices import complex_hermitian, nn_spectrum, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

N = 90
A = with_spectrum(nn_spectrum(N), seed=4)
PARTS = {"a": slice(0, 5), "b": slice(5, 40), "c": range(50, 90)}


def exact(matrix, part):
    return np.trace(matrix[part.start : part.stop, part.start : part.stop])


@pytest.mark.parametrize("joint", [False, True])
def test_averaging_over_all_sign_vectors_gives_each_blocks_trace_and_variance(joint, monkeypatch):
    n = 6
    G = np.random.default_rng(0).standard_normal((n, n))
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=n))).T
    monkeypatch.setattr(
        mf.VectorSpace,
        "probes",
        lambda self, num_probes, *, start=0, **_: signs[:, start : start + num_probes],
    )
    parts = {"x": slice(0, 2), "y": slice(3, 6)}
    traces = mf.block_traces(G, parts, joint=joint, num_probes=64, seed=0, block_size=7)
    for name, part in parts.items():
        block = G[part, part]
        assert abs(traces[name].value - np.trace(block)) <= 1e-13
        S = (block + block.T) / 2
        variance = 2 * (np.sum(S**2) - np.sum(np.diag(S) ** 2))
        if joint:  # the other columns of the block row
            variance += np.sum(np.delete(G[part, :], np.r_[part], axis=1) ** 2)
        assert abs(traces[name].stderr ** 2 * 63 - variance) <= 1e-12


@pytest.mark.parametrize("joint", [False, True])
def test_every_backend_gives_the_blocks_traces(backend, dtype, joint):
    matrix = complex_hermitian(N) if np.issubdtype(dtype, np.complexfloating) else A
    traces = mf.block_traces(
        backend.asarray(matrix, dtype), PARTS, joint=joint, num_probes=40, seed=1
    )
    assert list(traces) == list(PARTS)
    for name, part in PARTS.items():
        assert abs(traces[name].value - exact(matrix, part)) <= 5 * traces[name].stderr
        assert traces[name].num_matvecs == 40
        assert traces[name].size == part.stop - part.start


@pytest.mark.parametrize("joint", [False, True])
def test_the_block_size_changes_nothing(joint):
    runs = [
        mf.block_traces(A, PARTS, joint=joint, num_probes=9, seed=1, block_size=size)
        for size in (1, 4, 100)
    ]
    for other in runs[1:]:
        for name in PARTS:
            assert_close(other[name].samples, runs[0][name].samples, scale=150)


def test_a_block_has_the_probes_of_the_whole_operator():
    W = mf.space_like(A, N).probes(9, seed=1)
    samples = mf.block_traces(A, PARTS, num_probes=9, seed=1)["b"].samples
    w = W[5:40]
    assert_close(samples, np.sum(w * (A[5:40, 5:40] @ w), axis=0))


def test_joint_probes_have_a_larger_variance_and_standard_error():
    alone = mf.block_traces(A, PARTS, num_probes=200, seed=1)
    joint = mf.block_traces(A, PARTS, joint=True, num_probes=200, seed=1)
    for name, part in PARTS.items():
        assert joint[name].stderr > alone[name].stderr
        assert abs(joint[name].value - exact(A, part)) <= 4 * joint[name].stderr
    blocks = np.kron(
        np.eye(3), np.ones((4, 4)) + np.eye(4)
    )  # without coupling, both give the same samples
    parts = {str(i): slice(4 * i, 4 * i + 4) for i in range(3)}
    alone = mf.block_traces(blocks, parts, num_probes=11, seed=1)
    joint = mf.block_traces(blocks, parts, joint=True, num_probes=11, seed=1)
    for name in parts:
        assert_close(alone[name].samples, joint[name].samples)


def test_a_tolerance_is_met_block_by_block_and_small_blocks_are_exact():
    spectrum = np.linspace(1, 2, N)
    matrix = with_spectrum(spectrum, seed=5)
    traces = mf.block_traces(matrix, PARTS, rtol=0.05, seed=1)
    assert traces["a"].method == "exact"
    assert traces["a"].num_matvecs == 5
    assert_close(traces["a"].value, exact(matrix, PARTS["a"]))
    for name in ("b", "c"):
        assert traces[name].converged
        assert traces[name].half_width() <= 0.05 * traces[name].value
        assert abs(traces[name].value / exact(matrix, PARTS[name]) - 1) < 0.08
    hard = mf.block_traces(A, PARTS, rtol=1e-9, seed=1)
    for name, part in PARTS.items():
        assert hard[name].method == "exact"
        assert_close(hard[name].value, exact(A, part), scale=150)


def test_an_exhausted_budget_names_the_blocks_that_have_not_converged():
    with pytest.warns(mf.ConvergenceWarning, match="2 of 3 blocks met the tolerance"):
        traces = mf.block_traces(A, PARTS, rtol=1e-3, max_matvecs=47, seed=1)
    assert traces["a"].converged
    assert not traces["b"].converged
    assert sum(trace.num_matvecs for trace in traces.values()) <= 47
    spent = mf.block_traces(A, PARTS, max_matvecs=30, seed=1)
    assert [trace.num_probes for trace in spent.values()] == [10, 10, 10]


@pytest.mark.parametrize("cuts", [(70, 20), (13, 31, 46)])
@pytest.mark.parametrize("joint", [False, True])
def test_sharded_vectors_give_the_same_estimates(cuts, joint):
    def run(B):
        return mf.block_traces(B, PARTS, joint=joint, num_probes=8, seed=1)

    whole = run(A)
    for shard in run_sharded(cuts, MAKERS["numpy"](), A, run):
        for name in PARTS:
            assert_close(shard[name].samples, whole[name].samples, scale=150)


class Killed(BaseException):
    pass


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path):
    def dying(last):
        calls = iter(range(last))

        def matmat(X):
            if next(calls, None) is None:
                raise Killed
            return A @ X

        space = mf.space_like(A, N)
        return mf.FunctionOperator(lambda x: A @ x, space=space, matmat=matmat, name="dying")

    def run(B, path):
        return mf.block_traces(
            B, PARTS, rtol=0.01, max_matvecs=200, block_size=7, checkpoint=path, seed=1
        )

    unbroken = run(A, None)
    for last in (1, 2, 5, 8):
        with pytest.raises(Killed):
            run(dying(last), tmp_path / f"{last}")
        resumed = run(A, tmp_path / f"{last}")
        for name in PARTS:
            assert resumed[name].method == unbroken[name].method
            assert_close(resumed[name].value, unbroken[name].value, scale=150)
    with pytest.raises(ValueError, match="partition is"):
        mf.block_traces(A, {"z": slice(0, 9)}, checkpoint=tmp_path / "1")


def test_runs_over_other_probes_merge():
    whole = mf.block_traces(A, PARTS, num_probes=20, seed=1)
    halves = [mf.block_traces(A, PARTS, num_probes=10, first_probe=p, seed=1) for p in (0, 10)]
    W = mf.space_like(A, N).probes(20, seed=1)
    for name, part in PARTS.items():
        block, probes = A[part, :][:, part], W[part]
        merged = halves[0][name].merge(halves[1][name])
        assert_close(merged.value, whole[name].value)
        for run, parts in ((merged, np.split(probes, 2, axis=1)), (whole[name], [probes])):
            stderr, degrees_of_freedom, _ = error_of_runs(block, *parts)
            assert run.stderr == pytest.approx(stderr, rel=1e-9)
            assert run.degrees_of_freedom == pytest.approx(degrees_of_freedom, rel=1e-7)


def test_diagonals_of_blocks_match_the_matrix():
    for joint in (False, True):
        found = mf.block_diagonals(A, PARTS, joint=joint, num_probes=300, seed=1)
        for name, part in PARTS.items():
            truth = np.diag(A)[part.start : part.stop]
            assert found[name].value.shape == truth.shape
            inside = np.abs(found[name].value - truth) <= 3 * found[name].stderr
            assert inside.mean() > 0.9
    alone = mf.block_diagonals(A, PARTS, num_probes=300, seed=1)
    assert alone["b"].stderr.mean() < found["b"].stderr.mean()
    best = mf.block_diagonals(A, PARTS, method="xdiag", num_probes=10, seed=1)
    assert np.abs(best["b"].value - np.diag(A)[5:40]).max() < 0.5


def test_the_partition_of_a_networks_hessian_is_one(needs_torch):
    import torch

    from matfree_torch import hessian

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    data = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    H = hessian(model.double(), torch.nn.CrossEntropyLoss(), data)
    dense = to_host(H.to_dense())
    traces = mf.block_traces(H, H.partition, num_probes=200, seed=0)
    for name, part in H.partition.items():
        truth = np.trace(dense[part, part])
        assert abs(traces[name].value - truth) <= 4 * traces[name].stderr + 1e-12


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({}, "at least one block"),
        ([slice(0, 3)], "at least one block"),
        ({"x": slice(0, 10), "y": slice(9, 20)}, "'x' and 'y' overlap"),
        ({"x": slice(0, N + 1)}, "0 <= start < stop"),
        ({"x": slice(4, 4)}, "0 <= start < stop"),
        ({"x": 4}, "must be a slice or a range"),
        ({"x": slice(0, 8, 2)}, "0 <= start < stop"),
    ],
)
def test_an_invalid_partition_is_refused(partition, message):
    with pytest.raises(ValueError, match=message):
        mf.block_traces(A, partition)


def test_joint_probes_are_replaced_by_unit_vectors_if_those_are_fewer():
    traces = mf.block_traces(A, PARTS, joint=True, rtol=1e-9, max_matvecs=300, seed=1)
    for name, part in PARTS.items():
        assert traces[name].method == "exact"
        assert_close(traces[name].value, exact(A, part), scale=150)
        assert traces[name].num_matvecs <= 2 * 80  # the blocks have 80 coordinates
    with pytest.warns(mf.ConvergenceWarning, match="3 of 3 blocks"):
        short = mf.block_traces(A, PARTS, joint=True, rtol=1e-9, max_matvecs=79, seed=1)
    assert [trace.num_probes for trace in short.values()] == [79, 79, 79]


@pytest.mark.parametrize("joint", [False, True])
def test_diagonals_of_blocks_resume_from_their_checkpoints(joint, tmp_path):
    options = {"joint": joint, "seed": 1, "checkpoint": tmp_path / "run"}
    parts = {"a": slice(0, 30), "b": slice(30, 60)}  # of equal size
    few = mf.block_diagonals(A, parts, num_probes=5, **options)
    more = mf.block_diagonals(A, parts, num_probes=9, **options)
    once = mf.block_diagonals(A, parts, joint=joint, num_probes=9, seed=1)
    for name in parts:
        assert few[name].num_probes == 5
        assert_close(more[name].value, once[name].value)


def test_the_reason_of_a_run_stopped_by_a_callback_names_no_tolerance():
    stopped = mf.block_traces(
        A, PARTS, num_probes=9, block_size=4, seed=1, callback=lambda estimates: True
    )
    assert not stopped["c"].converged
    assert "tolerance" not in stopped["c"].reason


def test_sharded_vectors_give_the_local_rows_of_the_diagonals_of_blocks():
    def run(B):
        return mf.block_diagonals(B, PARTS, joint=True, num_probes=8, seed=1)

    whole, shards = run(A), run_sharded((20, 70), MAKERS["numpy"](), A, run)
    for name in PARTS:
        assert_close(np.concatenate([shard[name].value for shard in shards]), whole[name].value)
