"""Hessian over data distributed over processes: torchrun --nproc_per_node 2 data_parallel.py."""

import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree_torch import activation_traces, hessian


def main() -> None:
    """Run the example; every process calls this."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.group.WORLD

    torch.manual_seed(0)  # the same weights and images on all ranks; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    local = slice(0, 7) if rank == 0 else slice(7, 10)  # the sizes may differ
    loader = [(images[local], labels[local])]

    loss = nn.CrossEntropyLoss()
    H = hessian(model, loss, loader, process_group=world)
    top = mf.eigsh(H, 3, seed=0)
    trace = mf.trace(H, num_probes=20, seed=0)
    layers = activation_traces(model, loss, loader, modules=nn.Linear, process_group=world)
    if rank == 0:
        print("largest eigenvalues", top.values)
        print("trace", trace.value, "+-", trace.stderr)
        for name, estimate in layers.items():
            print(f"activation trace of layer {name}", estimate.value)

    single = hessian(model, loss, (images, labels))  # all data in one process
    assert abs(mf.trace(single, num_probes=20, seed=0).value - trace.value) < 1e-12
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
