"""Two processes with losses whose divisors have to be found out, compared with one process."""

import pickle
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from matfree_torch import hessian
from support.forks import caught, run_in_processes

WAYS = ("group", "twin", "differences")
DOUBLE = torch.float64


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6)).to(DOUBLE)


def per_sample(z, y):
    return functional.cross_entropy(z, y, reduction="none")


def over_masked(z, y):
    """A mean over targets other than 0."""
    weight = (y > 0).to(z.dtype)
    return (per_sample(z, y) * weight).sum() / weight.sum()


def hidden(z, y):
    """The same in terms of operations that are not recognized."""
    weight = (y > 0).to(z.dtype)
    return torch.einsum("i,i->", per_sample(z, y), weight) / torch.einsum("i->", weight)


def is_sum(z, y):
    return per_sample(z, y).sum()


LOSSES = {
    "mean": (lambda z, y: per_sample(z, y).mean(), None),
    "masked": (over_masked, None),
    "hidden": (hidden, None),
    "hidden, with normalizer": (hidden, lambda batch: float((batch[1] > 0).sum())),
    "sum": (is_sum, None),
}


def batches(rank=None):
    """Ragged batches of one process, or those of both."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 3, dtype=DOUBLE, generator=generator)
    y = torch.tensor([0, 1, 2, 0, 4, 5, 1, 2, 3, 0, 1, 3])
    bounds = [[(0, 3), (3, 5)], [(5, 8), (8, 12)]]
    chosen = bounds[rank] if rank is not None else [*bounds[0], *bounds[1]]
    return [(x[a:b], y[a:b]) for a, b in chosen]


def operator(way, loss, normalizer, rank):
    if way == "group":
        group = dist.group.WORLD
        data = batches(rank)
        return hessian(network(), loss, data, normalizer=normalizer, process_group=group)
    model = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
    strategy = "auto" if way == "twin" else "finite-difference"
    return hessian(model, loss, batches(rank), normalizer=normalizer, strategy=strategy)


def compared(way, loss, normalizer, rank):
    """The relative differences of a matvec and of the loss from those of one process."""
    A = operator(way, loss, normalizer, rank)
    weights = normalizer or (lambda batch: len(batch[1]))
    alone = hessian(network(), loss, batches(), normalizer=normalizer or _weight_of(loss, weights))
    X = A.space.probes(1, seed=1)
    Y = A.space.gather(A @ X) if A.space.is_sharded else A @ X
    exact = alone @ alone.space.probes(1, seed=1)
    return float((Y - exact).norm() / exact.norm()), abs(A.loss() / alone.loss() - 1)


def _weight_of(loss, by_samples):
    """The true weight of a batch."""
    return (lambda batch: float((batch[1] > 0).sum())) if loss is over_masked else by_samples


def work(rank):
    warnings.simplefilter("ignore")
    found = {}
    for name, (loss, normalizer) in LOSSES.items():
        for way in WAYS:
            found[name, way] = _result(way, loss, normalizer, rank)
    return found


def _result(*arguments):
    """What ``compared`` returns, or the type and the message of its exception."""
    seen = []
    failure = caught(lambda: seen.append(compared(*arguments)))
    return seen[0] if seen else failure


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    answers = run_in_processes(folder, 2, work, limit=200)
    (folder / "answers.pickle").write_bytes(pickle.dumps(answers))
