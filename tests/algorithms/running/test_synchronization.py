"""The host synchronizes with the device per check, block or restart, but not per step.

Two kinds of calls synchronize, and both are counted: copies to the host, which use
``numpy.from_dlpack``, and conversions of an array to a Python number or truth value.
"""

import math
from collections import Counter

import numpy as np
import pytest
from support.backends import MAKERS
from support.matrices import laplacian_1d, nn_spectrum, with_spectrum

import matfree as mf
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK

N = 160
A = with_spectrum(nn_spectrum(N))
STEPS, PROBES, BLOCK = 48, 24, 4
CHECKS = math.ceil(STEPS / STEPS_PER_CHECK) + 2  # and after steps 1 and 3, to find errors early
MAGNITUDE = 1  # of the first block of matvecs
START = 1 + MAGNITUDE  # and the norms of the start vectors
BLOCKS = PROBES // BLOCK
ORTHONORMALIZE = 1 + 2 * 3  # norms; two sweeps, each with two Gram matrices and norms

CONVERSIONS = ("__float__", "__bool__", "__int__", "__index__", "__complex__")


@pytest.fixture(params=["strict", "torch"])
def library(request):
    return MAKERS[request.param]()


@pytest.fixture
def synchronizations(library, monkeypatch):
    """The number of synchronizations, by the function that causes them."""
    count: Counter[str] = Counter()

    def counted(function, name):
        def wrapper(*arguments, **options):
            count[name] += 1
            return function(*arguments, **options)

        return wrapper

    cls, more = type(library.xp.zeros(1)), ()
    if library.name == "torch":
        more = ("item", "tolist", "numpy", "nonzero", "__array__")
    for name in (*CONVERSIONS, *more):
        monkeypatch.setattr(cls, name, counted(getattr(cls, name), name))
    monkeypatch.setattr(np, "from_dlpack", counted(np.from_dlpack, "to the host"))
    return count


def operator(library, matrix=A):
    """An operator on arrays of the library, after the checks of its first two matmats."""
    M = library.asarray(matrix)
    space = mf.space_like(M, M.shape[0])
    B = mf.FunctionOperator(lambda x: M @ x, space=space, matmat=lambda X: M @ X)
    for _ in range(2):
        B.matmat(space.probes(2, seed=9))
    return B


LANCZOS = {
    "lanczos": lambda B, **o: mf.lanczos(B, B.space.probes(2, seed=0), STEPS, **o),
    "density": lambda B, **o: mf.spectral_density(
        B, num_steps=STEPS, num_probes=BLOCK, block_size=BLOCK, seed=0, **o
    ),
    "trace of a function": lambda B, **o: mf.trace_function(
        B, np.exp, num_steps=STEPS, num_probes=BLOCK, block_size=BLOCK, seed=0, **o
    ),
    "eigenvalue count": lambda B, **o: mf.eigenvalue_count(
        B, 0.5, 200.0, num_steps=STEPS, num_probes=BLOCK, block_size=BLOCK, seed=0, **o
    ),
}


@pytest.mark.parametrize("kind", ["full", "half", "none"])
@pytest.mark.parametrize("name", LANCZOS)
def test_a_lanczos_run_synchronizes_once_per_check(library, synchronizations, name, kind):
    if kind == "half" and library.name != "torch":
        pytest.skip("the library has no 16-bit numbers")
    B = operator(library)
    synchronizations.clear()
    LANCZOS[name](B, reorthogonalize=kind)
    assert dict(synchronizations) == {"to the host": START + CHECKS}


def test_kernel_polynomials_synchronize_once_per_check(library, synchronizations):
    B = operator(library)
    synchronizations.clear()
    mf.spectral_density(B, method="kpm", num_steps=STEPS, num_probes=2, block_size=2, seed=0)
    interval = START + math.ceil(20 / STEPS_PER_CHECK) + 2
    assert dict(synchronizations) == {"to the host": interval + STEPS // STEPS_PER_CHECK}


def test_power_iteration_synchronizes_less_than_once_per_step(library, synchronizations):
    B = operator(library)
    synchronizations.clear()
    result = mf.power_iteration(B, 1, rtol=1e-7, seed=0)
    assert set(synchronizations) == {"to the host"}
    assert synchronizations["to the host"] <= result.num_steps / 2


BY_BLOCKS = {  # synchronizations per block of probes, and in addition
    "hutchinson": (lambda B, o: mf.trace(B, **o), 1, 0),
    "frobenius norm": (lambda B, o: mf.frobenius_norm(B, **o), 1, 0),
    "diagonal": (lambda B, o: mf.diagonal(B, **o), 1, 2),
    "hutch++": (lambda B, o: mf.trace(B, method="hutch++", **o), ORTHONORMALIZE + 2, 3),
    "diag++": (lambda B, o: mf.diagonal(B, method="diag++", **o), ORTHONORMALIZE + 2, 5),
    "xtrace": (lambda B, o: mf.trace(B, method="xtrace", **o), ORTHONORMALIZE + 6, 5),
    "xdiag": (lambda B, o: mf.diagonal(B, method="xdiag", **o), ORTHONORMALIZE + 6, 5),
    "xnystrace": (lambda B, o: mf.trace(B @ B, method="xnystrace", **o), ORTHONORMALIZE + 8, 5),
}


@pytest.mark.parametrize("name", BY_BLOCKS)
def test_an_estimate_synchronizes_a_fixed_number_of_times_per_block_of_probes(
    library, synchronizations, name
):
    run, per_block, in_addition = BY_BLOCKS[name]
    B = operator(library)
    synchronizations.clear()
    run(B, {"num_probes": PROBES, "block_size": BLOCK, "seed": 0})
    assert set(synchronizations) == {"to the host"}
    assert synchronizations["to the host"] <= MAGNITUDE + per_block * BLOCKS + in_addition


def test_wider_blocks_synchronize_less(library, synchronizations):
    B, counted = operator(library), []
    for block in (BLOCK, 2 * BLOCK):
        synchronizations.clear()
        mf.trace(B, num_probes=PROBES, block_size=block, seed=0)
        counted.append(sum(synchronizations.values()))
    assert counted == [MAGNITUDE + BLOCKS, MAGNITUDE + BLOCKS // 2]


BY_MATMATS = {
    "eigsh": lambda B: mf.eigsh(B, 4, seed=0),
    "eigsh in wider blocks": lambda B: mf.eigsh(B, 4, block_size=4, seed=0),
    "svds": lambda B: mf.svds(B, 4, seed=0),
    "deflated trace": lambda B: mf.trace(
        B, method="deflated", num_probes=PROBES, block_size=BLOCK, eigenpairs=4, seed=0
    ),
}


@pytest.mark.parametrize("matrix", [A, laplacian_1d(N).toarray()], ids=["outliers", "laplacian"])
@pytest.mark.parametrize("name", BY_MATMATS)
def test_eigenpairs_synchronize_a_fixed_number_of_times_per_matmat(
    library, synchronizations, matrix, name
):
    """The host determines the rank of a block, and the vectors that a restart keeps."""
    B, matmats = operator(library, matrix), []
    inner = B.matmat
    counting = mf.FunctionOperator(
        lambda x: inner(x[:, None])[:, 0],
        space=B.space,
        matmat=lambda X: (matmats.append(1), inner(X))[1],
        rmatmat=lambda X: (matmats.append(1), inner(X))[1],
    )
    for _ in range(2):
        counting.matmat(B.space.probes(2, seed=9))
        counting.rmatmat(B.space.probes(2, seed=9))
    synchronizations.clear()
    matmats.clear()
    BY_MATMATS[name](counting)
    assert (
        synchronizations.pop("__bool__", 0) <= 3
    )  # the checks of the first matmats of an operator that is created inside
    assert set(synchronizations) == {"to the host"}
    assert synchronizations["to the host"] <= 5.5 * len(matmats)


def test_the_count_includes_an_algorithm_that_synchronizes_at_every_step(library, synchronizations):
    x = library.asarray(np.ones(3))
    synchronizations.clear()
    for _ in range(5):
        if library.xp.sum(x) > 1:
            x = x * 0.5 + 0.5
    float(library.xp.sum(x))
    assert synchronizations["__bool__"] == 5
    assert synchronizations["__float__"] == 1
