"""A run on sharded vectors can be resumed with any other number of processes."""

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.runs import BLOCKS_BETWEEN_SAVES, PSD, RUNS, SEMIDEFINITE, A, Killed, N, numbers
from support.sharded import run_sharded

import matfree as mf
from matfree.algorithms.running import state_file
from matfree.results import archive

NUMPY = MAKERS["numpy"]()

SHARDINGS = {  # rows per process before and after the interruption, and its time
    "other rows": ((42, 18), (7, 0, 33, 20), 0.3),
    "fewer": ((7, 0, 33, 20), (42, 18), 0.5),
    "to one process": ((42, 18), None, 0.8),
    "from one process": (None, (42, 18), 0.6),
    "to one shard": ((42, 18), (60,), 0.4),
}


def mortal(B, last):
    """An operator that raises ``Killed`` instead of computing matmat number ``last``."""
    left = [last]

    def matmat(X):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return B.matmat(X)

    return mf.FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0], space=B.space, matmat=matmat, name="mortal"
    )


def run_over(cuts, matrix, function):
    """The results of all processes, or of one process with whole vectors."""
    if cuts is None:
        return [function(mf.aslinearoperator(matrix))]
    return run_sharded(cuts, NUMPY, matrix, function)


def joined(results):
    """The numbers of a result, with the rows of all processes concatenated."""
    if isinstance(results[0], mf.SpectralDensity):  # nodes are not determined by A up to rounding
        return [np.asarray([results[0].trace_function(f).value for f in (np.cos, np.tanh)])]
    parts = [numbers(result) for result in results]
    if isinstance(results[0], mf.EigenResult):
        values, _, residuals = parts[0]
        return [values, np.concatenate([part[1] for part in parts]), residuals]
    if parts[0][0].ndim:
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return parts[0]


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS.keys())
@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_with_other_shards_to_the_same_result(name, sharding, tmp_path):
    run, matrix = RUNS[name], PSD if name in SEMIDEFINITE else A
    before, after, share = sharding
    sent = []
    unbroken = joined([run(counting(mf.aslinearoperator(matrix), sent), tmp_path / "whole")])
    blocks = len(sent)
    last, path = int(share * blocks), tmp_path / "run.npz"
    with pytest.raises(Killed):
        run_over(before, matrix, lambda B: run(mortal(B, last), path))
    sent.clear()
    resumed = joined(run_over(after, matrix, lambda B: run(counting(B, sent), path)))
    size = max(
        np.abs(b).max() for b in unbroken
    )  # errors of the order of rounding are relative to it
    for a, b in zip(resumed, unbroken, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0.0) <= 1e-12 * size  # another order of summation
    computed = len(sent) // (1 if after is None else len(after))
    assert computed <= blocks - last + 2 + BLOCKS_BETWEEN_SAVES.get(name, 1)  # as in one process


def counting(B, sent):
    def matmat(X):
        sent.append(X.shape[1])
        return B.matmat(X)

    return mf.FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0], space=B.space, matmat=matmat, name="counting"
    )


def diagonal(path, num_probes=8):
    return lambda B: mf.diagonal(B, num_probes=num_probes, block_size=4, checkpoint=path, seed=1)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_only_the_last_generation_of_shards_is_kept(tmp_path):
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))
    assert names(tmp_path) == ["run.npz", "run.piece-2-0-40.npz", "run.piece-2-40-60.npz"]
    run_sharded((10, 0, 50), NUMPY, A, diagonal(tmp_path / "run", 12))
    assert names(tmp_path) == ["run.npz", "run.piece-3-0-10.npz", "run.piece-3-10-60.npz"]
    diagonal(tmp_path / "run", 16)(A)
    assert names(tmp_path) == ["run.npz"]


def test_a_state_without_rows_is_one_file(tmp_path):
    run_sharded(
        (40, 20), NUMPY, A, lambda B: mf.trace(B, num_probes=4, checkpoint=tmp_path / "run", seed=1)
    )
    assert names(tmp_path) == ["run.npz"]


@pytest.mark.parametrize("when", ["between the shards", "before the main file"])
def test_an_interruption_between_two_writes_leaves_the_previous_generation(
    when, tmp_path, monkeypatch
):
    path = tmp_path / "run"
    run_sharded((40, 20), NUMPY, A, diagonal(path))
    write = archive.write_archive

    def dying(target, kind, values):
        if target.name == ("run.piece-3-40-60.npz" if when.startswith("between") else "run.npz"):
            raise Killed
        write(target, kind, values)

    monkeypatch.setattr(archive, "write_archive", dying)
    with pytest.raises(Killed):
        run_sharded((40, 20), NUMPY, A, diagonal(path, 12))
    monkeypatch.undo()
    assert "run.piece-2-0-40.npz" in names(tmp_path)
    again = run_sharded((25, 35), NUMPY, A, diagonal(path, 12))
    expected = mf.diagonal(A, num_probes=12, seed=1).value
    assert_close(np.concatenate([p.value for p in again]), expected, scale=150)
    assert names(tmp_path) == ["run.npz", "run.piece-3-0-25.npz", "run.piece-3-25-60.npz"]


def test_a_shard_that_is_missing_truncated_or_foreign_is_named(tmp_path):
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "other"))
    shard = tmp_path / "run.piece-2-40-60.npz"
    contents = shard.read_bytes()
    for change, reason in (
        (lambda: shard.write_bytes(contents[:-50]), "it is truncated"),
        (
            lambda: shard.write_bytes((tmp_path / "other.piece-2-40-60.npz").read_bytes()),
            "belongs to another run",
        ),
        (shard.unlink, "No such file"),
    ):
        change()
        for attempt in (
            lambda: diagonal(tmp_path / "run", 12)(A),
            lambda: run_sharded((30, 30), NUMPY, A, diagonal(tmp_path / "run", 12)),
        ):
            with pytest.raises(ValueError, match=f"{reason}.*Restore run.piece-2-40-60.npz"):
                attempt()
    shard.write_bytes(contents)
    resumed = diagonal(tmp_path / "run", 12)(A)
    assert_close(resumed.value, mf.diagonal(A, num_probes=12, seed=1).value, scale=150)


def test_folders_that_are_not_shared_are_detected_at_the_first_write(tmp_path):
    def apart(B):
        folder = tmp_path / str(B.space.rank)
        folder.mkdir()
        return diagonal(folder / "run")(B)

    with pytest.raises(OSError, match="file system that all processes share"):
        run_sharded((40, 20), NUMPY, A, apart)


def test_processes_that_see_different_files_are_refused(tmp_path):
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))

    def elsewhere(B):
        path = tmp_path / ("run" if B.space.rank == 0 else "nothing")
        return mf.diagonal(B, num_probes=12, block_size=4, checkpoint=path, seed=1)

    with pytest.raises(mf.OperatorError, match="process 1 does not see the same checkpoint"):
        run_sharded((40, 20), NUMPY, A, elsewhere)


def test_a_reader_reads_only_its_rows(tmp_path):
    X = np.arange(3 * N * 2, dtype=np.float32).reshape(3, N, 2)
    upright = np.asfortranarray(X[0])
    path = tmp_path / "some.npz"
    archive.write_archive(
        path, "test", {"X": X, "both": (X[1], X[2]), "upright": upright, "none": X[:0]}
    )
    with archive.open_archive(path) as file:
        assert np.array_equal(file.rows("X", 1, slice(7, 19)), X[:, 7:19])
        for found, whole in zip(file.rows("both", 0, slice(50, 60)), X[1:], strict=True):
            assert np.array_equal(found, whole[50:60])
        assert np.array_equal(file.rows("upright", 0, slice(3, 5)), upright[3:5])
        assert file.rows("none", 1, slice(0, 4)).shape == (0, 4, 2)
        assert file.rows("X", 1, slice(0, 0)).shape == (3, 0, 2)


def test_discarding_deletes_the_shards(tmp_path):
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run.also"))
    state_file.discard(tmp_path / "run.npz", mf.aslinearoperator(A).space)
    assert names(tmp_path) == [
        "run.also.npz",
        "run.also.piece-2-0-40.npz",
        "run.also.piece-2-40-60.npz",
    ]
