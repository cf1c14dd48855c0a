"""Hessian of a network with sharded parameters: torchrun --nproc_per_node 2 tensor_parallel.py."""

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
    """Run the example; every process calls this."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))

    torch.manual_seed(0)  # the same weights and images on all ranks; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    loss = nn.CrossEntropyLoss()
    single = hessian(model, loss, (images, labels))  # one process, for comparison
    expected = mf.trace(single, num_probes=10, seed=0).value

    # Tensor parallelism: each process has some columns and rows of the weights, and all data.
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallel = parallelize_module(copy.deepcopy(model), mesh, plan)
    H = hessian(parallel, loss, (images, labels))
    density = mf.spectral_density(H, num_steps=10, num_probes=2, seed=0)
    assert abs(mf.trace(H, num_probes=10, seed=0).value - expected) < 1e-12
    if rank == 0:
        print(density)
        print("rows of this process:", H.space.rows, "of", H.shape[0])

    # FSDP2: each process has a shard of every parameter, and its own share of the data.
    sharded = fully_shard(copy.deepcopy(model), mesh=mesh)
    local = slice(10 * rank // size, 10 * (rank + 1) // size)
    H = hessian(sharded, loss, [(images[local], labels[local])])
    top = mf.eigsh(H, 2, seed=0)
    assert abs(mf.trace(H, num_probes=10, seed=0).value - expected) < 1e-12
    if rank == 0:
        print("largest eigenvalues", top.values)
        print("local shape of the vectors:", tuple(top.vectors.shape))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
