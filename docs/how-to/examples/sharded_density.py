"""A spectral density whose vectors are cut: torchrun --nproc_per_node 2 <this>."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree_torch import hessian


def main() -> None:
    """What every process runs."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.group.WORLD
    folder = Path(os.environ.get("RUN_FOLDER") or tempfile.gettempdir())  # all processes see it

    torch.manual_seed(0)  # the same weights and images everywhere; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    mine = slice(0, 7) if rank == 0 else slice(7, 10)
    loader = [(images[mine], labels[mine])]

    loss = nn.CrossEntropyLoss()
    H = hessian(model, loss, loader, process_group=world).sharded()
    print(f"process {rank} holds rows {H.space.rows.start} to {H.space.rows.stop}")

    density = mf.spectral_density(
        H, num_steps=30, num_probes=4, seed=0, checkpoint=folder / "density.npz"
    )
    top = mf.eigsh(H, 3, seed=0)  # top.vectors has this process's rows
    tensors = H.unflatten(top.vectors[:, 0])  # whole, by name; all processes call it
    top.save(folder / "top")  # each process its rows
    dist.barrier()
    if rank == 0:
        print("largest eigenvalues", top.values)
        print("mass above 0.01", 1 - density.mass_below(0.01).value)
        print("largest entry of the first layer", float(tensors["0.weight"].abs().max()))
        print("read again", mf.load(folder / "top").vectors.shape)

    whole = hessian(model, loss, (images, labels))  # what one process with all data computes
    expected = mf.spectral_density(whole, num_steps=30, num_probes=4, seed=0)
    assert abs(density.moment(2).value - expected.moment(2).value) < 1e-12
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
