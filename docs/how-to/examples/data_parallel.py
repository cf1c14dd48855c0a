"""A Hessian over data that several processes share out: torchrun --nproc_per_node 2 <this>."""

import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree_torch import activation_traces, hessian


def main() -> None:
    """What every process runs."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.group.WORLD

    torch.manual_seed(0)  # the same weights and images everywhere; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    mine = slice(0, 7) if rank == 0 else slice(7, 10)  # parts need not be of one size
    loader = [(images[mine], labels[mine])]

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

    whole = hessian(model, loss, (images, labels))  # what one process with all data computes
    assert abs(mf.trace(whole, num_probes=20, seed=0).value - trace.value) < 1e-12
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
