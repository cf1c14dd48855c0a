"""One algorithm and one seed give one answer for every form of the same matrix."""

import importlib

import array_api_strict
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from support.backends import MAKERS
from support.matrices import wishart

import matfree as mf
from matfree.arrays import to_host

A = wishart(400, 800)


def _torch(layout):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.tensor(A)
    return tensor.to_sparse_csr() if layout == "csr" else tensor


def _cupy_csr():
    there = MAKERS["cupy"]().asarray(A)
    return importlib.import_module("cupyx.scipy.sparse").csr_matrix(there)


def _function(name):
    there = MAKERS[name]().asarray(A)
    return mf.aslinearoperator(lambda x: there @ x, shape=A.shape, like=there[0])


def _marked(name):
    on_a_gpu = name.startswith(("cupy", "torch-cuda"))
    return pytest.param(name, marks=pytest.mark.gpu) if on_a_gpu else name


FORMS = {
    "CSR": lambda: sp.csr_array(A),
    "LinearOperator": lambda: sla.aslinearoperator(A),
    "torch": lambda: _torch("dense"),
    "torch CSR": lambda: _torch("csr"),
    "strict": lambda: array_api_strict.asarray(A),
    "function": lambda: mf.aslinearoperator(lambda x: A @ x, shape=A.shape, like=np.zeros(1)),
    "cupy": lambda: MAKERS["cupy"]().asarray(A),
    "cupy CSR": lambda: _cupy_csr(),
    "cupy function": lambda: _function("cupy"),
    "torch-cuda": lambda: MAKERS["torch-cuda"]().asarray(A),
    "torch-cuda CSR": lambda: MAKERS["torch-cuda"]().asarray(A).to_sparse_csr(),
    "torch-cuda function": lambda: _function("torch-cuda"),
}


@pytest.fixture(params=map(_marked, FORMS))
def form(request):
    return FORMS[request.param]()


pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


def test_probes_are_equal_to_the_bit(form):
    here = mf.aslinearoperator(A).space.probes(5, seed=11)
    assert np.array_equal(to_host(mf.aslinearoperator(form).space.probes(5, seed=11)), here)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"])
def test_traces_agree_to_twelve_digits(form, method):
    here, there = (mf.trace(B, method=method, num_probes=24, seed=1) for B in (A, form))
    assert there.value == pytest.approx(here.value, rel=1e-12)
    assert there.num_matvecs == here.num_matvecs


@pytest.mark.parametrize("method", ["hutchinson", "diag++", "xdiag", "xnysdiag"])
def test_diagonals_agree_to_twelve_digits(form, method):
    here, there = (mf.diagonal(B, method=method, num_probes=24, seed=1).value for B in (A, form))
    assert np.abs(to_host(there) - here).max() <= 1e-12 * np.linalg.norm(here)


def test_power_iteration_and_eigsh_agree(form):
    for run in (
        lambda B: mf.power_iteration(B, 2, rtol=1e-5, max_steps=3000, seed=1),
        lambda B: mf.eigsh(B, 3, rtol=1e-10, seed=1),
    ):
        here, there = run(A), run(form)
        assert np.abs(there.values - here.values).max() <= 1e-12 * here.values.max()


def test_densities_agree(form):
    here, there = (mf.spectral_density(B, num_steps=30, num_probes=4, seed=1) for B in (A, form))
    for p in range(1, 5):
        assert there.moment(p).value == pytest.approx(here.moment(p).value, rel=1e-12)
    for a, b in zip(there.nodes, here.nodes, strict=True):
        assert np.abs(a - b).max() <= 1e-10


def test_scipys_arpack_agrees_with_our_eigsh():
    ours = mf.eigsh(A, 5, rtol=1e-9, seed=0).values
    theirs = sla.eigsh(A, 5, return_eigenvectors=False, v0=np.ones(400))
    assert np.abs(np.sort(ours) - np.sort(theirs)).max() <= 1e-8
