"""A trained ResNet-20: known eigenvalues and trace, and the cost of activation traces."""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness import Report, side_by_side
from support import resnet
from torch import nn

import matfree as mf
from matfree_torch import activation_hessian, ggn, hessian

TOP, SMALLEST = (2349.726, 30.078, 25.331, 24.729), (-29.202, -26.129)
TRACE, TRACE_STDERR = 2399.0, 9.0
CE = nn.CrossEntropyLoss()


def spectrum(report):
    """Both ends of the spectrum and the trace, compared with values from another code."""
    net, data = resnet.problem()
    H = hessian(net, CE, data)
    begin = time.perf_counter()
    ends = {
        "LA": mf.eigsh(H, len(TOP), which="LA", rtol=1e-5, seed=0),
        "SA": mf.eigsh(H, len(SMALLEST), which="SA", rtol=1e-5, seed=0),
    }
    taken = time.perf_counter() - begin
    trace = mf.trace(H, method="deflated", eigenpairs=ends["LA"], num_probes=60, seed=0)
    rows = [
        [f"{value:.3f}", f"{known:.3f}", f"{abs(value - known) / abs(known):.0e}"]
        for which, known_values in (("LA", TOP), ("SA", SMALLEST))
        for value, known in zip(_ordered(ends[which].values), known_values, strict=True)
    ]
    rows.append(
        [f"trace {trace.value:.0f} +- {trace.stderr:.0f}", f"{TRACE:.0f} +- {TRACE_STDERR:.0f}", ""]
    )
    matvecs = sum(end.num_matvecs for end in ends.values())
    report.table(
        f"Hessian of ResNet-20, 20 images, float64: {matvecs} matvecs, {taken:.0f} s",
        ["ours", "known", "relative difference"],
        rows,
    )


def matvecs(report):
    """Matvecs of the Hessian and of the Gauss-Newton matrix, compared with a gradient."""
    net, data = resnet.problem(torch.float32)
    H, G = hessian(net, CE, data), ggn(net, CE, data)
    v = H.space.probes(1, seed=0)
    H @ v, G @ v
    times = side_by_side(H.gradient, lambda: H @ v, lambda: G @ v, rounds=5)
    report.table(
        "One matvec, ResNet-20, 20 images, float32",
        ["", "ms", "in gradients"],
        [
            [name, f"{1e3 * t:.0f}", f"{t / times[0]:.2f}"]
            for name, t in zip(("gradient", "Hessian", "Gauss-Newton"), times, strict=True)
        ],
    )


def activations(report):
    """Activation traces of all convolutions: exact passes compared with separate probes."""
    rows = []
    for dtype, num_probes in ((torch.float32, 200), (torch.float64, 10)):
        net, data = resnet.problem(dtype)
        A = activation_hessian(net, CE, data, modules=nn.Conv2d, at="input")
        A.inspect()
        begin = time.perf_counter()
        exact = A.traces("exact")
        between = time.perf_counter()
        probed = A.traces("probes", num_probes=num_probes, seed=0)
        end = time.perf_counter()
        scores = [abs(probed[n].value - exact[n].value) / probed[n].stderr for n in exact]
        errors = [probed[n].stderr / exact[n].value for n in exact]
        rows.append(
            [
                f"{str(dtype).removeprefix('torch.')}, {num_probes} probes",
                f"{between - begin:.1f}",
                f"{end - between:.1f}",
                f"{50 / num_probes * (end - between) / (between - begin):.0f}",
                f"{np.median(errors):.1%}",
                f"{max(scores):.1f}",
            ]
        )
    report.table(
        "Traces of the activation Hessian at the inputs of 21 convolutions, ResNet-20, 20 images",
        [
            "",
            "exact (s)",
            "probes (s)",
            "50 probes / exact",
            "median standard error",
            "largest |z|",
        ],
        rows,
    )


def _ordered(values):
    return sorted(np.asarray(values).tolist(), key=abs, reverse=True)


def run(report):
    if not resnet.present():
        report.say("\nThe trained ResNet-20 is not available; its benchmarks were skipped.")
        return
    spectrum(report)
    matvecs(report)
    activations(report)


if __name__ == "__main__":
    run(Report())
