"""The processes of test_sharded: curvature operators on one, two and four processes."""

import functools
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree.results.files import archive
from matfree_torch import activation_traces, fisher, ggn, hessian
from support.forks import caught, import_lazy_modules, run_in_processes

CE = nn.CrossEntropyLoss()
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
SAMPLES = {1: (10,), 2: (7, 3), 4: (5, 0, 3, 2)}
N = 69
ROWS = {2: (48, 21), 4: (20, 0, 40, 9)}
PARTS = {"first": slice(0, 30), "rest": slice(30, N)}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    return net.eval(), torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))


class Share:
    """The data of one process, and those of all processes."""

    def __init__(self, rank, world, folder):
        self.rank, self.world, self.folder = rank, world, folder
        self.group = dist.group.WORLD
        self.net, self.x, self.y = network()
        self.all = [(self.x, self.y)]
        begin = sum(SAMPLES[world][:rank])
        mine = slice(begin, begin + SAMPLES[world][rank])
        self.mine = [(self.x[mine], self.y[mine])] if SAMPLES[world][rank] else []

    def operators(self, make, loss=CE, rows=None, **options):
        """The sharded and the data-parallel operator; with one process, the whole operator.

        Rows are distributed evenly if ``rows`` is empty.
        """
        if self.world == 1:
            return [make(self.net, loss, self.all, **options)]
        shared = make(self.net, loss, self.mine, process_group=self.group, **options)
        rows = ROWS[self.world] if rows is None else rows
        return [shared.sharded(rows or None), shared]


def whole(H, x):
    """A whole vector as a NumPy array."""
    return (H.gather(x) if hasattr(H, "gather") else x).numpy()


def vectors(H, result, *fields):
    """The whole vectors of a result up to signs, followed by its values."""
    found = [np.abs(whole(H, getattr(result, field))).ravel() for field in fields]
    return np.concatenate([*found, getattr(result, "values", np.zeros(0))])


MEASURES = {
    "trace": lambda H: mf.trace(H, num_probes=9, seed=0).value,
    "xtrace": lambda H: mf.trace(H, method="xtrace", num_probes=9, seed=0).value,
    "diagonal": lambda H: vectors(H, mf.diagonal(H, num_probes=9, seed=0), "value", "stderr"),
    "eigsh": lambda H: vectors(H, mf.eigsh(H, 3, rtol=1e-13, verify=False, seed=0), "vectors"),
    "power iteration": lambda H: mf.power_iteration(H, 1, rtol=1e-3, seed=0).values,
    "density": lambda H: moments(mf.spectral_density(H, num_steps=9, num_probes=3, seed=0)),
    "density outside of pairs": lambda H: moments(
        mf.spectral_density(H, num_steps=9, num_probes=3, seed=0, eigenpairs=3)
    ),
    "density by moments": lambda H: moments(
        mf.spectral_density(H, method="kpm", num_steps=9, num_probes=3, seed=0)
    ),
    "trace of a function": lambda H: (
        mf.trace_function(H, "exp", num_probes=3, num_steps=9, seed=0).value
    ),
    "singular values": lambda H: mf.svds(H, 2, rtol=1e-8, verify=False, seed=0).values,
    "block traces": lambda H: [
        trace.value for trace in mf.block_traces(H, PARTS, num_probes=5, seed=0).values()
    ],
    "frobenius norm": lambda H: mf.frobenius_norm(H, num_probes=5, seed=0).value,
}


AT_FOUR = (
    "trace",
    "diagonal",
    "eigsh",
    "density",
    "block traces",
)  # four processes on few cores are slow


def moments(density):
    return [density.moment(power).value for power in (1, 2, 3)]


def numbers(share):
    """All quantities by name, for the sharded and data-parallel operator or for one process."""
    operators = share.operators(hessian, WEIGHTED, weight_decay={"0.*": 0.1, "3.bias": 0.3})
    found = {
        name: [np.asarray(measure(H)) for H in operators]
        for name, measure in MEASURES.items()
        if share.world < 4 or name in AT_FOUR
    }
    for name, make, options in (
        ("hessian", hessian, {}),
        ("hessian, recomputed", hessian, {"strategy": "recompute"}),
        ("ggn", ggn, {}),
        ("fisher", fisher, {"kind": "monte-carlo", "seed": 3, "num_samples": 5}),
        ("even rows", hessian, {"rows": ()}),
    ):
        found[name] = [whole(H, H.to_dense()) for H in share.operators(make, **options)]
    data, group = (share.all, None) if share.world == 1 else (share.mine, share.group)
    traces = activation_traces(
        share.net, CE, data, modules=nn.Linear, method="gauss-newton", process_group=group
    )
    found["activation traces"] = [np.asarray([trace.value for trace in traces.values()])]
    return found


def budgets(share):
    """The memory plans of a density for a large and a small budget."""
    sharded, shared = share.operators(hessian)
    found = {}
    for memory in (40_000, 18_000):
        kept = []
        for H in (sharded, shared):
            density = mf.spectral_density(H, num_steps=20, num_probes=3, seed=0, memory=memory)
            kept.append((density.memory["basis"], density.memory["at_once"], moments(density)))
        found[memory] = kept
    return found


def members(share):
    """Properties and methods of a sharded operator."""
    sharded, shared = share.operators(hessian)
    rows = sharded.space.rows
    vector = shared.space.probes(1, seed=4, kind="gaussian")[:, 0]
    own = vector[rows.start : rows.stop]
    tensors = sharded.unflatten(own)
    one_by_one = shared.sharded(ROWS[share.world], block_size=1)
    X = shared.space.probes(5, seed=5)[rows.start : rows.stop]
    return {
        "rows": rows,
        "gathered": bool((sharded.gather(own) == vector).all()),
        "tensors": all(
            bool((tensors[name] == x).all()) for name, x in shared.unflatten(vector).items()
        ),
        "flattened": bool((sharded.flatten(tensors) == own).all()),
        "one by one": float(torch.linalg.norm(one_by_one @ X - sharded @ X)),
        "symmetric": mf.check_operator(sharded).hermitian,
        "names": sharded.names == shared.names and sharded.partition == shared.partition,
        "noise": sharded.noise,
        "text": repr(sharded),
        "seeds": [mf.trace(H, num_probes=2).seed for H in (sharded, shared)],
    }


def files(share):
    """The files of a checkpoint and of a result that this process writes."""
    sharded, shared = share.operators(hessian)
    written, write = [], archive.write_archive

    def noted(target, kind, values):
        written.append(target.name)
        write(target, kind, values)

    archive.write_archive = noted
    mf.diagonal(shared, num_probes=4, seed=0, checkpoint=share.folder / "replicated")
    replicated, written[:] = len(written), []
    mf.diagonal(sharded, num_probes=4, seed=0, checkpoint=share.folder / "sharded")
    files_of_sharded, written[:] = sorted(set(written)), []
    archive.write_archive = write
    pairs = mf.eigsh(sharded, 2, rtol=1e-3, verify=False, seed=0)
    name = pairs.save(share.folder / "top").name
    dist.barrier()
    read = mf.load(share.folder / "top")
    return {
        "replicated": replicated,
        "sharded": files_of_sharded,
        "name": name,
        "read": bool((read.vectors == sharded.gather(pairs.vectors).numpy()).all()),
    }


def errors(share):
    """The errors of processes that disagree; later calls must still work."""
    rank, group, counts = share.rank, share.group, ROWS[share.world]

    def operator(net=share.net, loss=CE, rows=counts, **options):
        H = hessian(net, loss, share.mine, process_group=group)
        return H.sharded(rows, **options)

    def other_weights():
        net, _, _ = network()
        if rank == 1:
            with torch.no_grad():
                net[0].weight[0, 0] += 1e-12
        mf.trace(operator(net), num_probes=2, seed=0)

    def failing(outputs, targets):
        return CE(outputs, targets) * (1 / int(rank != 0))

    alone = hessian(share.net, CE, share.all)
    found = {
        "other seeds": caught(lambda: mf.trace(operator(), num_probes=3, seed=rank)),
        "a seed and none": caught(lambda: mf.trace(operator(), num_probes=3, seed=rank or None)),
        "other numbers of probes": caught(
            lambda: mf.trace(operator(), num_probes=3 + rank, seed=0)
        ),
        "other rows": caught(lambda: operator(rows=counts if rank else counts[::-1])),
        "other block sizes": caught(lambda: operator(block_size=1 + rank)),
        "too many rows": caught(lambda: operator(rows=[N] * share.world)),
        "too many rows in one": caught(
            lambda: operator(rows=counts if rank else [N] * share.world)
        ),
        "no block": caught(lambda: operator(block_size=0)),
        "other weights": caught(other_weights),
        "failing loss": caught(lambda: mf.trace(operator(loss=failing), num_probes=2, seed=0)),
        "alone": caught(alone.sharded),
        "restricted": caught(lambda: operator().restrict(0, 5)),
    }
    found["afterwards"] = abs(
        mf.trace(operator(), num_probes=2, seed=0).value
        - mf.trace(alone, num_probes=2, seed=0).value
    )
    return found


def work(rank, world, folder):
    folder = folder / str(world)
    folder.mkdir(exist_ok=True)
    share = Share(rank, world, folder)
    found = {"numbers": numbers(share)}
    if world > 1:
        for what in (budgets, members, files, errors):
            found[what.__name__] = what(share)
    return found


def warm():
    net, x, y = network()
    mf.trace(hessian(net, CE, (x, y)), num_probes=1, seed=0)


def main(folder):
    import_lazy_modules(folder, warm)
    found = {
        world: run_in_processes(folder, world, functools.partial(work, world=world, folder=folder))
        for world in (1, 2, 4)
    }
    (folder / "found.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
