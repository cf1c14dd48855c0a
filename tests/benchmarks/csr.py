"""Traces of functions of a sparse matrix: blocks and single vectors, with and without numba."""

import importlib.util
import time
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp
from harness import side_by_side

import matfree as mf
from matfree_scipy import compiled_products

SIDES, PROBES, STEPS, SHIFT = (46, 100), 20, 40, 0.1
WIDTHS = (1, 4, 8, 16, 32)


def laplacian_3d(side):
    """The seven-point Laplacian of a cube, Dirichlet boundary, shifted, with 32-bit indices."""
    off = -np.ones(side - 1)
    T = sp.diags_array([off, 2 * np.ones(side), off], offsets=[-1, 0, 1])
    one = sp.eye_array(side)
    plane = sp.kron(T, one) + sp.kron(one, T)
    return sp.csr_array(sp.kron(plane, one) + sp.kron(sp.eye_array(side**2), T)) + SHIFT * (
        sp.eye_array(side**3, format="csr")
    )


def spectrum_3d(side):
    line = 2 - 2 * np.cos(np.arange(1, side + 1) * np.pi / (side + 1))
    return SHIFT + line[:, None, None] + line[None, :, None] + line[None, None, :]


@contextmanager
def compiled(wanted):
    """Use the compiled step, or do not, for operators of any size created in this context."""
    usual = compiled_products.MIN_ENTRIES
    compiled_products.MIN_ENTRIES = 0 if wanted else 1 << 62
    try:
        yield
    finally:
        compiled_products.MIN_ENTRIES = usual


def variants():
    """Tuples of name, whether compiled, and block size."""
    with_numba = importlib.util.find_spec("numba") is not None
    ours = [("arrays, one vector at a time", False, 1), ("arrays, blocks", False, None)]
    return ours + [("compiled, blocks", True, None)] * with_numba


def measured(A, name, wanted, block):
    """The estimate and its minimum processor and wall time."""
    results, used = [], []

    def estimate():
        with compiled(wanted):
            begin = time.process_time()
            results.append(
                mf.trace_function(
                    A, name, num_probes=PROBES, num_steps=STEPS, block_size=block, seed=1
                )
            )
            used.append(time.process_time() - begin)

    (wall,) = side_by_side(estimate, rounds=2)
    return results[-1], min(used), wall


def traces(report):
    """The log-determinant and the trace of the inverse, compared with the exact values."""
    rows = []
    for side in SIDES:
        A, exact = laplacian_3d(side), spectrum_3d(side)
        for name, truth in (("log", np.log(exact).sum()), ("inverse", (1 / exact).sum())):
            single = None
            for variant, wanted, block in variants():
                result, used, wall = measured(A, name, wanted, block)
                single = single or used
                rows.append(
                    [
                        f"{name}, n = {side**3:,}",
                        variant,
                        f"{abs(result.value / truth - 1):.1e}",
                        f"{result.stderr / truth:.1e}",
                        result.num_matvecs,
                        f"{used:.2f}",
                        f"{wall:.2f}",
                        f"{single / used:.2f}",
                    ]
                )
    header = ["trace of", "variant", "error", "standard error", "matvecs"]
    report.table(
        f"Traces of functions of the 3-D Laplacian + {SHIFT}: {PROBES} probes, {STEPS} steps",
        [*header, "processor (s)", "wall (s)", "speedup over single vectors"],
        rows,
    )


def matvecs(report):
    """Time per matvec, compared with copying the same number of bytes."""
    A = laplacian_3d(SIDES[-1])
    n, rows = A.shape[0], []
    with compiled(False):
        plain = mf.aslinearoperator(A)
    with compiled(True):
        ours = mf.aslinearoperator(A)
    rng = np.random.default_rng(0)
    matrix_bytes = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    for k in WIDTHS:
        X = rng.standard_normal((n, k))
        Y = np.empty_like(X)
        arrays, chosen, copy = side_by_side(
            lambda X=X: plain @ X,
            lambda X=X: ours @ X,
            lambda X=X, Y=Y: np.copyto(Y, X),
            rounds=5,
        )
        bound = copy * (matrix_bytes + 2 * X.nbytes) / (2 * X.nbytes)
        rows.append([k, *(f"{1e3 * seconds / k:.2f}" for seconds in (arrays, chosen, bound))])
    report.table(
        f"Time per matvec in a block, n = {n:,}, {A.nnz / n:.2f} entries per row",
        ["vectors", "without numba (ms)", "default (ms)", "the same bytes at copying speed (ms)"],
        rows,
    )


def run(report):
    traces(report)
    matvecs(report)
