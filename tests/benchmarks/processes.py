"""Two processes with half a batch and one thread each, compared with one process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from harness import Report
from support import resnet
from torch import nn

from matfree_torch import ggn, hessian

BATCH, COLUMNS, ROUNDS, TARGET = 200, 1, 7, 0.65
CE = nn.CrossEntropyLoss()
KINDS = {"Hessian": hessian, "Gauss-Newton": ggn}


def batch():
    """Repeated images, each copy with different noise."""
    net, (x, y) = resnet.problem(torch.float32)
    generator = torch.Generator().manual_seed(0)
    copies = BATCH // len(x)
    noise = 0.1 * torch.randn(BATCH, *x.shape[1:], generator=generator)
    return net, x.repeat(copies, 1, 1, 1) + noise, y.repeat(copies)


def timed(function):
    """Wall and CPU seconds of a call."""
    begin, worked = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin, time.process_time() - worked


def measured(make, rank):
    """Seconds of a matvec by one process and by both, in alternation."""
    net, x, y = batch()
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    ours = make(net, CE, (x[half], y[half]), process_group=dist.group.WORLD)
    V = ours.space.probes(COLUMNS, seed=0)
    alone = make(net, CE, (x, y)) if rank == 0 else None
    ours.matmat(V)
    if alone is not None:
        alone.matmat(V)
    found = {"one": [], "two": []}
    for _ in range(ROUNDS):
        dist.barrier()
        if alone is not None:
            found["one"].append(timed(lambda: alone.matmat(V)))
        dist.barrier()
        found["two"].append(timed(lambda: ours.matmat(V)))
    gap = 0.0
    if alone is not None:
        expected = alone.matmat(V)
    matvec = ours.matmat(V)
    if alone is not None:
        gap = float((matvec - expected).norm() / expected.norm())
    least = {
        name: [min(column) for column in zip(*times, strict=True)] for name, times in found.items()
    }
    return {**least, "gap": gap}


def work(rank, folder):
    """Measure in one of the two processes."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    found = {name: measured(make, rank) for name, make in KINDS.items()}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def run(report):
    if not resnet.present():
        report.say(
            "\nThe trained ResNet-20 is not available; the benchmark of two processes was skipped."
        )
        return
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        runs = [
            subprocess.Popen([sys.executable, __file__, str(rank), name], env=environment)
            for rank in range(2)
        ]
        if any(process.wait() for process in runs):
            sys.exit("a process of the benchmark failed; see its message above")
        first, second = (
            json.loads((Path(name) / f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(2)
        )
    rows = []
    for kind, rank0 in first.items():
        (wall, cpu), (shared_wall, shared_cpu) = rank0["one"], rank0["two"]
        most = max(shared_cpu, second[kind]["two"][1])
        rows.append(
            [
                kind,
                f"{wall:.2f}",
                f"{shared_wall:.2f}",
                f"{shared_wall / wall:.2f} (at most {TARGET})",
                f"{most / cpu:.2f}",
                f"{rank0['gap']:.0e}",
            ]
        )
    report.table(
        f"A matvec with {COLUMNS} vector, ResNet-20, {BATCH} images: one process compared with two "
        "that hold half of the images each, one thread per process",
        ["", "one (s)", "two (s)", "two / one", "CPU time of either / one", "difference"],
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        run(Report())
