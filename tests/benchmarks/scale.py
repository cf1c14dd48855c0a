"""The formulas of the page on scale, compared with runs on this machine.

Bytes and memory are measured with one, two and four processes; times are measured if every
process has a processor.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import roofline
import torch
import torch.distributed as dist
from harness import Report
from support import scaling
from support.scaling import duration, footprint

from matfree_torch import HessianOperator

QUICK = os.environ.get("MATFREE_BENCH") == "quick"
PROCESSES = (1, 2, 4)
SMALL = {"depth": 2, "width": 64, "heads": 4, "sequence": 32, "vocabulary": 16}
MEDIUM = {"depth": 2, "width": 128, "heads": 4, "sequence": 64, "vocabulary": 64}
LARGE = {"depth": 3, "width": 192, "heads": 4, "sequence": 64, "vocabulary": 64}
SIZES, TIMED_SIZES = (SMALL, SMALL) if QUICK else (MEDIUM, LARGE)
COMMON = {"tokens": 16 * SIZES["sequence"], "batch": 2 * SIZES["sequence"], "steps": 8}
RUNS = {
    "full basis, 1 probe": {},
    "full basis, 4 probes together": {"probes": 4, "at_once": 4},
    "16-bit basis": {"basis": "half"},
    "no basis": {"basis": "none"},
    "graphs recomputed": {"strategy": "recomputed"},
}
ROWS = {
    "rows, full basis": {"sharded": True},
    "rows, full basis, 4 probes together": {"sharded": True, "probes": 4, "at_once": 4},
    "rows, no basis": {"sharded": True, "basis": "none"},
}
ROUNDS = 2 if QUICK else 5
TIMED = COMMON | {"steps": 10, "probes": 1}
SUMS = (1, 1 << 14, 1 << 18, 1 << 21, 1 << 24)  # entries
MEMORY, TIME = (0.75, 1.33), (0.4, 2.5)  # allowed ratios of measured to predicted


def cases(p):
    """The runs with p processes, by name."""
    chosen = RUNS | (ROWS if p > 1 and hasattr(HessianOperator, "sharded") else {})
    return {name: COMMON | {"probes": 1} | options for name, options in chosen.items()}


def minimum_time(function, rounds=ROUNDS):
    """The minimum wall time of several calls, after one that is not counted."""
    function()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def timed(rank, size):
    """Seconds in one process: all-reduces of several sizes, a gradient, a matvec, a run."""
    sizes, run = footprint.Network(**TIMED_SIZES), footprint.Run(**TIMED)
    found = {"sums": {}}
    for entries in SUMS if size > 1 else ():
        x = torch.zeros(entries)
        dist.barrier()
        found["sums"][4 * entries] = minimum_time(lambda x=x: dist.all_reduce(x), 3 * ROUNDS)
    samples = int(run.tokens) // sizes.sequence // size
    net, (x, y) = scaling.problem(sizes, samples, seed=rank)
    weights, each = list(net.parameters()), int(run.batch) // sizes.sequence

    def gradient():
        for i in range(0, samples, each):
            value = scaling.loss(net(x[i : i + each]), y[i : i + each])
            torch.autograd.grad(value, weights)

    found["gradient"] = minimum_time(gradient)
    H = scaling.operator(sizes, run, rank, size)
    v = H.space.probes(1, seed=0)
    found["matvec"] = minimum_time(lambda: H.matmat(v))
    found["run"] = minimum_time(lambda: scaling.density(H, run), 2)
    return found


def work(rank, size, folder):
    """Measure the times in one process."""
    torch.set_num_threads(1)
    if size > 1:
        meeting = f"file://{folder / f'meeting-{size}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    found = timed(rank, size)
    (folder / f"{size}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def counted(report):
    """Tables of the bytes passed to collectives, sent, and allocated."""
    sizes, bytes_rows, memory_rows = footprint.Network(**SIZES), [], []
    for p in PROCESSES:
        chosen = cases(p)
        given = json.dumps([(SIZES, run) for run in chosen.values()])
        with tempfile.TemporaryDirectory() as folder:
            seen = scaling.processes(scaling.__file__, p, Path(folder), given)
        for number, (name, options) in enumerate(chosen.items()):
            run, taken = footprint.Run(**options), [process[number] for process in seen]
            memory_rows.append([f"{name}, {p}", *_allocated(sizes, run, p, taken)])
            if p > 1:
                bytes_rows.append([f"{name}, {p}", *_bytes(sizes, run, p, taken)])
    report.table(
        f"Bytes of a spectral density, n = {sizes.parameters}, {COMMON['steps']} steps per probe: "
        "predicted, passed to torch.distributed, and sent by the system",
        [
            "run, processes",
            "predicted (MB)",
            "passed / predicted",
            "sent per process (MB)",
            "sent / predicted",
        ],
        bytes_rows,
    )
    report.table(
        "Peak memory of these runs, including the network and all graphs: allocated by torch, "
        "maximum over the processes",
        ["run, processes", "predicted (MB)", "allocated (MB)", "allocated / predicted"],
        memory_rows,
    )


def _bytes(sizes, run, p, taken):
    expected = duration.run_traffic(sizes.parameters, run, p)
    passed = max(sum(size for _, size in process["calls"]) for process in taken)
    sent = sum(process["sent"] for process in taken) / p
    return (
        f"{expected.payload / 1e6:.3f}",
        f"{passed / expected.payload:.6f}",
        f"{sent / 1e6:.3f}",
        f"{sent / expected.sent:.4f}",
    )


def _allocated(sizes, run, p, taken):
    expected = footprint.memory(sizes, run, p).total
    allocated = max(process["peak"] for process in taken)
    return (
        f"{expected / 1e6:.1f}",
        f"{allocated / 1e6:.1f}",
        _ratio(allocated / expected, MEMORY),
    )


def _ratio(ratio, allowed):
    low, high = allowed
    return f"{ratio:.2f}" + ("" if low <= ratio <= high else " **outside**")


def machine(alone, sums):
    """This machine in the terms of the formulas: a copy, a gradient, two all-reduces."""
    sizes, run = footprint.Network(**TIMED_SIZES), footprint.Run(**TIMED)
    flops = sizes.gradient_flops * run.tokens / alone["gradient"]
    copied = roofline.measured(1, length=1 << 22, order=256).copied
    link = duration.Link(float("inf"), 0.0)
    if sums:
        p, taken = 2, {int(size): seconds for size, seconds in sums.items()}
        first, last = min(taken), max(taken)
        latency = taken[first] / duration.all_reduce(first, p).hops
        link = duration.Link(duration.all_reduce(last, p).sent / taken[last], latency)
    return duration.Cluster("this machine", 0.0, copied, flops, max(PROCESSES), link, link)


def times(report):
    """A table of seconds, for numbers of processes that each have a processor."""
    fitting = [p for p in PROCESSES if p <= (os.cpu_count() or 1)]
    seen = {}
    for p in fitting:
        with tempfile.TemporaryDirectory() as folder:
            seen[p] = scaling.processes(__file__, p, Path(folder))
    sums = seen[2][0]["sums"] if 2 in seen else {}
    cluster = machine(seen[1][0], sums)
    report.say(
        f"\nMeasured with one thread: a copy {cluster.bandwidth / 1e9:.1f} GB/s, a gradient "
        f"{cluster.flops / 1e9:.1f} GFlop/s; between two processes "
        f"{cluster.inside.bandwidth / 1e9:.2f} GB/s and "
        f"{cluster.inside.latency * 1e6:.0f} microseconds per message."
    )
    rows = []
    for size, taken in list(sums.items())[1:-1]:
        traffic = duration.all_reduce(int(size), 2)
        expected = traffic.sent / cluster.inside.bandwidth + traffic.hops * cluster.inside.latency
        rows.append([f"an all-reduce of {int(size) / 1e6:.2g} MB, 2", *_seconds(expected, taken)])
    sizes, run = footprint.Network(**TIMED_SIZES), footprint.Run(**TIMED)
    for p, found in seen.items():
        steps = run.blocks
        predicted = duration.seconds(sizes, run, cluster, p)
        matvec = (predicted.matvecs + predicted.communication) / steps
        slowest = [max(process[what] for process in found) for what in ("matvec", "run")]
        rows.append([f"a matvec, {p}", *_seconds(matvec, slowest[0])])
        rows.append([f"a run of {steps} steps, {p}", *_seconds(predicted.total, slowest[1])])
    report.table(
        f"Time, n = {sizes.parameters}, {TIMED['tokens']} tokens, one thread per process",
        ["operation, processes", "predicted (ms)", "measured (ms)", "measured / predicted"],
        rows,
    )


def _seconds(expected, taken):
    return f"{1e3 * expected:.3g}", f"{1e3 * taken:.3g}", _ratio(taken / expected, TIME)


def run(report):
    counted(report)
    times(report)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    else:
        run(Report())
