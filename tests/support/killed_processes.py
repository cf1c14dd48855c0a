"""Runs in which one process is killed, and other processes that resume from the checkpoint."""

import functools
import os
import pickle
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree.results.files import archive
from matfree_torch import hessian
from matfree_torch.distributed.collectives import Communicator
from support.forks import TIMEOUT, import_lazy_modules, run_in_processes

SAMPLES = {
    1: (10,),
    2: (7, 3),
    3: (5, 0, 5),
}  # the samples of each process, by the number of processes
ROWS = {1: (57,), 2: (40, 17), 3: (20, 0, 37)}


def density(H, path, **options):
    return mf.spectral_density(
        H, num_steps=16, num_probes=4, block_size=2, seed=1, checkpoint=path, **options
    )


RUNS = {
    "trace": lambda H, path: mf.trace(H, num_probes=12, block_size=2, seed=1, checkpoint=path),
    "xtrace": lambda H, path: mf.trace(
        H, method="xtrace", num_probes=10, block_size=2, seed=1, checkpoint=path
    ),
    "diagonal": lambda H, path: mf.diagonal(
        H, num_probes=12, block_size=2, seed=1, checkpoint=path
    ),
    "eigsh": lambda H, path: mf.eigsh(H, 3, num_vectors=12, seed=1, checkpoint=path),
    "density": density,
    "deflated density": lambda H, path: density(H, path, eigenpairs=2),
    "density in 16 bits": lambda H, path: density(H, path, reorthogonalize="half"),
    "exp": lambda H, path: mf.trace_function(
        H, "exp", num_probes=4, num_steps=16, block_size=2, seed=1, checkpoint=path
    ),
}


def operator(rank, world, sharded):
    """The Hessian of one network over ten samples, divided among any number of processes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))
    begin = sum(SAMPLES[world][:rank])
    mine = slice(begin, begin + SAMPLES[world][rank])
    data = [(x[mine], y[mine])] if SAMPLES[world][rank] else []
    if world == 1 and not sharded:
        return hessian(net, nn.CrossEntropyLoss(), data)
    H = hessian(net, nn.CrossEntropyLoss(), data, process_group=dist.group.WORLD)
    return H.sharded(ROWS[world]) if sharded else H


def numbers(H, result):
    """The numbers of a result, with vectors gathered."""
    if isinstance(result, mf.EigenResult):
        return result.values
    if isinstance(
        result, mf.SpectralDensity
    ):  # smooth functions, because nodes are not determined by A alone
        return np.asarray([result.trace_function(f).value for f in (np.tanh, np.cos)])
    value = result.value
    if isinstance(value, torch.Tensor):
        return (H.gather(value) if hasattr(H, "gather") else value).numpy()
    return np.asarray(value)


class Moments:
    """Counts operations that other processes depend on, and kills the process at one of them."""

    def __init__(self, last, end):
        self.count, self.last, self.end = 0, last, end
        for owner, name in (
            *(
                (Communicator, name)
                for name in ("all_reduce", "all_gather_object", "all_gather", "reduce_scatter")
            ),
            (archive, "write_archive"),
            (os, "fsync"),  # the file is written and not yet renamed
        ):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def counted(*args, **kwargs):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), self.end)
            return function(*args, **kwargs)

        return counted


def work(rank, job, world):
    """Run the job in one process and return its results."""
    begin = time.monotonic()
    last = job.get("moment") if rank == job.get("victim") else None
    moments = Moments(last, job.get("end", signal.SIGKILL))
    found = {"rank": rank}
    try:
        H = operator(rank, world, job["sharded"])
        result = RUNS[job["run"]](H, job["path"])
        found |= {"numbers": numbers(H, result), "matvecs": result.num_matvecs}
    except Exception as error:
        found["error"] = type(error).__name__, str(error)
        found["traceback"] = traceback.format_exc()
    return found | {"seconds": time.monotonic() - begin, "moments": moments.count}


def answers(folder, world, job):
    """The results of all processes of a job, in rank order; None for one that was killed."""
    return run_in_processes(
        folder,
        world,
        functools.partial(work, job=job, world=world),
        timeout=job.get("timeout", TIMEOUT),
        unresponsive=job["victim"] if job.get("end") == signal.SIGSTOP else None,
    )


def scenario(folder, number, job, rng):
    """A run that loses a process, resumed by another number of processes."""
    before, after, path = job["before"], job["after"], folder / f"run-{number}.npz"
    begun = {"run": job["run"], "sharded": job["sharded"]}
    rehearsed = answers(folder, before, {**begun, "path": folder / f"rehearsal-{number}.npz"})
    victim = int(rng.integers(before))
    moment = int(rng.integers(5, rehearsed[victim]["moments"]))
    doomed = {**job, "path": path, "victim": victim, "moment": moment}
    resumed = {**begun, "path": path, "sharded": job["sharded after"]}
    return {
        "job": {**doomed, "of": rehearsed[victim]["moments"]},
        "rehearsed": rehearsed,
        "killed": answers(folder, before, doomed),
        "resumed": answers(folder, after, resumed),
        "left": sorted(p.name for p in folder.glob(f"*run-{number}.*")),
    }


def job(run, before, after, end=signal.SIGKILL):
    """A job from "sharded 3" to "replicated 2"."""
    kinds, counts = zip(*(text.split() for text in (before, after)), strict=True)
    return {
        "run": run,
        "sharded": kinds[0] == "sharded",
        "sharded after": kinds[1] == "sharded",
        "before": int(counts[0]),
        "after": int(counts[1]),
        "end": end,
    }


JOBS = [
    job("density", "sharded 3", "sharded 2"),
    job("trace", "replicated 2", "replicated 3"),
    job("diagonal", "sharded 2", "sharded 1"),
    job("eigsh", "sharded 3", "replicated 1"),
    job("eigsh", "replicated 3", "sharded 2"),
    job("xtrace", "sharded 2", "sharded 3"),
    job("density in 16 bits", "replicated 2", "replicated 1"),
    job("exp", "sharded 3", "replicated 2"),
    job("diagonal", "replicated 3", "sharded 1"),
    job("deflated density", "sharded 2", "sharded 3"),
]


def main(folder, seed):
    import_lazy_modules(folder, lambda: RUNS["trace"](operator(0, 1, False), None))
    rng = np.random.default_rng(seed)
    stopped = job("density", "sharded 3", "sharded 2", signal.SIGSTOP) | {"timeout": 3.0}
    alone = {
        name: answers(folder, 1, {"run": name, "sharded": False, "path": None})[0]
        for name in {job["run"] for job in JOBS}
    }
    found = [scenario(folder, number, job, rng) for number, job in enumerate([*JOBS, stopped])]
    (folder / "found.pickle").write_bytes(pickle.dumps((alone, found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
