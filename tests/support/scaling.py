"""What runs really take, for the formulas of ``docs/_support``: bytes handed over, sent and kept.

Also one process of several: ``python scaling.py RANK SIZE FOLDER CASES``.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

import matfree as mf
from matfree_torch import hessian

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_support"))
import duration  # noqa: F401  # for whoever holds runs against both
import footprint

_SENT = 200  # where tcp_info of Linux holds tcpi_bytes_sent
_COLLECTIVES = {  # the argument whose bytes count: what one process hands over, whole
    "all_reduce": 0,
    "broadcast": 0,
    "reduce": 0,
    "all_gather_into_tensor": 0,
    "reduce_scatter_tensor": 1,
}


class Layer(nn.Module):
    """Attention and a perceptron, each behind a normalisation and added to what comes in."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, sequence, width = x.shape
        parts = self.mixed(self.norms[0](x)).chunk(3, -1)
        q, k, v = (y.reshape(batch, sequence, self.heads, -1).transpose(1, 2) for y in parts)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, sequence, width))
        return x + self.down(gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Predicts the next of some tokens from those before it: a ``footprint.Network``."""

    def __init__(self, sizes):
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Embedding(sizes.sequence, sizes.width)
        self.layers = nn.Sequential(*(Layer(sizes.width, sizes.heads) for _ in range(sizes.depth)))
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.layers(x)).flatten(0, 1)


def loss(outputs, targets):
    return cross_entropy(outputs, targets.flatten())


def problem(sizes, samples, seed=0):
    """A network of these sizes and some sequences: the same network whatever the seed."""
    torch.manual_seed(0)
    network = Transformer(sizes)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(sizes.vocabulary, (samples, sizes.sequence + 1), generator=generator)
    return network, (tokens[:, :-1], tokens[:, 1:])


@contextlib.contextmanager
def recorded():
    """The collectives of torch.distributed that are called inside: [name, bytes] of each."""
    calls, originals = [], {name: getattr(dist, name) for name in _COLLECTIVES}

    def recording(name):
        def call(*arguments, **options):
            x = arguments[_COLLECTIVES[name]]
            calls.append([name, x.numel() * x.element_size()])
            return originals[name](*arguments, **options)

        return call

    try:
        for name in originals:
            setattr(dist, name, recording(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def bytes_sent():
    """What this process has sent on all of its connections, by the system's own count."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or no connection
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(number))) as connection:
                    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
                    total += struct.unpack_from("Q", state, _SENT)[0]
    return total


def peak(function):
    """The most bytes that torch has allocated at once while a function runs, beyond before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def density(H, run):
    """The run on an operator."""
    return mf.spectral_density(
        H.sharded(block_size=run.gathered_vectors) if run.sharded else H,
        num_steps=run.steps,
        num_probes=run.probes,
        block_size=run.at_once,
        reorthogonalize="none" if run.basis == "two-pass" else run.basis,
        seed=0,
    )


def operator(sizes, run, rank, size):
    """The Hessian over this process's share of the data; one batch where ``run`` holds one."""
    samples = int(run.tokens) // sizes.sequence // size
    network, (x, y) = problem(sizes, samples, seed=rank)
    each = max(1, int(run.batch) // sizes.sequence)
    data = [(x[i : i + each], y[i : i + each]) for i in range(0, samples, each)]
    strategies = {"kept": "auto", "recomputed": "recompute", "differences": "finite-difference"}
    group = dist.group.WORLD if size > 1 else None
    return hessian(
        network,
        loss,
        data[0] if len(data) == 1 else data,
        strategy=strategies[run.strategy],
        process_group=group,
    )


def taken(sizes, run, rank, size):
    """What the run took in this process; every process of the group calls it."""
    H = operator(sizes, run, rank, size)
    H.inspect()  # once before: what a run does, not what precedes it
    found = {"parameters": H.shape[0]}
    before = bytes_sent()
    with recorded() as calls:
        density(H, run)
    found |= {"calls": calls, "sent": bytes_sent() - before}

    def from_the_beginning():
        again = operator(sizes, run, rank, size)
        again.inspect()
        density(again, run)

    del H
    return found | {"peak": peak(from_the_beginning)}


def work(rank, size, folder, cases):
    """One process: every case, and a file with what it took."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if size > 1:
        meeting = f"file://{folder / f'meeting-{size}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    found = [taken(footprint.Network(**s), footprint.Run(**r), rank, size) for s, r in cases]
    (folder / f"{size}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def processes(script, size, folder, *arguments):
    """Run a script as so many processes, and read what each of them left."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(size), str(folder), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    if any(run.returncode for run in runs):
        raise RuntimeError("\n".join(outputs))
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
