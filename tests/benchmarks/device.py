"""Benchmarks on a CUDA device: matvecs, densities and quadrature, compared with other libraries.

``make bench`` does not run them by default: ``make bench ONLY=device``.
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
from products import as_tensors, peer
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
SIDES = (100, 200)  # at the first, the host's work per probe is visible next to the device's
PROBES, QUADRATURE_STEPS, SHIFT = 20, 40, 0.1
GRID, PAIRS = 300, 10
COPIED = 1 << 28  # entries of a copy that exceeds every cache


def in_turn(synchronize, functions, rounds=7):
    """The minimum wall time of each function in seconds, including the work of the device."""
    taken = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize()
            begin = time.perf_counter()
            function()
            synchronize()
            taken[name].append(time.perf_counter() - begin)
    return {name: min(times) for name, times in taken.items()}


def network(samples, device):
    """An untrained ResNet-20 with random images; the time of a matvec does not depend on them."""
    torch.manual_seed(0)
    net, x = resnet.ResNet20().eval(), torch.randn(samples, 3, 32, 32)
    return net.to(device), (x.to(device), torch.randint(10, (samples,)).to(device))


def operators(net, data, device):
    """The strategies by name: kept graph, folded operations, folded operations in a CUDA graph."""
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


def matvecs(report, device, synchronize, samples, steps=STEPS):
    """One matvec and a density of ``steps`` steps, in float32 without TF32."""
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
            tensors = as_tensors(found["kept graph"], v)
            apply = module.utils.hessian_vector_product
            once["PyHessian"] = lambda: apply(theirs.gradsH, theirs.params, tensors)
            try:
                theirs.density(iter=2, n_v=1)
                runs["PyHessian"] = lambda: theirs.density(iter=steps, n_v=1)
            except (
                AttributeError,
                RuntimeError,
            ) as reason:  # for example, torch.eig has been removed
                missing = f"PyHessian's density fails ({str(reason).splitlines()[0][:80]})"
        times = in_turn(synchronize, once), in_turn(synchronize, runs, rounds=2)
    rows = []
    for name in once:
        error = f"{errors[name]:.0e}" if name in errors else ""
        rows.append([name, error, *(cell for taken in times for cell in _cells(taken, name))])
    report.table(
        f"ResNet-20, batch {samples}, float32 without TF32" + (f"; {missing}" if missing else ""),
        ["", "error", "matvec (s)", "PyHessian / it", f"density({steps}) (s)", "PyHessian / it"],
        rows,
    )


def _cells(times, name):
    """The time of one entry, and the ratio of PyHessian's time to it."""
    if name not in times:
        return "", ""
    ratio = f"{times['PyHessian'] / times[name]:.1f}" if "PyHessian" in times else ""
    return f"{times[name]:.4f}", ratio


def quadrature(report, xp, sparse, synchronize, sides=SIDES, copied=COPIED):
    """A log-determinant and its steps, compared with the bandwidth of a copy on the device.

    The bytes are those of steps and quadratic forms by kernels (``matfree_cupy.csr``); array
    operations move more.
    """
    source, target = xp.ones(copied), xp.empty(copied)

    def copy_once():
        target[...] = source

    bandwidth = 16 * copied / in_turn(synchronize, {"copy": copy_once})["copy"]
    for side, dtype in itertools.product(sides, (np.float64, np.float32)):
        A = sparse.csr_matrix(laplacian_3d(side).astype(dtype))
        matrix = A.nnz * (A.dtype.itemsize + A.indices.itemsize) + A.indptr.nbytes
        vectors = PROBES * side**3 * A.dtype.itemsize
        functions, moved, error = timed_functions(A, matrix, vectors, exact_logdet(side))
        times = in_turn(synchronize, functions, rounds=3)
        report.table(
            f"log det of a 3-D Laplacian + {SHIFT}, n = {side**3:.0e}, {PROBES} probes x "
            f"{QUADRATURE_STEPS} steps, {A.dtype}; a copy: {bandwidth / 1e9:.0f} GB/s",
            ["", "time (s)", "error", "GB", "GB/s", "fraction of a copy's"],
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


def timed_functions(A, matrix, vectors, exact):
    """The timed functions by name, the bytes that each moves, and the log-determinant's error.

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
    beta = 0 * scale  # each step uses the same vectors, so that nothing overflows

    def steps():
        R = previous
        for _ in range(QUADRATURE_STEPS):
            R, _, _ = operator.lanczos_step(V, R, beta, scale)

    if operator.lanczos_step is not None:
        functions["only the steps"], moved["only the steps"] = steps, QUADRATURE_STEPS * step
    if operator.quadratic_forms is not None:
        functions["quadratic forms"] = lambda: operator.quadratic_forms(V)
        moved["quadratic forms"] = matrix + vectors
    return functions, moved, abs(logdet().value - exact) / abs(exact)


@contextmanager
def narrowest_block(columns):
    """Use the kernels for blocks of at least this width."""
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


def eigenpairs(report, sparse, linalg, synchronize, grid=GRID):
    """The largest eigenvalues of a 2-D Laplacian, most of which are double."""
    A = sparse.csr_matrix(scipy.sparse.csr_matrix(laplacian_2d(grid)))
    exact = np.sort(laplacian_2d_spectrum(grid))[::-1][:PAIRS]
    found = {
        "matfree": lambda: mf.eigsh(A, PAIRS, which="LA", seed=0).values,
        "cupyx": lambda: linalg.eigsh(A, k=PAIRS, which="LA", return_eigenvectors=False),
    }
    times = in_turn(synchronize, found, rounds=2)
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
        report.say("not executed: no CUDA device is available")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    report.say(f"Device: {torch.cuda.get_device_name(device)}; torch {torch.__version__}.")
    for samples in BATCHES:
        matvecs(report, device, torch.cuda.synchronize, samples)
    try:
        import cupy
        import cupyx.scipy.sparse as sparse
        import cupyx.scipy.sparse.linalg as linalg
    except ImportError as reason:
        report.say(f"\nCuPy cannot be imported ({reason}); its rows were skipped.")
        return
    report.say(f"\nCuPy {cupy.__version__}.")
    synchronize = cupy.cuda.runtime.deviceSynchronize
    quadrature(report, cupy, sparse, synchronize)
    eigenpairs(report, sparse, linalg, synchronize)


if __name__ == "__main__":
    run(Report())
