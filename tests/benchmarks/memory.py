"""Peak memory of the algorithms in vectors, compared with the statements of their docstrings."""

import tracemalloc
import warnings

import numpy as np
import scipy.sparse as sp

import matfree as mf

N = 200_000
ALLOWED = 1.2  # allowed ratio to the number in the docstring
BLOCK, PROBES, STEPS = 4, 32, 20
PAIRS, VECTORS, WIDTH = 6, 40, 2


def operator():
    """A diagonal with twenty outliers: pairs converge, and a matvec allocates only its result."""
    spectrum = np.linspace(0.0, 1.0, N)
    spectrum[:20] = np.linspace(2.0, 20.0, 20)
    return mf.aslinearoperator(sp.diags_array(spectrum).tocsr())


def peak(function):
    """The peak of the memory allocated while a function runs, in vectors."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / (8 * N)
    finally:
        tracemalloc.stop()


def cases(A):
    """(function, formula in the docstring, number of vectors, the call)."""
    b, k, m = BLOCK, PROBES, STEPS
    shared = {"block_size": b, "seed": 0}

    def trace(method):
        return lambda: mf.trace(A, method=method, num_probes=k, **shared)

    def diagonal(method):
        return lambda: mf.diagonal(A, method=method, num_probes=k, **shared)

    def density(mode):
        options = {"num_steps": m, "num_probes": b, "reorthogonalize": mode, **shared}
        return lambda: mf.spectral_density(A, **options)

    def eigsh(verify):
        options = {"num_vectors": VECTORS, "block_size": WIDTH, "verify": verify, "seed": 0}
        return lambda: mf.eigsh(A, PAIRS, **options)

    start = A.space.probes(2, seed=0)
    deflation = 48 + 2 * 10 + 8 * WIDTH  # ten pairs by eigsh with its defaults
    eigen = VECTORS + 2 * PAIRS + 8 * WIDTH
    return [
        ("trace, hutchinson", "3 block_size + 1", 3 * b + 1, trace("hutchinson")),
        ("trace, hutch++", "num_probes / 2 + 5 block_size", k // 2 + 5 * b, trace("hutch++")),
        ("trace, xtrace", "2 num_probes + 5 block_size", 2 * k + 5 * b, trace("xtrace")),
        ("trace, xnystrace", "num_probes + 5 block_size", k + 5 * b, trace("xnystrace")),
        ("trace, deflated", "as eigsh", deflation, trace("deflated")),
        ("diagonal, hutchinson", "4 block_size + 3", 4 * b + 3, diagonal("hutchinson")),
        ("diagonal, diag++", "num_probes / 2 + 6 block_size", k // 2 + 6 * b, diagonal("diag++")),
        ("diagonal, xdiag", "2 num_probes + 7 block_size", 2 * k + 7 * b, diagonal("xdiag")),
        ("diagonal, xnysdiag", "num_probes + 8 block_size", k + 8 * b, diagonal("xnysdiag")),
        ("diagonal, deflated", "as eigsh", deflation, diagonal("deflated")),
        ("spectral_density, full", "block_size (num_steps + 6)", b * (m + 6), density("full")),
        ("spectral_density, none", "6 block_size", 6 * b, density("none")),
        (
            "trace_function",
            "6 block_size",
            6 * b,
            lambda: mf.trace_function(A, "exp", num_steps=m, num_probes=b, **shared),
        ),
        ("lanczos, full", "k (num_steps + 7)", 2 * (m + 7), lambda: mf.lanczos(A, start, m)),
        (
            "lanczos, none",
            "7 k",
            14,
            lambda: mf.lanczos(A, start, m, reorthogonalize="none", keep_basis=False),
        ),
        ("eigsh", "num_vectors + 2 k + 8 block_size", eigen, eigsh(True)),
        ("eigsh, verify=False", "num_vectors + 2 k + 8 block_size", eigen, eigsh(False)),
        (
            "power_iteration",
            "6 k + 1",
            6 * 3 + 1,
            lambda: mf.power_iteration(A, 3, max_steps=20, seed=0),
        ),
        ("frobenius_norm", "2 block_size + 1", 2 * b + 1, lambda: mf.frobenius_norm(A, **shared)),
    ]


def run(report):
    A, rows = operator(), []
    for what, words, claim, function in cases(A):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mf.ConvergenceWarning)
            vectors = peak(function)
        mark = "" if vectors <= ALLOWED * claim else " **above**"
        rows.append([what, words, claim, f"{vectors:.1f}", f"{vectors / claim:.2f}{mark}"])
        print(f"  {what}: {vectors:.1f} of {claim}", flush=True)
    report.table(
        f"Peak memory in vectors: n = {N}, block_size {BLOCK} (eigsh {WIDTH}), {PROBES} probes, "
        f"{STEPS} steps, {PAIRS} pairs of {VECTORS} vectors",
        ["function", "docstring", "vectors", "measured", "ratio (at most 1.20)"],
        rows,
    )
