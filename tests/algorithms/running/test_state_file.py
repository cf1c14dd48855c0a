"""A run on sharded vectors can be resumed with any other number of processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.runs import BLOCKS_BETWEEN_SAVES, PSD, RUNS, SEMIDEFINITE, A, Killed, N, numbers
from support.sharded import run_sharded

import matfree as mf
from matfree.algorithms.running import state_file
from matfree.results.files import archive

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
    path = tmp_path / "run"
    run_sharded(
        (40, 20), NUMPY, A, lambda B: mf.frobenius_norm(B, num_probes=4, checkpoint=path, seed=1)
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


def search(path, seed=1):
    return lambda B: mf.eigsh(B, 2, verify=False, checkpoint=path, seed=seed)


def test_only_the_search_of_the_same_run_is_discarded(tmp_path):
    space = mf.aslinearoperator(A).space
    for name in ("run", "run.also"):
        run_sharded((40, 20), NUMPY, A, search(tmp_path / name))
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "diagonal"))
    mf.trace(A, num_probes=2, seed=1).save(tmp_path / "result")
    everything = names(tmp_path)
    state_file.discard(tmp_path / "run.npz", space, seed=2)
    for other in ("diagonal", "result", "nothing"):
        state_file.discard(tmp_path / f"{other}.npz", space, seed=1)
    assert names(tmp_path) == everything
    state_file.discard(tmp_path / "run.npz", space, seed=1)
    assert names(tmp_path) == [
        name for name in everything if not name.startswith(("run.npz", "run.piece"))
    ]


def test_files_of_others_next_to_a_checkpoint_are_left_alone(tmp_path):
    """Results, other checkpoints and shards, whatever their names."""
    mf.trace(A, num_probes=4, seed=0).save(tmp_path / "run.piece-final")
    mf.trace(A, num_probes=4, seed=0).save(tmp_path / "run.piece-1-0-7")
    mf.eigsh(A, 2, seed=0).save(tmp_path / "run.eigenpairs")
    mf.diagonal(A, num_probes=4, seed=0, checkpoint=tmp_path / "run.piece-b")
    run_sharded((42, 18), NUMPY, A, diagonal(tmp_path / "run.piece-1-2-3"))
    (tmp_path / ".run.npz.1-0.partial").write_bytes(b"of another process")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))
    run_sharded((30, 30), NUMPY, A, diagonal(tmp_path / "run", 12))
    diagonal(tmp_path / "run", 16)(A)
    mf.spectral_density(A, num_probes=2, num_steps=5, seed=1, checkpoint=tmp_path / "density")
    assert {path: path.read_bytes() for path in before} == before
    assert set(names(tmp_path)) == {path.name for path in before} | {"run.npz", "density.npz"}


def test_a_shard_does_not_overwrite_another_file(tmp_path):
    saved = mf.trace(A, num_probes=4, seed=0).save(tmp_path / "run.piece-1-0-40")
    before = saved.read_bytes()
    with pytest.raises(ValueError, match=r"name run.piece-1-0-40.npz, which is that of another"):
        run_sharded((40, 20), NUMPY, A, diagonal(tmp_path / "run"))
    assert saved.read_bytes() == before


def test_of_two_sharded_runs_on_one_path_one_ends_with_an_error(tmp_path):
    """The second run starts when the first one has written its first generation."""
    path, started = tmp_path / "run", []

    def interrupted(B):
        def intrude(estimate):
            if not started:
                started.append(B.space.rank)
                diagonal(path, 16)(A)  # another run on the same path
            return

        return mf.diagonal(B, num_probes=8, block_size=4, checkpoint=path, seed=1, callback=intrude)

    with pytest.raises(ValueError, match="another run writes to this path at the same time"):
        run_sharded((40, 20), NUMPY, A, interrupted)
    resumed = diagonal(path, 16)(A)
    assert_close(resumed.value, mf.diagonal(A, num_probes=16, seed=1).value, scale=150)


def test_only_the_unfinished_files_of_dead_processes_of_the_run_are_deleted(tmp_path):
    path = tmp_path / "run.npz"
    diagonal(path)(A)
    with archive.open_archive(path) as file:
        run, _ = file.value("stamp")
    name = archive._partial_name({"stamp": (run, 3)})
    parent, pid = str(os.getppid()), str(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = name.replace(f"-{pid}-", f"-{child.pid}-")
    living = [name.replace(f"-{pid}-", f"-{parent}-"), dead.replace(run, "0" * len(run))]
    for partial in (dead, *living):
        (tmp_path / partial).write_bytes(b"")
    diagonal(path, 12)(A)
    assert names(tmp_path) == sorted([*living, "run.npz"])


def test_the_target_of_a_symbolic_link_is_written(tmp_path):
    (tmp_path / "scratch").mkdir()
    link, target = tmp_path / "link.npz", tmp_path / "scratch" / "state.npz"
    link.symlink_to("scratch/state.npz")
    run_sharded((40, 20), NUMPY, A, diagonal(link))
    again = diagonal(link, 12)(A)
    assert_close(again.value, mf.diagonal(A, num_probes=12, seed=1).value, scale=150)
    assert link.is_symlink()
    assert target.exists()
    assert names(tmp_path) == ["link.npz", "scratch"]
    again.save(tmp_path / "result")
    (tmp_path / "other.npz").symlink_to("result.npz")
    mf.trace(A, num_probes=3, seed=0).save(tmp_path / "other")
    assert (tmp_path / "other.npz").is_symlink()
    assert mf.load(tmp_path / "result").num_probes == 3


@pytest.mark.parametrize("stem", ["x" * 251, "\N{GREEK SMALL LETTER ALPHA}" * 125, "a.b [c]*?"])
def test_long_and_unusual_names_work(stem, tmp_path):
    path = tmp_path / f"{stem}.npz"
    for cuts in ((40, 20), None, (30, 30)):
        run_over(cuts, A, diagonal(path, 12))
    mf.trace(
        A,
        method="deflated",
        num_probes=6,
        eigenpairs=2,
        seed=0,
        checkpoint=tmp_path / f"y{stem[1:]}",
    )
    M = np.diag(10.0 ** -np.arange(20))
    svds = mf.svds(M, 4, rtol=1e-13, seed=0, checkpoint=tmp_path / f"z{stem[1:]}")
    assert svds.converged.all()
    pairs = run_sharded((40, 20), NUMPY, A, lambda B: mf.eigsh(B, 2, verify=False, seed=0))
    for part in pairs:
        part.save(tmp_path / f"w{stem[1:]}")
    assert mf.load(tmp_path / f"w{stem[1:]}").vectors.shape == (N, 2)
