"""One of several processes: what it computes with its share of the data, and with all of it."""

import datetime
import os
import pickle
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree_torch import (
    activation_hessian,
    activation_traces,
    batch_jackknife,
    fisher,
    ggn,
    hessian,
)
from support.forks import caught

TIMEOUT = 20.0
PROBES = 6
CE = nn.CrossEntropyLoss()
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    return net.eval(), torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))


class Share:
    """The data of one process, in batches of two samples."""

    def __init__(self, rank, counts):
        self.rank, self.group = rank, dist.group.WORLD
        self.net, self.x, self.y = problem()
        begin, end = sum(counts[:rank]), sum(counts[: rank + 1])
        self.batches = [
            (self.x[i : min(i + 2, end)], self.y[i : min(i + 2, end)]) for i in range(begin, end, 2)
        ]
        # the batches of all processes, in rank order, for the reference computed by one process
        self.all = []
        for k in range(len(counts)):
            stop = sum(counts[: k + 1])
            self.all += [
                (self.x[i : min(i + 2, stop)], self.y[i : min(i + 2, stop)])
                for i in range(sum(counts[:k]), stop, 2)
            ]

    def both(self, make, loss=CE, read=lambda A: A.to_dense(), **options):
        """A quantity of the operator over all processes, and of the one that has all data."""
        ours = make(self.net, loss, self.batches, process_group=self.group, **options)
        alone = make(self.net, loss, self.all, **options)
        return tuple(np.asarray(read(A)) for A in (ours, alone))


def numbers(share):
    """All quantities that must equal those that one process computes."""
    direction = 0.1 * torch.ones(sum(p.numel() for p in share.net.parameters())).double()
    found = {
        "hessian": share.both(hessian),
        "sum loss": share.both(hessian, nn.CrossEntropyLoss(reduction="sum")),
        "class weights and weight decay": share.both(hessian, WEIGHTED, weight_decay=0.1),
        "ggn": share.both(ggn),
        "fisher monte-carlo": share.both(fisher, kind="monte-carlo", seed=3, num_samples=5),
        "fisher empirical": share.both(fisher, kind="empirical"),
        "recomputed": share.both(hessian, strategy="recompute"),
        "gradient": share.both(hessian, read=lambda A: A.gradient()),
        "loss": share.both(hessian, read=lambda A: A.loss()),
        "loss along a direction": share.both(hessian, read=lambda A: A.loss(direction)),
        "trace": share.both(hessian, read=lambda A: mf.trace(A, num_probes=9, seed=0).value),
        "diagonal": share.both(hessian, read=lambda A: mf.diagonal(A, num_probes=9, seed=0).value),
        "eigsh": share.both(hessian, read=lambda A: mf.eigsh(A, 3, seed=0).values),
        "density": share.both(
            hessian,
            read=lambda A: (
                mf.spectral_density(A, num_steps=8, num_probes=2, seed=0).moment(3).value
            ),
        ),
    }
    for title, options in (
        ("traces exact", {"method": "gauss-newton"}),
        ("traces by probes", {"method": "probes", "num_probes": PROBES, "seed": 5}),
        ("traces per sample", {"method": "gauss-newton", "per_sample": True}),
    ):
        found[title] = share.both(
            activation_traces,
            read=lambda traces: [trace.value for trace in traces.values()],
            modules=nn.Linear,
            **options,
        )
    whole = found["hessian"][1]
    parts = [hessian(share.net, CE, [batch]).to_dense().numpy() for batch in share.all]
    found["mean of the shares"] = np.abs(np.mean(parts, axis=0) - whole).max() / np.abs(whole).max()
    return found


def errors(share):
    """The errors of processes that disagree; afterwards they compute correctly again."""
    rank, group = share.rank, share.group

    def operator(net=share.net, loss=CE, batches=share.batches, **options):
        return hessian(net, loss, batches, process_group=group, **options)

    def other_weights():
        net, _, _ = problem()
        if rank == 2:
            with torch.no_grad():
                net[0].weight[0, 0] += 1e-12
        operator(net).gradient()

    def other_buffers():
        net, _, _ = problem()
        net[1].running_mean[0] = float(rank > 0)
        operator(net).gradient()

    def failing(outputs, targets):
        return CE(outputs, targets) * (1 / int(rank != 2))

    def sampled():
        fisher(share.net, CE, share.batches, kind="monte-carlo", seed=rank, process_group=group)

    return {
        "other seeds": caught(lambda: mf.trace(operator(), num_probes=3, seed=rank)),
        "other numbers of probes": caught(
            lambda: mf.trace(operator(), num_probes=3 + rank, seed=0)
        ),
        "other fisher seeds": caught(sampled),
        "other weights": caught(other_weights),
        "other buffers": caught(other_buffers),
        "other loss options": caught(
            lambda: operator(loss=nn.CrossEntropyLoss(label_smoothing=0.1 * (rank == 1)))
        ),
        "other class weights": caught(
            lambda: operator(loss=nn.CrossEntropyLoss(weight=torch.ones(3) + (rank == 2)))
        ),
        "other losses": caught(
            lambda: operator(loss=nn.CrossEntropyLoss() if rank else nn.functional.cross_entropy)
        ),
        "other parameters": caught(lambda: operator(weight_decay=0.1 * (rank == 3))),
        "no data at all": caught(lambda: operator(batches=[]).gradient()),
        "failing loss": caught(lambda: operator(loss=failing).gradient()),
        "batch by batch": caught(lambda: batch_jackknife(operator(), seed=0)),
        "after the errors": share.both(hessian),
        "neighbours": operator().objective.communicator.num_sharing_memory,
    }


def activations(share):
    """The operator over ten samples, of which the four processes hold 4, 1, 3 and 2."""
    counts = (4, 1, 3, 2)
    begin, end = sum(counts[: share.rank]), sum(counts[: share.rank + 1])
    options = {"modules": ("0", "2"), "at": "output"}
    ours = activation_hessian(
        share.net,
        WEIGHTED,
        (share.x[begin:end], share.y[begin:end]),
        process_group=share.group,
        **options,
    )
    alone = activation_hessian(share.net, WEIGHTED, (share.x, share.y), **options)
    block, whole = ours.block("0", "2"), alone.block("0", "2")
    rows = slice(block.space.rows.start, block.space.rows.stop)
    W = whole.domain.probes(3, seed=2)

    def failing(outputs, targets):
        return CE(outputs, targets) * (1 / int(share.rank != 1))

    def of_failing():
        data = share.x[begin:end], share.y[begin:end]
        activation_hessian(share.net, failing, data, process_group=share.group, **options)

    def read(measure):
        return np.asarray(measure(ours)), np.asarray(measure(alone))

    return {
        "rows of a block's matvec": (
            (block @ block.domain.probes(3, seed=2)).numpy(),
            (whole @ W)[rows].numpy(),
        ),
        "rows of the adjoint's matvec": (
            (block.H @ block.space.probes(3, seed=2)).numpy(),
            (whole.H @ whole.space.probes(3, seed=2))[
                block.domain.rows.start : block.domain.rows.stop
            ].numpy(),
        ),
        "activation eigsh": read(lambda A: mf.eigsh(A, 3, seed=0, rtol=1e-10).values),
        "activation trace of a block": read(
            lambda A: mf.trace(A.block("0"), num_probes=5, seed=1).value
        ),
        "activation traces": read(
            lambda A: [trace.value for trace in A.traces("gauss-newton").values()]
        ),
        "activation sizes": read(lambda A: A.shape),
        "failing activations": caught(of_failing),
    }


def wrapped(share):
    """A model wrapped for data-parallel training."""
    net, _, _ = problem()
    ddp = nn.parallel.DistributedDataParallel(net)
    ours = hessian(ddp, CE, share.batches, process_group=share.group).to_dense()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        hessian(ddp, CE, share.all)
    alone = hessian(net, CE, share.all).to_dense()
    return {"wrapped": (ours.numpy(), alone.numpy()), "warning": str(warned[-1].message)}


def death(share, folder):
    """The last process dies during an estimate that has a checkpoint."""
    H = hessian(share.net, CE, share.batches, process_group=share.group)
    path = folder / "trace.npz"
    options = {"num_probes": 8, "block_size": 2, "seed": 0, "checkpoint": path}

    def die(estimate):
        if share.rank == 3 and estimate.num_probes == 4:
            os._exit(3)

    begin = time.monotonic()
    kind, text = caught(lambda: mf.trace(H, callback=die, **options))
    found = {"after a death": (kind, text, time.monotonic() - begin), "timeout": TIMEOUT}
    if share.rank == 0:
        alone = hessian(share.net, CE, share.all)
        unbroken = mf.trace(alone, num_probes=8, block_size=2, seed=0)
        seen = []
        resumed = mf.trace(alone, callback=lambda e: seen.append(e.num_probes), **options)
        found["resumed"] = (resumed.value, unbroken.value, seen)
    return found


def main(rank, folder, counts):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=len(counts),
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    share = Share(rank, counts)
    found = {**numbers(share), **errors(share), **wrapped(share), **activations(share)}
    target = folder / f"{rank}.pickle"
    target.write_bytes(pickle.dumps(found))
    dist.barrier()  # all results are written before one process dies
    found |= death(share, folder)
    target.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")])
