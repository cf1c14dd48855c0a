"""The Hessian of a network whose parameters are cut up: torchrun --nproc_per_node 2 <this>."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import matfree as mf
from matfree_torch import hessian


def main() -> None:
    """What every process runs."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))

    torch.manual_seed(0)  # the same weights and images everywhere; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    loss = nn.CrossEntropyLoss()
    whole = hessian(model, loss, (images, labels))  # what one process computes
    expected = mf.trace(whole, num_probes=10, seed=0).value

    # Tensor parallel: each process has some columns and rows, and all of the data.
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallel = parallelize_module(copy.deepcopy(model), mesh, plan)
    H = hessian(parallel, loss, (images, labels))
    density = mf.spectral_density(H, num_steps=10, num_probes=2, seed=0)
    assert abs(mf.trace(H, num_probes=10, seed=0).value - expected) < 1e-12
    if rank == 0:
        print(density)
        print("rows of this process:", H.space.rows, "of", H.shape[0])

    # FSDP2: each process has a part of every parameter, and its own part of the data.
    sharded = fully_shard(copy.deepcopy(model), mesh=mesh)
    mine = slice(10 * rank // size, 10 * (rank + 1) // size)
    H = hessian(sharded, loss, [(images[mine], labels[mine])])
    top = mf.eigsh(H, 2, seed=0)
    assert abs(mf.trace(H, num_probes=10, seed=0).value - expected) < 1e-12
    if rank == 0:
        print("largest eigenvalues", top.values)
        print("vectors: rows", tuple(top.vectors.shape), "here")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
