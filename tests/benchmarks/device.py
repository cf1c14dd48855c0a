"""On a CUDA device: products, densities and quadrature beside what others take on the same one.

Not among what ``make bench`` runs by itself: ``make bench ONLY=device``.
"""

import copy
import sys
import time
import warnings
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
from matfree_torch import folded, hessian
from matfree_torch.captured import recorder_for
from matfree_torch.precision import full_precision

CE = nn.CrossEntropyLoss()
BATCHES, STEPS = (32, 200), 100
SIDE, PROBES, QUADRATURE_STEPS, SHIFT = 100, 20, 40, 0.1
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
        folded.recorder_for = lambda _, recorder=recorder: recorder
        found[name] = hessian(net, CE, data, strategy=strategy)
        found[name].inspect()
    folded.recorder_for = recorder_for
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


def quadrature(report, xp, sparse, wait, side=SIDE, copied=COPIED):
    """A log-determinant beside the memory that its steps have to pass over, at the copy's speed."""
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    three = scipy.sparse.kronsum(scipy.sparse.kronsum(line, line), line)
    A = sparse.csr_matrix((three + SHIFT * scipy.sparse.eye_array(side**3)).tocsr())
    one = 4 * np.sin(np.arange(1, side + 1) * np.pi / (2 * side + 2)) ** 2
    sums = one[:, None, None] + one[None, :, None] + one[None, None, :]
    exact = float(np.log(sums + SHIFT).sum())
    options = {"num_probes": PROBES, "num_steps": QUADRATURE_STEPS, "block_size": PROBES, "seed": 0}
    result = mf.logdet(A, reorthogonalize="none", **options)
    source, target = xp.ones(copied), xp.empty(copied)

    def copied_once():
        target[...] = source

    def run():
        mf.logdet(A, reorthogonalize="none", **options)

    times = in_turn(wait, {"copy": copied_once, "run": run}, rounds=3)
    bandwidth = 16 * copied / times["copy"]
    # A step reads the matrix once, and of every probe writes A v and reads v, A v and v before.
    moved = QUADRATURE_STEPS * (12 * A.nnz + 8 * 5 * PROBES * side**3)
    report.table(
        f"log det of a 3-D Laplacian + {SHIFT}, n = {side**3:.0e}, {PROBES} probes x "
        f"{QUADRATURE_STEPS} steps",
        ["time (s)", "error", "GB/s at least", "GB/s of a copy", "share"],
        [
            [
                f"{times['run']:.3f}",
                f"{abs(result.value - exact) / abs(exact):.0e}",
                f"{moved / times['run'] / 1e9:.0f}",
                f"{bandwidth / 1e9:.0f}",
                f"{moved / times['run'] / bandwidth:.0%}",
            ]
        ],
    )


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
