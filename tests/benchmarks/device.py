"""On a CUDA device: products, densities and quadrature beside what others take on the same one.

Not among what ``make bench`` runs by itself: ``make bench ONLY=device``.
"""

import copy
import itertools
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness import Report
from products import peer, pieces_of
from support import resnet
from support.matrices import laplacian_2d, laplacian_2d_spectrum
from torch import nn

import matfree as mf
from matfree_cupy import csr
from matfree_torch import hessian
from matfree_torch.autograd.precision import full_precision
from matfree_torch.hvp import constant_folding
from matfree_torch.hvp.cuda_graphs import recorder_for

CE = nn.CrossEntropyLoss()
BATCHES, STEPS = (32, 200), 100
SIDES = (100, 200)  # at the first, what the host does for each probe shows beside the device
PROBES, QUADRATURE_STEPS, SHIFT = 20, 40, 0.1
GRID, PAIRS = 300, 10
COPIED = 1 << 28  # entries of a copy that no cache holds


def in_turn(wait, functions, rounds=7):
    """The least wall time of each function in seconds, the device's work included."""
    taken = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    for _ in range(rounds):
        for name, function in functions.items():
            wait()
            begin = time.perf_counter()
            function()
            wait()
            taken[name].append(time.perf_counter() - begin)
    return {name: min(times) for name, times in taken.items()}


def network(samples, device):
    """ResNet-20 with noise for images; its products take the same time whatever it has learned."""
    torch.manual_seed(0)
    net, x = resnet.ResNet20().eval(), torch.randn(samples, 3, 32, 32)
    return net.to(device), (x.to(device), torch.randint(10, (samples,)).to(device))


def operators(net, data, device):
    """Ours by name: the kept graph, the fold operation by operation, the fold captured."""
    found = {}
    for name, strategy, recorder in (
        ("kept graph", "auto", None),
        ("folded", "folded", None),
        ("folded, captured", "folded", recorder_for(device)),
    ):
        constant_folding.recorder_for = lambda _, recorder=recorder: recorder
        found[name] = hessian(net, CE, data, strategy=strategy)
        found[name].inspect()
    constant_folding.recorder_for = recorder_for
    return found


def products(report, device, wait, samples, steps=STEPS):
    """One product, and a density of so many steps; everything in float32 without TF32."""
    net, data = network(samples, device)
    found = operators(net, data, device)
    v = found["kept graph"].space.probes(1, seed=0)
    double = copy.deepcopy(net).double(), CE, (data[0].double(), data[1])
    exact = hessian(*double) @ v.double()
    once = {name: (lambda H=H: H @ v) for name, H in found.items()}
    errors = {name: float((f() - exact).norm() / exact.norm()) for name, f in once.items()}
    runs = {
        name: lambda H=H: mf.spectral_density(H, num_steps=steps, num_probes=1, seed=0)
        for name, H in found.items()
    }
    module, missing = peer()
    with full_precision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyHessian's
        if module is not None:
            cuda = device.type == "cuda"
            theirs = module.hessian(copy.deepcopy(net), CE, data=data, cuda=cuda)
            pieces = pieces_of(found["kept graph"], v)
            apply = module.utils.hessian_vector_product
            once["PyHessian"] = lambda: apply(theirs.gradsH, theirs.params, pieces)
            try:
                theirs.density(iter=2, n_v=1)
                runs["PyHessian"] = lambda: theirs.density(iter=steps, n_v=1)
            except (AttributeError, RuntimeError) as reason:  # torch.eig is gone, for one
                missing = f"PyHessian's density fails ({str(reason).splitlines()[0][:80]})"
        times = in_turn(wait, once), in_turn(wait, runs, rounds=2)
    rows = []
    for name in once:
        error = f"{errors[name]:.0e}" if name in errors else ""
        rows.append([name, error, *(cell for taken in times for cell in _cells(taken, name))])
    report.table(
        f"ResNet-20, batch {samples}, float32 without TF32" + (f"; {missing}" if missing else ""),
        ["", "error", "product (s)", "PyHessian / it", f"density({steps}) (s)", "PyHessian / it"],
        rows,
    )


def _cells(times, name):
    """What one took, and how many times as long PyHessian takes."""
    if name not in times:
        return "", ""
    ratio = f"{times['PyHessian'] / times[name]:.1f}" if "PyHessian" in times else ""
    return f"{times[name]:.4f}", ratio


def quadrature(report, xp, sparse, wait, sides=SIDES, copied=COPIED):
    """A log-determinant, and what it is made of, beside the copy's bandwidth on the device.

    Counted are the bytes of steps and forms by kernels (``matfree_cupy.csr``); array operations
    move more for the same.
    """
    source, target = xp.ones(copied), xp.empty(copied)

    def copy_once():
        target[...] = source

    bandwidth = 16 * copied / in_turn(wait, {"copy": copy_once})["copy"]
    for side, dtype in itertools.product(sides, (np.float64, np.float32)):
        A = sparse.csr_matrix(laplacian_3d(side).astype(dtype))
        matrix = A.nnz * (A.dtype.itemsize + A.indices.itemsize) + A.indptr.nbytes
        vectors = PROBES * side**3 * A.dtype.itemsize
        functions, moved, error = sums_of_functions(A, matrix, vectors, exact_logdet(side))
        times = in_turn(wait, functions, rounds=3)
        report.table(
            f"log det of a 3-D Laplacian + {SHIFT}, n = {side**3:.0e}, {PROBES} probes x "
            f"{QUADRATURE_STEPS} steps, {A.dtype}; a copy: {bandwidth / 1e9:.0f} GB/s",
            ["", "time (s)", "error", "GB", "GB/s", "share of a copy's"],
            [
                [
                    name,
                    f"{taken:.4f}",
                    f"{error:.0e}" if name.startswith("log") else "",
                    f"{moved[name] / 1e9:.1f}",
                    f"{moved[name] / taken / 1e9:.0f}",
                    f"{moved[name] / taken / bandwidth:.0%}",
                ]
                for name, taken in times.items()
            ],
        )


def sums_of_functions(A, matrix, vectors, exact):
    """What is timed by name, the bytes that each has to move, and the log-determinant's error.

    ``matrix`` and ``vectors`` are the bytes of the matrix and of a block.
    """
    operator = mf.aslinearoperator(A)
    options = {"num_probes": PROBES, "num_steps": QUADRATURE_STEPS, "block_size": PROBES, "seed": 0}
    step = matrix + 6 * vectors

    def logdet():
        return mf.logdet(A, reorthogonalize="none", **options)

    def by_arrays():
        with narrowest_block(1 << 62):
            logdet()

    functions = {"log det by kernels": logdet, "log det by cuSPARSE and arrays": by_arrays}
    moved = dict.fromkeys(functions, QUADRATURE_STEPS * step)
    V, previous = (operator.space.probes(PROBES, seed=seed) for seed in (0, 1))
    scale = operator.space.norms(V) ** -1.0
    beta = 0 * scale  # each step on the same vectors, so that no size runs away

    def steps():
        R = previous
        for _ in range(QUADRATURE_STEPS):
            R, _, _ = operator.lanczos_step(V, R, beta, scale)

    if operator.lanczos_step is not None:
        functions["the steps alone"], moved["the steps alone"] = steps, QUADRATURE_STEPS * step
    if operator.quadratic_forms is not None:
        functions["quadratic forms"] = lambda: operator.quadratic_forms(V)
        moved["quadratic forms"] = matrix + vectors
    return functions, moved, abs(logdet().value - exact) / abs(exact)


@contextmanager
def narrowest_block(columns):
    """Blocks from this width on go through the kernels."""
    before, csr.MIN_COLUMNS = csr.MIN_COLUMNS, columns
    try:
        yield
    finally:
        csr.MIN_COLUMNS = before


def laplacian_3d(side):
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    three = scipy.sparse.kronsum(scipy.sparse.kronsum(line, line), line)
    return (three + SHIFT * scipy.sparse.eye_array(side**3)).tocsr()


def exact_logdet(side):
    one = 4 * np.sin(np.arange(1, side + 1) * np.pi / (2 * side + 2)) ** 2
    sums = one[:, None, None] + one[None, :, None] + one[None, None, :]
    return float(np.log(sums + SHIFT).sum())


def eigenpairs(report, sparse, linalg, wait, grid=GRID):
    """The largest eigenvalues of a 2-D Laplacian, most of them double."""
    A = sparse.csr_matrix(scipy.sparse.csr_matrix(laplacian_2d(grid)))
    exact = np.sort(laplacian_2d_spectrum(grid))[::-1][:PAIRS]
    found = {
        "matfree": lambda: mf.eigsh(A, PAIRS, which="LA", seed=0).values,
        "cupyx": lambda: linalg.eigsh(A, k=PAIRS, which="LA", return_eigenvectors=False),
    }
    times = in_turn(wait, found, rounds=2)
    rows = []
    for name, run in found.items():
        values = run()
        values = values.get() if hasattr(values, "get") else values
        error = np.abs(np.sort(values)[::-1] - exact).max() / exact[0]
        rows.append([name, f"{times[name]:.2f}", f"{error:.0e}"])
    report.table(
        f"{PAIRS} largest eigenvalues of a 2-D Laplacian, n = {grid**2}",
        ["", "time (s)", "largest error / ||A||"],
        rows,
    )


def run(report):
    if not torch.cuda.is_available():
        report.say("no CUDA device: not run")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    report.say(f"Device: {torch.cuda.get_device_name(device)}; torch {torch.__version__}.")
    for samples in BATCHES:
        products(report, device, torch.cuda.synchronize, samples)
    try:
        import cupy
        import cupyx.scipy.sparse as sparse
        import cupyx.scipy.sparse.linalg as linalg
    except ImportError as reason:
        report.say(f"\nCuPy cannot be imported ({reason}): its rows were left out.")
        return
    report.say(f"\nCuPy {cupy.__version__}.")
    wait = cupy.cuda.runtime.deviceSynchronize
    quadrature(report, cupy, sparse, wait)
    eigenpairs(report, sparse, linalg, wait)


if __name__ == "__main__":
    run(Report())
