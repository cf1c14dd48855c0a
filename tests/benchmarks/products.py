"""Hessian-vector products of a ResNet-20: all strategies compared with PyHessian."""

import copy
import ctypes
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness import Report
from support import resnet
from torch import nn

import matfree as mf
from matfree_torch import hessian

BATCH, BATCHES, ROUNDS = 200, 3, 5
CE = nn.CrossEntropyLoss()
RESIDUAL, TRACE_ERROR = 1e-3, 0.02
_MEASURED = "ResNet-20, float32, CPU time of one thread"
_HEADER = ["", "minimum (s)", "median (s)", "in gradients", "/ PyHessian", "medians", "target"]
_HEADER.append("set-up (s)")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # the numbers of these options of mallopt


def peer():
    """PyHessian, or the reason why it cannot be imported; the other one is None."""
    try:
        import pyhessian
    except Exception as reason:  # it imports names that new releases of torch no longer have
        return None, f"PyHessian cannot be imported ({type(reason).__name__}: {reason})"
    return pyhessian, None


def keep_freed_memory():
    """Make the C library keep freed blocks, so that temporaries cause no page faults."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))
    except (OSError, AttributeError):
        return False


def in_turn(functions, rounds=ROUNDS):
    """The minimum and the median CPU time of each function in seconds, on one thread."""
    taken = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            taken[name].append(time.process_time() - begin)
    return {name: (min(t), float(np.median(t))) for name, t in taken.items()}


def problem(samples):
    """The trained network, with random images after the real ones."""
    net, (x, y) = resnet.problem(torch.float32)
    generator = torch.Generator().manual_seed(0)
    more = samples - len(x)
    x = torch.cat([x, torch.randn(more, *x.shape[1:], generator=generator)])
    return net, (x, torch.cat([y, torch.randint(10, (more,), generator=generator)]))


def of_peer(module, net, **data):
    """PyHessian's object for a copy of the network, because it leaves gradients behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backward(create_graph=True)
        return module.hessian(copy.deepcopy(net), CE, cuda=False, **data)


def as_tensors(H, v):
    """A block of one vector as the list of tensors that PyHessian accepts."""
    return list(H.unflatten(v[:, 0]).values())


def measured_matvecs(report, data, others, peers_matvec, title, targets):
    """A table of the times of one matvec and of the set-up."""
    net, given = data
    operators, setups = {}, {}
    for strategy in ("auto", *others):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinks
            begin = time.process_time()
            H = hessian(net, CE, given, strategy=strategy)
            H.inspect()  # builds graphs, with two matvecs
            operators[strategy], setups[strategy] = H, time.process_time() - begin
    v = operators["auto"].space.probes(1, seed=0)
    functions = {"gradient": operators["auto"].gradient}
    functions |= {name: (lambda H=H: H @ v) for name, H in operators.items()}
    if peers_matvec is not None:
        theirs = as_tensors(operators["auto"], v)
        matvec, setups["PyHessian"] = peers_matvec(net, given)
        functions["PyHessian"] = lambda: matvec(theirs)
        flat = torch.cat([x.reshape(-1) for x in matvec(theirs)])
        assert (flat - (operators["auto"] @ v)[:, 0]).norm() < 1e-4 * flat.norm()
    times = in_turn(functions)
    gradient, base = times["gradient"], times.get("PyHessian")
    rows = [
        [
            name,
            f"{least:.3f}",
            f"{median:.3f}",
            f"{least / gradient[0]:.2f}",
            "" if base is None else f"{least / base[0]:.2f}",
            "" if base is None else f"{median / base[1]:.2f}",
            targets.get(name, ""),
            f"{setups[name]:.1f}" if name in setups else "",
        ]
        for name, (least, median) in times.items()
    ]
    report.table(
        title,
        _HEADER,
        rows,
    )


def one_batch(report, module, setting):
    def matvec(net, given):
        begin = time.process_time()
        theirs = of_peer(module, net, data=given)
        ready = time.process_time() - begin
        function = module.utils.hessian_vector_product
        return lambda v: function(theirs.gradsH, theirs.params, v), ready

    measured_matvecs(
        report,
        problem(BATCH),
        ("folded", "recompute", "forward", "finite-difference"),
        None if module is None else matvec,
        f"One matvec, one batch of {BATCH}; {_MEASURED}; freed memory {setting}",
        {"auto": "1.05", "folded": "0.85"},
    )


def several_batches(report, module, setting):
    net, (x, y) = problem(BATCHES * BATCH)
    loader = list(zip(x.split(BATCH), y.split(BATCH), strict=True))

    def matvec(net, given):
        theirs = of_peer(module, net, dataloader=given)

        def apply(v):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return theirs.dataloader_hv_product(v)[1]

        return apply, 0.0

    measured_matvecs(
        report,
        (net, loader),
        ("folded", "recompute"),
        None if module is None else matvec,
        f"One matvec, {BATCHES} batches of {BATCH}; {_MEASURED}; freed memory {setting}",
        {"auto": "0.67"},
    )


class Counted:
    """Count the matvecs of one of PyHessian's objects, and compute residuals."""

    def __init__(self, module, net, data):
        self.theirs, self.count = of_peer(module, net, data=data), 0
        self.module = module.hessian.__module__
        self.original = sys.modules[self.module].hessian_vector_product

    def __enter__(self):
        def counting(*arguments):
            self.count += 1
            return self.original(*arguments)

        sys.modules[self.module].hessian_vector_product = counting
        return self

    def __exit__(self, *_):
        sys.modules[self.module].hessian_vector_product = self.original

    def residual(self, value, vector):
        """||H v - lambda v||."""
        Hv = self.original(self.theirs.gradsH, self.theirs.params, vector)
        gap = sum(((a - value * b) ** 2).sum() for a, b in zip(Hv, vector, strict=True))
        return float(gap) ** 0.5


def top_two_of_peer(module, net, data):
    """Matvecs of PyHessian's iteration for a sequence of tolerances, with the residuals.

    It stops when the value stagnates, and after at most 300 matvecs per pair.
    """
    rows = []
    for tol in (1e-3, 1e-4, 1e-5, 1e-6):
        torch.manual_seed(0)
        with Counted(module, net, data) as counted:
            values, vectors = counted.theirs.eigenvalues(maxIter=300, tol=tol, top_n=2)
            gaps = list(map(counted.residual, values, vectors))
        rows.append([f"PyHessian, tol={tol:g}", counted.count, *_accuracy(values, gaps)])
    return rows


def _accuracy(values, gaps):
    sizes = np.abs(values)
    listed = ", ".join(f"{value:.2f}" for value in values)
    return [listed, f"{max(gaps) / max(sizes):.0e}", f"{max(np.array(gaps) / sizes):.0e}"]


def same_accuracy(report, module):
    """The numbers of matvecs for the two largest eigenvalues and for the trace."""
    net, data = resnet.problem(torch.float32)
    H = hessian(net, CE, data)
    rows = []
    for rtol in (RESIDUAL, RESIDUAL * 30 / 2350):  # the second eigenvalue divided by the first
        found = mf.eigsh(H, 2, which="LM", rtol=rtol, seed=0)
        values = np.asarray(found.values)
        gaps = (H @ found.vectors - found.vectors * torch.as_tensor(values).float()).norm(dim=0)
        name = f"eigsh, rtol={rtol:.2g}"
        rows.append([name, found.num_matvecs, *_accuracy(values, gaps.tolist())])
    rows += [] if module is None else top_two_of_peer(module, net, data)
    report.table(
        f"Top two eigenvalues to a residual of {RESIDUAL:g}, 20 images, float32",
        ["", "matvecs", "values", "largest residual / norm of H", "residual / eigenvalue"],
        rows,
    )
    ours = mf.trace(H, method="deflated", rtol=TRACE_ERROR, max_matvecs=2000, seed=0)
    rows = [["deflated trace", ours.num_matvecs, f"{ours.value:.0f} +- {ours.stderr:.0f}", ""]]
    if module is not None:
        torch.manual_seed(0)
        with Counted(module, net, data) as counted:
            samples = np.array(counted.theirs.trace(maxIter=100, tol=1e-3))
            stopped = f"{samples.mean():.0f} +- {samples.std(ddof=1) / len(samples) ** 0.5:.0f}"
            rows.append(["PyHessian, its stopping rule", counted.count, stopped, ""])
            samples = np.array(counted.theirs.trace(maxIter=150, tol=0.0))
        needed = (1.96 * samples.std(ddof=1) / (TRACE_ERROR * ours.value)) ** 2
        spread = f"{samples.std(ddof=1):.0f} per probe, from {len(samples)} probes"
        rows.append(["PyHessian, to the same interval", f"{needed:.0f} (computed)", "", spread])
    report.table(
        f"Trace to a 95 % interval of {TRACE_ERROR:.0%}, 20 images, float32 (known: 2399 +- 9)",
        ["", "matvecs", "value", "standard deviation"],
        rows,
    )


def run(report):
    if not resnet.present():
        report.say("\nThe trained ResNet-20 is not available; its matvecs were skipped.")
        return
    module, missing = peer()
    if missing is not None:
        report.say(f"\n{missing}; its columns are empty.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same_accuracy(report, module)
        for setting in ("handled by the C library", "kept"):
            if setting == "kept" and not keep_freed_memory():
                break
            one_batch(report, module, setting)
            several_batches(report, module, setting)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    run(Report())
