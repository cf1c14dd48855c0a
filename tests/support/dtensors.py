"""Four processes, over which the parameters of networks are sharded."""

import copy
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

import matfree as mf
from matfree_torch import activation_traces, fisher, ggn, hessian, hessian_of, loss_landscape
from matfree_torch.autograd import graph_memory
from matfree_torch.objective import fsdp
from support.forks import caught, run_in_processes

WORLD = 4
CE = nn.CrossEntropyLoss()
COUNTS = (3, 0, 1, 4)
WEIGHTED = nn.CrossEntropyLoss(
    weight=torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 1.0], dtype=torch.float64), ignore_index=4
)
INSIDE = {
    **{name: ColwiseParallel() for name in ("q", "k", "v", "up")},
    **{name: RowwiseParallel() for name in ("out", "down")},
}
BY_ROWS = {
    **INSIDE,
    "embedding": RowwiseParallel(input_layouts=Replicate()),
    "head": ColwiseParallel(output_layouts=Replicate()),
}
BY_COLUMNS = {
    **INSIDE,
    "embedding": ColwiseParallel(output_layouts=Replicate()),
    "norm": PrepareModuleInput(
        input_layouts=Replicate(), desired_input_layouts=Shard(1), use_local_output=False
    ),
    "norm.0": SequenceParallel(use_local_output=False),
    "up": ColwiseParallel(input_layouts=Shard(1)),
}


class Transformer(nn.Module):
    """A block of a transformer whose vocabulary size is not a multiple of four."""

    def __init__(self, width=4, hidden=8, words=7, length=4):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.first, self.norm = nn.LayerNorm(width), nn.Sequential(nn.LayerNorm(width))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, words)

    def forward(self, x):
        z = self.embedding(x) + self.position
        y = self.first(z)
        heads = [m(y).unflatten(-1, (-1, 1)).transpose(1, 2) for m in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        z = z + self.out(mixed.transpose(1, 2).flatten(2))
        z = z + self.down(nn.functional.gelu(self.up(self.norm(z))))
        return self.head(z).transpose(1, 2)


def transformer():
    torch.manual_seed(0)
    net = Transformer().double()
    return net, torch.randint(7, (3, 4)), torch.randint(7, (3, 4))


def perceptron():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), inner, nn.Linear(6, 3))
    return net.double().eval(), torch.randn(8, 5).double(), torch.randint(3, (8,))


def sharded_by_hand(net, mesh, placements, inputs):
    """A network with given placements of its parameters and of its inputs."""

    def shard(_, module, mesh):
        for name, p in module.named_parameters(recurse=False):
            place = placements if p.ndim > 1 else [Shard(0) for _ in placements]
            setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, place)))

    return distribute_module(
        copy.deepcopy(net),
        mesh,
        shard,
        lambda _, given, mesh: tuple(distribute_tensor(x, mesh, inputs) for x in given),
        lambda _, outputs, mesh: outputs.full_tensor(),
    )


def fully_sharded(mesh):
    net, x, y = perceptron()
    for module in (net[0], net[3]):
        fully_shard(module, mesh=mesh)
    return fully_shard(net, mesh=mesh), x, y


def whole(x):
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def gathered(A, x):
    """All rows of a vector or a block, gathered if it is sharded."""
    return A.space.gather(x) if A.space.is_sharded else x


def matvecs(A):
    return gathered(A, A @ A.space.probes(1, seed=1))


def compared(ours, alone, read=matvecs):
    return np.asarray(read(ours)), np.asarray(read(alone))


def largest(A):
    return mf.eigsh(A, 1, seed=0, rtol=1e-3, num_vectors=8).values


def algorithms(ours, alone):
    """Quantities that are computed from matvecs."""
    return {
        name: compared(ours, alone, read)
        for name, read in {
            "gradient": lambda A: gathered(A, A.gradient()),
            "loss": lambda A: A.loss(),
            "loss along a direction": lambda A: A.loss(A.space.probes(1, seed=2)[:, 0] / 10),
            "trace": lambda A: mf.trace(A, num_probes=3, seed=0).value,
            "density": lambda A: (
                mf.spectral_density(A, num_steps=4, num_probes=1, seed=0).moment(3).value
            ),
        }.items()
    }


def transformers(mesh):
    """A transformer sharded by two of torch's plans, each in one of two pairs of processes."""
    net, x, y = transformer()
    if dist.get_rank() < 2:
        sharded = parallelize_module(copy.deepcopy(net), mesh, BY_ROWS)
        return operators(net, sharded, x, y)
    sharded = parallelize_module(copy.deepcopy(net), mesh, BY_COLUMNS)
    found = {
        "embedding by columns": compared(hessian(sharded, CE, (x, y)), hessian(net, CE, (x, y)))
    }
    sharded = parallelize_module(copy.deepcopy(net), mesh, INSIDE)
    found["eigsh"] = compared(hessian(sharded, CE, (x, y)), hessian(net, CE, (x, y)), largest)
    found["left"] = untouched(sharded, lambda: hessian(sharded, CE, (x, y)).inspect())
    return found | {"torch alone": torch_alone(net, sharded, x, y)}


def operators(net, sharded, x, y):
    batches, options = [(x[:2], y[:2]), (x[2:], y[2:])], {"weight_decay": {"*.weight": 0.1}}
    ours = hessian(sharded, WEIGHTED, batches, strategy="recompute", **options)
    alone = hessian(net, WEIGHTED, batches, **options)
    by_name = [A.unflatten(A.space.probes(1, seed=3)[:, 0]) for A in (ours, alone)]
    back = [
        gathered(A, A.flatten(tensors)) for A, tensors in zip((ours, alone), by_name, strict=True)
    ]
    kept, block = hessian(sharded, CE, batches), ("up.*", ("head.*", "position"))
    return {
        "embedding by rows": compared(kept, hessian(net, CE, batches)),
        "number of graphs": kept.memory.kept,
        "recomputed, weights, decay": compared(ours, alone),
        "ggn": compared(ggn(sharded, CE, (x, y)), ggn(net, CE, (x, y))),
        "fisher": compared(
            fisher(sharded, CE, (x, y), kind="monte-carlo", seed=1),
            fisher(net, CE, (x, y), kind="monte-carlo", seed=1),
        ),
        "block": compared(
            ours.block(*block),
            alone.block(*block),
            lambda A: gathered(A, A @ A.domain.probes(1, seed=4)),
        ),
        "unflatten": tuple(
            np.concatenate([np.ravel(whole(p)) for p in tensors.values()]) for tensors in by_name
        ),
        "flatten": tuple(map(np.asarray, back)),
        "placements kept": all(
            getattr(by_name[0][name], "placements", None) == getattr(p, "placements", None)
            for name, p in sharded.named_parameters()
        ),
    }


def torch_alone(net, sharded, x, y):
    """The double backward of torch through its parallel layers, and that of one process."""

    def second(model):
        ps = list(model.parameters())
        with sdpa_kernel(SDPBackend.MATH):
            gradients = torch.autograd.grad(CE(model(x), y), ps, create_graph=True)
            curved = [g for g in gradients if g.requires_grad]
            found = torch.autograd.grad(
                curved,
                ps,
                [torch.ones_like(g) for g in curved],
                allow_unused=True,
                materialize_grads=True,
            )
        return np.concatenate([np.ravel(whole(g)) for g in found])

    return second(sharded), second(net)


def untouched(model, work):
    """Whether a model is the same before and after some work."""

    def state():
        modules = [
            (type(m).__name__, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in model.modules()
        ]
        tensors = [
            (name, type(p).__name__, id(p), p.requires_grad, p.grad is None)
            for name, p in model.named_parameters()
        ]
        buffers = [b.clone() for b in model.buffers()]
        return modules, tensors, buffers, DTensor.__dict__["from_local"]

    before = state()
    work()
    after = state()
    return (
        before[:2] == after[:2]
        and before[3] is after[3]
        and all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    )


def other_placements(mesh, square):
    """Parameters sharded by hand over one and two dimensions of a mesh; data parallelism."""
    net, x, y = perceptron()
    net = nn.Sequential(net[0], net[2], net[4])
    alone = hessian(net, CE, (x, y))
    rows = sharded_by_hand(net, mesh, [Shard(0)], [Replicate()])
    columns = sharded_by_hand(net, mesh, [Shard(1)], [Shard(0)])
    boxes = sharded_by_hand(net, square, [Shard(0), Shard(1)], [Replicate(), Replicate()])
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    pairs = parallelize_module(copy.deepcopy(net), square["tp"], plan)
    mine = slice(0, 5) if square.get_local_rank("dp") == 0 else slice(5, 8)
    group = square["dp"].get_group()
    shared = hessian(pairs, CE, [(x[mine], y[mine])], process_group=group, weight_decay=0.1)
    function = {name: p.detach() for name, p in rows.named_parameters()}
    norm = hessian_of(lambda t: sum((p**4).sum() for p in t.values()), function)
    plain = {name: p.detach() for name, p in net.named_parameters()}
    return {
        "rows": compared(hessian(rows, CE, (x, y)), alone),
        **algorithms(hessian(rows, CE, (x, y)), alone),
        "columns, sharded inputs": compared(hessian(columns, CE, (x, y)), alone),
        "boxes": compared(hessian(boxes, CE, (x, y)), alone),
        "data parallel too": compared(shared, hessian(net, CE, (x, y), weight_decay=0.1)),
        "a function": compared(
            norm, hessian_of(lambda t: sum((p**4).sum() for p in t.values()), plain)
        ),
    }


def fully(mesh, square):
    """The unsharded copy of a fully sharded model, whose processes have different data."""
    rank = dist.get_rank()
    begin, end = sum(COUNTS[:rank]), sum(COUNTS[: rank + 1])
    model, x, y = fully_sharded(mesh)
    plain, _, _ = perceptron()
    mine = [(x[i : i + 1], y[i : i + 1]) for i in range(begin, end)]
    ours, alone = (
        hessian(model, CE, mine, weight_decay=0.1),
        hessian(plain, CE, (x, y), weight_decay=0.1),
    )
    found = {"twin": compared(ours, alone)}
    found["twin, eigsh"] = compared(ours, alone, largest)
    found |= {f"twin, {name}": pair for name, pair in algorithms(ours, alone).items()}
    for net in (model, plain):
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1)
    found["twin after a step"] = compared(ours, alone)
    hybrid, _, _ = fully_sharded(square)
    plain, _, _ = perceptron()
    found["twin of a hybrid"] = compared(
        hessian(hybrid, CE, mine, memory=0), hessian(plain, CE, (x, y))
    )
    found["twin's ggn"] = compared(ggn(hybrid, CE, mine), ggn(plain, CE, (x, y)))
    found["twin's activations"] = tuple(
        np.array([t.value for t in activation_traces(*call, modules=nn.Linear, seed=0).values()])
        for call in (
            (hybrid, CE, mine),
            (plain, CE, [(x[i : i + 1], y[i : i + 1]) for i in range(8)]),
        )
    )
    found["twin left"] = untouched(hybrid, lambda: hessian(hybrid, CE, mine).inspect())
    return found | differences(model, x, y)


def differences(model, x, y):
    rank = dist.get_rank()
    plain, _, _ = perceptron()
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.1)
    mine = [(x[2 * rank : 2 * rank + 2], y[2 * rank : 2 * rank + 2])]
    model(x)  # leaves some parameters gathered
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64))

    def work():
        ours = hessian(model, loss, mine, strategy="finite-difference", weight_decay=0.1)
        found["differences"] = compared(ours, alone)
        found["differences' gradient"] = compared(ours, alone, lambda A: gathered(A, A.gradient()))
        found["differences' loss"] = compared(ours, alone, lambda A: A.loss())

    found, alone = {}, hessian(plain, loss, (x, y), weight_decay=0.1)
    found["left by differences"] = untouched(model, work)
    uneven = mine * (1 + (rank == 2))
    found["uneven"] = caught(lambda: hessian(model, loss, uneven, strategy="finite-difference"))
    return found


def errors(mesh, square):
    """The errors that all processes raise."""
    rank = dist.get_rank()
    net, x, y = transformer()
    sharded = parallelize_module(copy.deepcopy(net), mesh, INSIDE)
    model, inputs, targets = fully_sharded(mesh)
    data = inputs, targets
    both, _, _ = perceptron()
    both = nn.Sequential(both[0], both[2], nn.Linear(6, 3).double())
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    both = fully_shard(parallelize_module(both, square["tp"], plan), mesh=square["dp"])
    several = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    several = parallelize_module(several, mesh, {"0": ColwiseParallel(output_layouts=Replicate())})
    several = parallelize_module(several, square["tp"], {"1": ColwiseParallel()})
    old = FullyShardedDataParallel(nn.Linear(5, 3).double(), device_id=torch.device("cpu"))

    def on_a_small_machine():
        fsdp.available_memory = lambda device: 4 * 500 * WORLD
        try:
            hessian(model, CE, data)
        finally:
            fsdp.available_memory = graph_memory.available_memory

    other_norm = copy.deepcopy(sharded)
    with torch.no_grad():
        other_norm.first.weight[0] += 1e-12 * (rank == 2)
    other = x.clone()
    other[0, 0] = (other[0, 0] + (rank == 3)) % 7
    return {
        "other batches": caught(lambda: hessian(sharded, CE, (other, y)).inspect()),
        "other weights": caught(lambda: hessian(other_norm, CE, (x, y)).inspect()),
        "group of a mesh": caught(
            lambda: hessian(sharded, CE, (x, y), process_group=dist.group.WORLD)
        ),
        "forward": caught(lambda: hessian(sharded, CE, (x, y), strategy="forward")),
        "activations": caught(lambda: activation_traces(sharded, CE, (x, y), modules="up")),
        "landscape": caught(lambda: loss_landscape(sharded, CE, (x, y), "random", points=3)),
        "landscape of a twin": caught(lambda: loss_landscape(model, CE, data, "random", points=3)),
        "sharded twice": caught(lambda: hessian(sharded, CE, (x, y)).sharded()),
        "number of vectors": caught(
            lambda: (A := hessian(sharded, CE, (x, y))) @ A.space.probes(1 + (rank == 1), seed=0)
        ),
        "a group": caught(lambda: hessian(model, CE, data, process_group=dist.group.WORLD)),
        "both": caught(lambda: hessian(both, CE, data)),
        "several meshes": caught(lambda: hessian(several, CE, (inputs[:, :4], targets))),
        "old": caught(lambda: hessian(old, CE, data)),
        "memory": caught(on_a_small_machine),
    }


def answer(rank):
    """The results of one process."""
    warnings.simplefilter("error")
    mesh = init_device_mesh("cpu", (WORLD,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = transformers(square["tp"])
    for work in (other_placements, fully, errors):
        found |= work(mesh, square)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    answers = run_in_processes(folder, WORLD, answer, timeout=60.0, limit=300.0)
    (folder / "answers.pickle").write_bytes(pickle.dumps(answers))
