"""Sharded vectors on two processes, compared with whole vectors and with one process."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from harness import Report
from torch import nn

import matfree as mf
from matfree_torch import hessian

QUICK = os.environ.get("MATFREE_BENCH") == "quick"
WIDTH, BATCH, STEPS, ROUNDS = (32, 16, 5, 1) if QUICK else (768, 256, 60, 5)
CE = nn.CrossEntropyLoss()
MODES = ("one process", "two, whole vectors", "two, sharded vectors")


def operator(mode, rank):
    """The Hessian of one network over one batch, of which each of two processes has half."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    net.append(nn.Linear(WIDTH, 10))
    x, y = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))
    if mode == MODES[0]:
        return hessian(net, CE, (x, y))
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    H = hessian(net, CE, (x[half], y[half]), process_group=dist.group.WORLD)
    return H.sharded() if mode == MODES[2] else H


def peak():
    """The peak memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(mode, rank):
    """Seconds of a trace by 8 probes, and the peak memory of the vectors of a density."""
    H = operator(mode, rank)
    options = {"num_probes": 8, "block_size": 4, "seed": 0}
    trace = mf.trace(H, **options)
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        mf.trace(H, **options)
        seconds.append(time.perf_counter() - begin)
    before = peak()
    density = mf.spectral_density(H, num_steps=STEPS, num_probes=1, seed=0)
    return {
        "seconds": min(seconds),
        "trace": trace.value,
        "moment": density.moment(2).value,
        "bytes": peak() - before,
        "vector": 4 * H.shape[0],
    }


def work(mode, rank, folder):
    """Measure in one process."""
    torch.set_num_threads(1)
    if mode != MODES[0]:
        meeting = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(measured(mode, rank)), encoding="utf-8")
    if mode != MODES[0]:
        dist.barrier()
        dist.destroy_process_group()


def found(mode):
    """The measurements of all processes of a mode, by rank."""
    with tempfile.TemporaryDirectory() as name:
        runs = [
            subprocess.Popen(
                [sys.executable, __file__, mode, str(rank), name],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(1 if mode == MODES[0] else 2)
        ]
        codes = [process.wait() for process in runs]
        if any(codes):
            sys.exit("a process of the benchmark failed; see its message above")
        files = sorted(Path(name).glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def run(report):
    rows, alone = [], None
    for mode in MODES:
        answers = found(mode)
        alone = alone or answers[0]
        gap = max(
            abs(answer[key] / alone[key] - 1) for answer in answers for key in ("trace", "moment")
        )
        most = max(answer["bytes"] for answer in answers)
        seconds = max(answer["seconds"] for answer in answers)
        rows.append(
            [
                mode,
                f"{seconds:.2f}",
                f"{seconds / alone['seconds']:.2f}",
                f"{most / 2**20:.0f}",
                f"{most / alone['vector']:.0f}",
                f"{gap:.0e}",
            ]
        )
    report.table(
        f"A network with {alone['vector'] // 4} parameters in single precision, {BATCH} samples: a "
        f"trace by 8 probes, and a density by {STEPS} Lanczos steps with its basis; two processes "
        "hold half of the samples each, one thread per process",
        [
            "",
            "trace (s)",
            "/ one process",
            "density, peak above the trace's (MiB per process)",
            "in vectors",
            "difference",
        ],
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        run(Report())
