"""Spectral density with sharded vectors: torchrun --nproc_per_node 2 sharded_density.py."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import matfree as mf
from matfree_torch import hessian


def main() -> None:
    """Run the example; every process calls this."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.group.WORLD
    folder = Path(
        os.environ.get("RUN_FOLDER") or tempfile.gettempdir()
    )  # a folder that all processes can access

    torch.manual_seed(0)  # the same weights and images on all ranks; a script would load them
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    images, labels = torch.randn(10, 20, dtype=torch.float64), torch.randint(4, (10,))
    local = slice(0, 7) if rank == 0 else slice(7, 10)
    loader = [(images[local], labels[local])]

    loss = nn.CrossEntropyLoss()
    H = hessian(model, loss, loader, process_group=world).sharded()
    print(f"process {rank} holds rows {H.space.rows.start} to {H.space.rows.stop}")

    density = mf.spectral_density(
        H, num_steps=30, num_probes=4, seed=0, checkpoint=folder / "density.npz"
    )
    top = mf.eigsh(H, 3, seed=0)  # top.vectors contains the rows of this process
    tensors = H.unflatten(top.vectors[:, 0])  # whole tensors by name; all processes must call it
    top.save(folder / "top")  # each process saves its rows
    dist.barrier()
    if rank == 0:
        print("largest eigenvalues", top.values)
        print("mass above 0.01", 1 - density.mass_below(0.01).value)
        print("largest entry of the first layer", float(tensors["0.weight"].abs().max()))
        print("loaded shape", mf.load(folder / "top").vectors.shape)

    single = hessian(model, loss, (images, labels))  # all data in one process
    expected = mf.spectral_density(single, num_steps=30, num_probes=4, seed=0)
    assert abs(density.moment(2).value - expected.moment(2).value) < 1e-12
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
