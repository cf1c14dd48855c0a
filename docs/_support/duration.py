"""Model of the communication and the time of the curvature of a network on many devices.

The networks and runs are those of ``footprint.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from footprint import VECTOR, WIDE, Network, Run

HEADER = 10  # numbers that each process sends before a block


@dataclass(frozen=True)
class Link:
    """A connection between two devices.

    Parameters
    ----------
    bandwidth : bytes per second that a device sends
    latency : seconds until the first byte arrives
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Devices that are grouped into nodes.

    Parameters
    ----------
    name : str
    memory : bytes of a device
    bandwidth : bytes per second between its memory and its processor
    flops : operations per second in the matrix products of a network
    node : number of devices in a node
    inside, across : links between devices of one node, and between nodes
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    node: int
    inside: Link
    across: Link

    def link(self, p: int) -> Link:
        """The slowest link among p devices."""
        return self.inside if p <= self.node else self.across


class Traffic(NamedTuple):
    """The communication of collective operations."""

    payload: float
    """Bytes of the tensors that one process passes to the operations."""
    sent: float
    """Bytes that a process sends."""
    hops: float
    """Messages in sequence, each of which has the latency of the link."""

    def times(self, count: float) -> Traffic:
        """The traffic of ``count`` repetitions in sequence."""
        return Traffic(*(count * x for x in self))

    def then(self, other: Traffic) -> Traffic:
        """The traffic of this operation followed by another."""
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


class Seconds(NamedTuple):
    """The time of a run."""

    matvecs: float
    recurrence: float
    communication: float

    @property
    def total(self) -> float:
        """The sum of all contributions, without overlap."""
        return sum(self)


def all_reduce(size: float, p: int) -> Traffic:
    """An all-reduce of ``size`` bytes over p processes, in which each part is sent twice."""
    return Traffic(size, 2 * (p - 1) / p * size, 2 * math.ceil(math.log2(p)))


def all_gather(size: float, p: int) -> Traffic:
    """An all-gather with a result of ``size`` bytes, by one broadcast per process.

    A reduce-scatter of ``size`` bytes has the same traffic.
    """
    return Traffic(size, (p - 1) / p * size, p * math.ceil(math.log2(p)))


def matvec_traffic(n: float, run: Run, p: int) -> Traffic:
    """The traffic of one block of matvecs: the headers and the block."""
    size = VECTOR * n * run.at_once
    header = all_reduce(WIDE * HEADER * p, p)
    if run.fully_sharded:  # every device keeps its rows
        return header
    if not run.sharded:
        return header.then(all_reduce(size, p))
    rounds = math.ceil(run.at_once / run.gathered_vectors)
    gather_and_scatter = all_gather(size / rounds, p).times(2)
    return all_reduce(WIDE * p, p).then(header.then(gather_and_scatter).times(rounds))


def reduction_traffic(run: Run, p: int) -> Traffic:
    """The traffic of the sums over sharded rows, in all steps of one block of probes."""
    b = run.at_once
    columns = all_reduce(WIDE * b, p)  # one number per probe
    total = columns  # the norms of the start vectors
    for step in range(run.steps):
        if run.basis == "full":  # two Gram matrices per probe
            total = total.then(all_reduce(WIDE * (step + 1), p).times(2 * b))
        else:  # the plain recurrence; its second step also tests the symmetry of the operator
            total = total.then(columns.times(2 if step == 1 else 1))
        if run.basis == "half":  # all stored vectors but the last two, then these two
            stored = all_reduce(WIDE * (step - 1), p).times(2 * b) if step > 1 else columns
            total = total.then(stored).then(columns.times(2))
        total = total.then(columns)  # the new norms
    return total


def run_traffic(n: float, run: Run, p: int) -> Traffic:
    """The traffic of the vectors in the whole run."""
    total = matvec_traffic(n, run, p).times(run.blocks)
    if not run.sharded:
        return total
    total = total.then(all_reduce(VECTOR, p))  # the magnitude of the first block
    return total.then(reduction_traffic(run, p).times(run.blocks / run.steps))


def weights_traffic(network: Network, run: Run, p: int) -> Traffic:
    """The traffic of a block of matvecs that is due to sharded weights.

    With tensor parallelism a gradient reduces activations four times per layer, and a matvec
    twice as often. If weights are fully sharded, a gradient gathers all weights twice and
    reduces the gradients once.
    """
    if run.fully_sharded:
        size = network.itemsize * network.parameters
        sent = 3 * (p - 1) / p * size
        hops = 3 * network.depth * math.ceil(math.log2(p))
        return Traffic(3 * size, sent, hops).times(2 * run.at_once)
    if run.tensor_parallel == 1:
        return Traffic(0.0, 0.0, 0.0)
    size = network.itemsize * network.width * run.tokens * run.tensor_parallel / p
    return all_reduce(size, run.tensor_parallel).times(8 * network.depth * run.at_once)


def matvec_flops(network: Network, run: Run) -> float:
    """Operations of one block of matvecs over all data."""
    gradients = 2.0 * run.at_once
    if run.strategy == "recomputed":
        gradients += 1  # one recomputed graph serves the whole block
    if run.fully_sharded:
        gradients *= 4 / 3  # activation checkpoints repeat the forward pass
    return gradients * network.gradient_flops * run.tokens


def recurrence_bytes(run: Run) -> float:
    """Bytes between memory and processor per row of a vector, over all steps of one block.

    A step reads a stored vector four times. Two of these passes convert it to double precision,
    which writes and reads it once more; a vector in 16 bits is converted in all four.
    """
    b, m = run.at_once, run.steps
    converted = 2 * WIDE
    plain = 12 * VECTOR * m  # the plain recurrence
    reads = m * (m + 1) / 2
    if run.basis == "full":
        return b * (plain + reads * (2 * (VECTOR + converted) + 2 * VECTOR))
    if run.basis == "half":
        half = VECTOR // 2
        return b * (plain + reads * (2 * (half + converted) + 2 * (half + 2 * VECTOR)))
    return b * plain


def seconds(network: Network, run: Run, cluster: Cluster, p: int) -> Seconds:
    """The time of the whole run on p devices, without the preparation of the operator."""
    n = network.parameters
    groups = p // run.tensor_parallel
    matvecs = matvec_flops(network, run) / (p * cluster.flops)
    rows = n / p if run.sharded or run.fully_sharded else n / run.tensor_parallel
    rounds = run.blocks / run.steps
    moved = rounds * rows * recurrence_bytes(run)
    sent = run_traffic(n / run.tensor_parallel, run, groups)
    link = cluster.link(p)
    weights_link = cluster.link(p if run.fully_sharded else run.tensor_parallel)
    weights = weights_traffic(network, run, p).times(run.blocks)
    communication = sent.sent / link.bandwidth + sent.hops * link.latency
    communication += weights.sent / weights_link.bandwidth + weights.hops * weights_link.latency
    return Seconds(run.blocks * matvecs, moved / cluster.bandwidth, communication)
