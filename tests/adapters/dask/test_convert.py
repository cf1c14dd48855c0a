"""Dask arrays as operators, on threads and on a cluster of two processes."""

import numpy as np
import pytest
from support.backends import assert_close
from support.matrices import with_spectrum

import matfree as mf

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask.array is not installed")

from matfree_dask import DaskOperator  # noqa: E402  # imports what was checked above

M, N, K = 23, 17, 4
A = with_spectrum(np.r_[9.0, -5.0, np.linspace(0, 1, 58)])


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "memory_limit": 0}
    patient = {  # on a busy machine, workers may be slow to answer
        "distributed.worker.daemon": True,
        "distributed.scheduler.worker-ttl": None,
        "distributed.comm.timeouts.connect": "120s",
        "distributed.comm.timeouts.tcp": "120s",
    }
    with (
        dask.config.set(patient),
        distributed.LocalCluster(**options, dashboard_address=None) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


def matrix(dtype, shape=(M, N)):
    random = np.random.default_rng(0)
    A = 9 * random.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        A = A + 1j * random.standard_normal(shape)
    return A.astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", ">f8", "i4", "?", "f2"])
def test_both_directions_multiply_like_the_dense_matrix(dtype):
    assert_multiplies_like(matrix(dtype))


def test_two_processes_multiply_like_the_dense_matrix(cluster):
    with cluster.as_current():
        assert_multiplies_like(matrix("c16"))


def assert_multiplies_like(A):
    operator = mf.aslinearoperator(da.from_array(A, chunks=(7, 5)))
    assert isinstance(operator, DaskOperator)
    dense = A.astype(operator.dtype)
    X = np.random.default_rng(1).standard_normal((N, K)).astype(operator.dtype)
    Y = np.random.default_rng(2).standard_normal((M, K)).astype(operator.dtype)
    for got, expected in [
        (operator.matmat(X), dense @ X),
        (operator.matvec(X[:, 0]), dense @ X[:, 0]),
        (operator.rmatmat(Y), dense.conj().T @ Y),
        (operator.rmatvec(Y[:, 0]), dense.conj().T @ Y[:, 0]),
        (operator.matmat(X[:, :0]), dense @ X[:, :0]),
    ]:
        assert type(got) is np.ndarray
        assert_close(got, expected, operator.dtype)
    assert operator.matmat(X).flags.c_contiguous


def test_algorithms_on_threads_give_the_same_results_as_in_memory():
    assert_estimates_agree(mf.aslinearoperator(da.from_array(A, chunks=(16, 16))))


def test_algorithms_on_two_processes_give_the_same_results_as_in_memory(cluster):
    with cluster.as_current():
        assert_estimates_agree(mf.aslinearoperator(da.from_array(A, chunks=(30, 60))))


def assert_estimates_agree(operator):
    for function, options in [
        (mf.trace, {"num_probes": 40}),
        (mf.diagonal, {"num_probes": 20}),
    ]:
        assert_close(
            np.asarray(function(operator, **options, seed=0).value),
            np.asarray(function(A, **options, seed=0).value),
        )
    np.testing.assert_allclose(
        mf.eigsh(operator, 2, rtol=1e-3, verify=False, seed=0).values, [9.0, -5.0], rtol=1e-5
    )
    ours, theirs = (mf.spectral_density(B, num_steps=5, seed=0) for B in (operator, A))
    for got, expected in zip(ours.nodes, theirs.nodes, strict=True):
        assert_close(got, expected)


def test_all_probes_form_one_block_with_one_compute():
    A = da.from_array(matrix("f8", (40, 40)), chunks=(10, 40))
    computed = []

    class Counting(dask.callbacks.Callback):
        def _start(self, graph):
            computed.append(len(graph))

    with Counting():
        mf.trace(A, num_probes=64, seed=0)
    assert len(computed) == 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: da.ones(5), "a matrix has 2 dimensions"),
        (lambda: da.ones((2, 2, 2)), "a matrix has 2 dimensions"),
        (lambda: da.ones((6, 6))[da.ones(6) > 0], "compute_chunk_sizes"),
        (
            lambda: da.ones((6, 6)).map_blocks(np.ma.masked_array),
            "MaskedArray; convert them to NumPy",
        ),
    ],
    ids=["vector", "tensor", "unknown size", "masked"],
)
def test_anything_but_a_matrix_of_numpy_chunks_is_refused(make, complaint):
    with pytest.raises(mf.OperatorError, match=complaint):
        mf.aslinearoperator(make())


def test_vectors_cannot_be_dask_arrays():
    with pytest.raises(mf.OperatorError, match="vectors cannot be Dask arrays"):
        mf.aslinearoperator(lambda x: x, shape=(4, 4), like=da.ones(4))
    with pytest.raises(mf.OperatorError, match=r"must be an array of .*numpy"):
        mf.aslinearoperator(da.ones((4, 4))) @ da.ones(4)


def test_an_error_inside_a_chunk_is_raised_unchanged():
    def broken(block):
        raise OSError("the disk has failed")

    A = da.ones((4, 4), chunks=2).map_blocks(broken, dtype="f8", meta=np.empty((0, 0)))
    with pytest.raises(OSError, match="the disk has failed"):
        mf.trace(A, num_probes=2, seed=0)
