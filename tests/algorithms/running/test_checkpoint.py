"""A run that is killed at any moment resumes from its checkpoint and gives the same result."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.backends import MAKERS, ON_A_GPU, assert_close
from support.matrices import laplacian_2d
from support.runs import BLOCKS_BETWEEN_SAVES, PSD, RUNS, SEMIDEFINITE, A, Killed, numbers

import matfree as mf
from matfree.arrays import to_host

STORED = Path(__file__).parent / "data"
"""Checkpoints that version 0.1 wrote in the middle of the runs of ``support.runs``."""


SAMPLED = ("hutchinson", "tolerance", "trace of a function")
"""Runs whose standard error follows from one deviation per probe."""


class Mortal:
    """An operator that raises ``Killed`` instead of computing matmat number ``last``."""

    def __init__(self, matrix, last):
        self.shape, self.dtype, self.matrix, self.left = matrix.shape, matrix.dtype, matrix, last

    def matvec(self, x):
        return self.matmat(x[:, None])[:, 0]

    def matmat(self, X):
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.matrix @ X


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_any_block_resumes_to_the_same_result(name, tmp_path):
    run, matrix = RUNS[name], PSD if name in SEMIDEFINITE else A
    unbroken = run(Mortal(matrix, -1), None)
    whole = run(counter := Mortal(matrix, 10**6), tmp_path / "whole")
    blocks = 10**6 - counter.left
    assert whole.num_matvecs > unbroken.num_matvecs  # the matvec that identifies the operator
    for last in range(1, blocks, max(1, blocks // 8)):
        path = tmp_path / f"{last}.npz"
        with pytest.raises(Killed):
            run(Mortal(matrix, last), path)
        resumed = run(survivor := Mortal(matrix, 10**6), path)
        for a, b in zip(numbers(resumed), numbers(unbroken), strict=True):
            assert_close(a, b, scale=max(1.0, np.abs(b).max(initial=0)))
        # the checksum of the operator, and the matvecs after the last save, are computed again
        again = BLOCKS_BETWEEN_SAVES.get(name, 1)
        assert 10**6 - survivor.left <= blocks - last + 2 + again
        assert not list(tmp_path.glob("*eigenpairs*"))


@pytest.mark.parametrize("name", ["torch", "strict-device1", *ON_A_GPU])
@pytest.mark.parametrize("what", ["diagonal", "xtrace", "eigsh"])
def test_a_checkpoint_is_restored_to_the_array_library_of_its_run(name, what, tmp_path):
    backend, run = MAKERS[name](), RUNS[what]
    B = mf.aslinearoperator(backend.asarray(A))
    unbroken = run(B, None)

    def dying(calls=[0]):  # noqa: B006  # a counter
        def matmat(X):
            calls[0] += 1
            if calls[0] == 4:
                raise Killed
            return B.matmat(X)

        return mf.FunctionOperator(
            lambda x: matmat(x[:, None])[:, 0], space=B.space, matmat=matmat, name="dying"
        )

    with pytest.raises(Killed):
        run(dying(), tmp_path / "run")
    resumed = run(B, tmp_path / "run")
    got = numbers(resumed) if what == "eigsh" else [to_host_or_number(resumed.value)]
    expected = numbers(unbroken) if what == "eigsh" else [to_host_or_number(unbroken.value)]
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, scale=150)


def to_host_or_number(x):
    return to_host(x) if hasattr(x, "__dlpack__") else np.asarray(x)


def test_a_finished_run_is_returned_at_once_and_can_be_extended(tmp_path):
    path = tmp_path / "run"
    mf.trace(A, num_probes=10, checkpoint=path, seed=1)
    again = mf.trace(A, num_probes=10, checkpoint=path, seed=1)
    assert again.num_matvecs == 10 + 2
    more = mf.trace(A, num_probes=30, checkpoint=path, seed=1)
    assert more.value == pytest.approx(mf.trace(A, num_probes=30, seed=1).value)
    with pytest.raises(ValueError, match="already holds 30 probes"):
        mf.trace(A, num_probes=20, checkpoint=path, seed=1)


@pytest.mark.parametrize("path", sorted(STORED.glob("*.npz")), ids=lambda path: path.stem)
def test_a_checkpoint_of_version_0_1_resumes(path, tmp_path):
    name = path.name.split(".")[0].replace("_", " ").replace("pp", "++")
    run, matrix = RUNS[name], PSD if name in SEMIDEFINITE else A
    unbroken = run(Mortal(matrix, -1), None)
    shutil.copy(path, tmp_path)
    stem = path.name.split(".")[0]
    whole = 10**6 - counted(run, matrix)
    with warnings.catch_warnings():
        # That version stored no recurrence coefficients, so that the quadrature bias is unknown.
        warnings.filterwarnings("ignore", "the quadrature error of .* is unknown")
        resumed = run(survivor := Mortal(matrix, 10**6), tmp_path / stem)
    assert 10**6 - survivor.left <= whole + 1  # identifying the operator takes up to two blocks
    results = [numbers(resumed), numbers(unbroken)]
    if name in SAMPLED:
        # That version stored no deviations either: the error is that of the scatter, with which a
        # tolerance may be met after another number of probes.
        assert resumed.deviations is None
        spread = np.std(resumed.samples, ddof=1) / np.sqrt(resumed.num_probes)
        assert resumed.stderr == pytest.approx(spread)
        fewest = min(resumed.num_probes, unbroken.num_probes)
        results = [[run.samples[:fewest]] for run in (resumed, unbroken)]
    if name == "frobenius norm":
        results = [[run.value] for run in (resumed, unbroken)]
    if name in ("density within a budget", "density without the basis"):
        # Without orthogonalization single nodes depend on rounding; the first moment does not.
        results = [[nodes @ weights] for nodes, weights in results]
    for a, b in zip(*results, strict=True):
        # Another LAPACK makes another matrix in the last digits, which the file does not know.
        assert_close(a, b, np.float32, scale=max(1.0, np.abs(b).max(initial=0)))


def counted(run, matrix):
    run(mortal := Mortal(matrix, 10**6), None)
    return mortal.left


def test_fresh_entropy_is_drawn_once(tmp_path):
    first = mf.trace(A, num_probes=5, checkpoint=tmp_path / "run")
    assert mf.trace(A, num_probes=5, checkpoint=tmp_path / "run").seed == first.seed


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "run"
    mf.trace(A, num_probes=6, checkpoint=path, seed=1)
    for match, run in (
        (
            "seed is 1 in the file and 2 in this run",
            lambda: mf.trace(A, num_probes=6, checkpoint=path, seed=2),
        ),
        (
            "estimator is 'HutchinsonTrace' in the file and 'XTrace' in this run",
            lambda: mf.trace(A, method="xtrace", num_probes=6, checkpoint=path),
        ),
        (
            "kind is 'rademacher' in the file and 'sphere'",
            lambda: mf.trace(A, num_probes=6, kind="sphere", checkpoint=path),
        ),
        ("shape is", lambda: mf.trace(np.eye(7), num_probes=6, checkpoint=path)),
        ("dtype is", lambda: mf.trace(A.astype(np.float32), num_probes=6, checkpoint=path)),
        ("another operator", lambda: mf.trace(A + 0.1, num_probes=6, checkpoint=path)),
    ):
        with pytest.raises(ValueError, match=match):
            run()
    mf.trace_function(A, "exp", num_probes=2, num_steps=5, checkpoint=tmp_path / "f", seed=1)
    with pytest.raises(ValueError, match="f at five points differs"):
        mf.trace_function(A, np.cos, num_probes=2, num_steps=5, checkpoint=tmp_path / "f")


def test_a_file_that_is_truncated_or_not_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    mf.diagonal(A, num_probes=6, checkpoint=path, seed=1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="Delete it to start again"):
        mf.diagonal(A, num_probes=6, checkpoint=path, seed=1)
    saved = mf.trace(A, num_probes=2, seed=0).save(tmp_path / "result")
    with pytest.raises(ValueError, match="contains a saved Estimate, not a checkpoint"):
        mf.trace(A, num_probes=6, checkpoint=saved, seed=0)
    mf.trace(A, num_probes=6, checkpoint=tmp_path / "other", seed=0)
    with pytest.raises(ValueError, match="of kind checkpoint, which no imported package defines"):
        mf.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match="create it first"):
        mf.trace(A, num_probes=6, checkpoint=tmp_path / "nowhere" / "run", seed=0)


SCRIPT = """
import sys, time
import numpy as np, scipy.sparse
import matfree as mf

A = scipy.sparse.load_npz(sys.argv[1])

class Slow:
    shape, dtype = A.shape, np.dtype(np.float64)
    def matvec(self, x):
        return A @ x
    def matmat(self, X):
        time.sleep(0.01)
        return A @ X

method, path = sys.argv[2:4]
print("ready", flush=True)
if method == "eigsh":
    result = mf.eigsh(Slow(), 4, seed=3, checkpoint=path, num_vectors=20)
else:
    result = mf.trace(Slow(), method=method, max_matvecs=96, block_size=2, seed=3, checkpoint=path)
result.save(sys.argv[4])
"""


def start(tmp_path, method, name):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "A.npz"), method]
    command += [str(tmp_path / f"{name}.npz"), str(tmp_path / f"{name}-result.npz")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    roots = [str(Path(mf.__file__).parents[1]), str(Path(mf.__file__).parents[1] / "adapters")]
    environment["PYTHONPATH"] = os.pathsep.join([*roots, environment.get("PYTHONPATH", "")])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_process_killed_ten_times_at_random_loses_only_its_current_block(tmp_path):
    import scipy.sparse

    matrix = laplacian_2d(12)
    scipy.sparse.save_npz(tmp_path / "A.npz", matrix)
    rng = np.random.default_rng(0)
    for method, kills in (("hutchinson", 3), ("xtrace", 3), ("eigsh", 4)):
        additional = []
        for _ in range(kills):
            process = start(tmp_path, method, method)
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.02, 0.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        process = start(tmp_path, method, method)
        assert process.wait() == 0
        process.stdout.close()
        result = mf.load(tmp_path / f"{method}-result.npz")
        if method == "eigsh":
            expected = mf.eigsh(matrix, 4, seed=3, num_vectors=20)
            assert_close(result.values, expected.values)
        else:
            expected = mf.trace(matrix, method=method, max_matvecs=96, block_size=2, seed=3)
            assert result.value == pytest.approx(expected.value, rel=1e-12)
            assert result.stderr == pytest.approx(expected.stderr, rel=1e-9)
        additional.append(result.num_matvecs - expected.num_matvecs)
        assert 1 <= additional[0] <= kills + 1  # one per start, and nothing is computed twice
