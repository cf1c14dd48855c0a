"""Operators and spaces survive copying and pickling, so that other processes can use them."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.backends import assert_close
from support.matrices import laplacian_2d, wishart

import matfree as mf
from matfree.arrays import to_host

A = wishart(20, 40)
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


def double(x):
    return 2 * x


def operators(matrix):
    a = mf.aslinearoperator(matrix)
    return [
        a,
        a.shift(1.0),
        2 * a @ a.H,
        1j * a,
        a**2,
        a.T - a.restrict(0, a.shape[0]),
        mf.aslinearoperator(double, shape=a.shape, like=a.space.zeros(1)[:, 0]),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", range(7))
def test_operators_of_every_library_are_the_same_after_it(way, index, backend):
    operator = operators(backend.asarray(A))[index]
    twin = WAYS[way](operator)
    assert repr(twin) == repr(operator)
    assert_close(twin.to_dense(), to_host(operator.to_dense()))
    kind = "rademacher"
    same = backend.xp.all(
        twin.space.probes(3, seed=1, kind=kind) == operator.space.probes(3, seed=1, kind=kind)
    )
    assert bool(same)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [sp.csr_array, sp.coo_matrix, sla.aslinearoperator])
def test_operators_of_scipy_are_the_same_after_it(way, make):
    operator = mf.aslinearoperator(make(A))
    operator @ np.ones((20, 3))
    operator.H @ np.ones((20, 3))
    twin = WAYS[way](operator)
    assert_close(twin.to_dense(), A)
    assert (
        mf.trace(twin, num_probes=5, seed=0).value == mf.trace(make(A), num_probes=5, seed=0).value
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_is_opened_again_by_its_name(way, order, tmp_path):
    np.save(tmp_path / "A.npy", np.asarray(A, order=order))
    mapped = np.load(tmp_path / "A.npy", mmap_mode="r")
    operator = mf.SlabOperator(mapped, slab_bytes=400)
    assert len(pickle.dumps(operator)) < 2000
    twin = WAYS[way](operator)
    assert twin.slab_bytes == 400
    assert_close(twin.to_dense(), A)
    part = WAYS[way](mf.SlabOperator(mapped[3:9]))
    assert_close(part.to_dense(), A[3:9])


@pytest.mark.parametrize("way", WAYS)
def test_results_are_the_same_after_it(way):
    for result in (mf.eigsh(A, 2, seed=0), mf.spectral_density(A, seed=0), mf.trace(A, seed=0)):
        assert str(WAYS[way](result)) == str(result)


def _trace(operator, seed):
    return mf.trace(operator, num_probes=4, seed=seed).value


def test_processes_that_are_started_anew_use_operators_of_this_one():
    operator = mf.aslinearoperator(laplacian_2d(8)).shift(1.0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        values = pool.starmap(_trace, [(operator, seed) for seed in range(3)])
    assert values == [_trace(operator, seed) for seed in range(3)]


def test_joblib_and_dask_send_operators():
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    dask = pytest.importorskip("dask", reason="dask is not installed")
    operator = mf.aslinearoperator(laplacian_2d(8))
    expected = [_trace(operator, seed) for seed in range(2)]
    lazy = [dask.delayed(_trace)(operator, seed) for seed in range(2)]
    assert list(dask.compute(*lazy, scheduler="processes", num_workers=1)) == expected
    run = joblib.delayed(_trace)
    assert joblib.Parallel(n_jobs=2)(run(operator, seed) for seed in range(2)) == expected
