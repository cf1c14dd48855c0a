"""Matrices in files, streamed in slabs: results, access patterns and failures."""

import os
import threading
import weakref

import numpy as np
import pytest
from support.backends import assert_close

import matfree as mf

M, N, K = 23, 17, 4


def matrix(dtype, shape=(M, N)):
    random = np.random.default_rng(0)
    A = 9 * random.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        A = A + 1j * random.standard_normal(shape)
    return A.astype(dtype)


def mapped(tmp_path, A, order="C", mode="r"):
    np.save(tmp_path / "A.npy", np.asarray(A, order=order))
    return np.load(tmp_path / "A.npy", mmap_mode=mode)


class Sliceable:
    """The interface that h5py and zarr share, with a log of the slabs and threads that read."""

    def __init__(self, A, chunks=None):
        self.A, self.shape, self.dtype, self.chunks = A, A.shape, A.dtype, chunks
        self.read, self.threads = [], set()

    def __getitem__(self, key):
        slab = self.A[key]
        self.read.append(slab.shape)
        self.threads.add(threading.current_thread())
        return slab


def blocks(dtype):
    random = np.random.default_rng(1)
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    X, Y = (random.standard_normal((size, K)).astype(wide) for size in (N, M))
    return (X + 0.5j, Y - 0.5j) if wide is np.complex128 else (X, Y)


def assert_multiplies_like(A, operator):
    """Compare matmat, matvec and their adjoints with those of the dense matrix."""
    X, Y = (block.astype(operator.dtype) for block in blocks(A.dtype))
    dense = A.astype(operator.dtype)
    assert_close(operator.matmat(X), dense @ X, operator.dtype)
    assert_close(operator.matvec(X[:, 0]), dense @ X[:, 0], operator.dtype)
    assert_close(operator.rmatmat(Y), dense.conj().T @ Y, operator.dtype)
    assert_close(operator.rmatvec(Y[:, 1]), dense.conj().T @ Y[:, 1], operator.dtype)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("slab_bytes", [1, 1000, 1 << 20], ids=["line", "slabs", "whole"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", ">f8", ">c8", "i2", "u1", "?", "f2"])
def test_a_memory_map_of_any_type_and_order_multiplies_like_its_matrix(
    tmp_path, dtype, order, slab_bytes
):
    A = matrix(dtype)
    operator = mf.SlabOperator(mapped(tmp_path, A, order), slab_bytes=slab_bytes)
    expected = {"i": "f8", "u": "f8", "b": "f8", "f2": "f4"}
    native = np.dtype(dtype).newbyteorder("=")
    kind = "f2" if dtype == "f2" else native.kind
    assert operator.dtype == np.dtype(expected.get(kind, native))
    assert operator.by_columns == (order == "F")
    assert_multiplies_like(A, operator)


@pytest.mark.parametrize(
    "view", [np.s_[3:20], np.s_[:, 2:9], np.s_[::2, ::3], np.s_[::-1]], ids=str
)
def test_a_view_of_a_memory_map_is_that_submatrix(tmp_path, view):
    A = matrix("f8")
    operator = mf.SlabOperator(mapped(tmp_path, A)[view], slab_bytes=300)
    assert_close(operator.to_dense(), A[view])


def test_aslinearoperator_streams_memory_maps_but_not_copies_of_them(tmp_path):
    on_disk = mapped(tmp_path, matrix("f8"))
    assert isinstance(mf.aslinearoperator(on_disk), mf.SlabOperator)
    assert isinstance(mf.aslinearoperator(on_disk.copy()), mf.DenseOperator)
    assert isinstance(mf.aslinearoperator(np.array(on_disk)), mf.DenseOperator)


def test_changes_to_a_copy_on_write_map_are_seen_and_kept(tmp_path):
    private = mapped(tmp_path, matrix("f8", (400, 50)), mode="c")
    private[:] = 2.0
    operator = mf.SlabOperator(private, slab_bytes=10_000)
    assert_close(operator @ np.ones(50), np.full(400, 100.0))
    assert np.all(private == 2.0)


def test_any_sliceable_object_is_accepted_and_read_once_per_pass():
    A = Sliceable(matrix("i4"))
    operator = mf.SlabOperator(A, slab_bytes=5 * N * 12)  # five rows, as stored and as doubles
    assert_multiplies_like(A.A, operator)
    assert isinstance(mf.aslinearoperator(A), mf.SlabOperator)
    assert A.read == 4 * [*4 * [(5, N)], (3, N)]  # four passes
    assert threading.main_thread() not in A.threads


def test_the_next_slab_is_read_during_multiplication_and_at_most_two_are_in_memory():
    began = [threading.Event() for _ in range(6)]
    alive, most = [], []

    class Watched(Sliceable):
        def __getitem__(self, key):
            most.append(sum(slab() is not None for slab in alive))
            began[key.start // 4].set()
            slab = self.A[key].copy()
            alive.append(weakref.ref(slab))
            return slab

    A = matrix("f8")
    operator = mf.SlabOperator(Watched(A), slab_bytes=4 * N * 8)
    seen = []

    def multiply(lines, slab):
        seen.append(lines.start)
        following = lines.start // 4 + 1
        assert following == len(began) or began[following].wait(timeout=30)

    operator._stream(multiply)
    assert seen == [0, 4, 8, 12, 16, 20]
    assert most[0] == 0
    assert max(most) == 1  # in addition to the one that is being read


@pytest.mark.parametrize(
    ("chunks", "slab_bytes", "expected"),
    [
        ((3, 5), 8 * N * 8, (6, N)),  # eight rows would fit, but six are whole chunks
        ((M, 2), 5 * M * 8, (M, 4)),  # stored in columns
        ((1, N), 8 * N * 8, (8, N)),
        (None, 8 * N * 8, (8, N)),
    ],
)
def test_slabs_consist_of_whole_chunks(chunks, slab_bytes, expected):
    A = Sliceable(matrix("f8"), chunks)
    operator = mf.SlabOperator(A, slab_bytes=slab_bytes)
    assert_multiplies_like(A.A, operator)
    assert A.read[0] == expected


def test_chunks_larger_than_a_slab_cause_a_warning_with_a_sufficient_size():
    A = Sliceable(matrix("f8"), chunks=(12, 12))
    with pytest.warns(RuntimeWarning, match=r"read 3 times per pass; pass .*slab_bytes=1632"):
        operator = mf.SlabOperator(A, slab_bytes=5 * N * 8)
    assert_multiplies_like(A.A, operator)
    assert mf.SlabOperator(A, slab_bytes=1632).height == 12


def test_a_failed_read_is_an_error_that_names_the_slab_and_the_cause():
    class Failing(Sliceable):
        def __getitem__(self, key):
            if key.start == 8:
                raise OSError("the disk has failed")
            return self.A[key]

    operator = mf.SlabOperator(Failing(matrix("f8")), slab_bytes=4 * N * 8)
    message = r"slab of rows 8 to 11 .*could not be read \(OSError: the disk has failed\)"
    with pytest.raises(mf.OperatorError, match=message):
        operator @ np.ones(N)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slab")]


def test_a_slab_that_contradicts_the_declared_shape_is_refused():
    class Short(Sliceable):
        def __getitem__(self, key):
            return self.A[key][:2]

    operator = mf.SlabOperator(Short(matrix("f8")), slab_bytes=4 * N * 8)
    with pytest.raises(mf.OperatorError, match=r"rows 0 to 3 .*shape \(2, 17\) instead of"):
        operator @ np.ones(N)


def test_other_numbers_of_dimensions_and_empty_slabs_are_refused():
    with pytest.raises(mf.OperatorError, match="a matrix has 2 dimensions"):
        mf.aslinearoperator(Sliceable(np.zeros((2, 3, 4))))
    with pytest.raises(ValueError, match="slab_bytes must be at least 1"):
        mf.SlabOperator(matrix("f8"), slab_bytes=0)


def test_nan_in_a_slab_is_found(tmp_path):
    A = np.eye(50)
    A[31, 7] = np.nan
    with pytest.raises(mf.NonFiniteError, match=r"matvecs 1 to 3 .* contains NaN"):
        mf.trace(mapped(tmp_path, A), num_probes=3, seed=0)


def test_algorithms_give_the_same_results_as_in_memory_with_one_pass_per_block():
    G = matrix("f8", (60, 60))
    A = Sliceable(G + G.T)
    operator = mf.SlabOperator(A, slab_bytes=20 * 60 * 8)
    streamed = mf.trace(operator, num_probes=64, seed=0)
    assert len(A.read) == 3  # all probes share one pass, which costs more than their multiplication
    assert_close(streamed.samples, mf.trace(A.A, num_probes=64, seed=0).samples)
    values = mf.eigsh(operator, 3, seed=0).values
    np.testing.assert_allclose(
        values, np.linalg.eigvalsh(A.A)[[-1, 0, 1]], rtol=1e-6
    )  # the default of eigsh
    assert mf.check_operator(operator).ok


def test_h5py_datasets_are_accepted(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    A = matrix("f4")
    with h5py.File(tmp_path / "A.h5", "w") as file:
        data = file.create_dataset("A", data=A, chunks=(4, 17))
        operator = mf.aslinearoperator(data)
        assert_multiplies_like(A, operator)


def test_zarr_arrays_are_accepted(tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    A = matrix("f4")
    data = zarr.create_array(store=tmp_path / "A.zarr", shape=A.shape, chunks=(4, 17), dtype="f4")
    data[:] = A
    assert_multiplies_like(A, mf.aslinearoperator(data))


def test_a_file_that_replaced_the_mapped_one_is_not_read(tmp_path):
    A = mapped(tmp_path, np.ones((40, 40)))
    np.save(tmp_path / "new.npy", np.zeros((40, 40)))
    (tmp_path / "new.npy").rename(tmp_path / "A.npy")
    assert_close(mf.SlabOperator(A) @ np.ones(40), np.full(40, 40.0))


def test_a_truncated_file_is_an_error_that_names_the_slab(tmp_path):
    operator = mf.SlabOperator(mapped(tmp_path, np.ones((400, 40))), slab_bytes=100 * 40 * 8)
    os.truncate(tmp_path / "A.npy", 80_000)
    with pytest.raises(mf.OperatorError, match=r"rows 200 to 299 .*the file ends before byte"):
        operator @ np.ones(40)


def test_a_density_takes_one_pass_per_step_for_all_probes():
    A = Sliceable(matrix("f8", (40, 40)) * 0 + np.diag(np.arange(1.0, 41.0)))
    mf.spectral_density(mf.SlabOperator(A), num_steps=5, num_probes=16, seed=0)
    assert A.read == [(40, 40)] * 5
