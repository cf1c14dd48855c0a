"""What the curvature of a network takes on many devices: bytes sent, and seconds.

Beside ``footprint.py``, whose networks and runs these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from footprint import VECTOR, WIDE, Network, Run

HEADER = 10  # numbers of each process before a block


@dataclass(frozen=True)
class Link:
    """What carries bytes from a device to the next.

    Parameters
    ----------
    bandwidth : bytes a second that a device sends
    latency : seconds before the first one arrives
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes.

    Parameters
    ----------
    name : str
    memory : bytes of a device
    bandwidth : bytes a second between its memory and its processor
    flops : operations a second in products of a network
    node : devices that ``inside`` links
    inside, across : links between devices of a node, and between nodes
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
    """What sums over processes take."""

    payload: float
    """Bytes of the tensors that are summed or gathered, as one process hands them over."""
    sent: float
    """Bytes that a process sends."""
    hops: float
    """Messages that wait for each other."""

    def times(self, count: float) -> Traffic:
        """So many of them, one after the other."""
        return Traffic(*(count * x for x in self))

    def then(self, other: Traffic) -> Traffic:
        """It, and another after it."""
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


class Seconds(NamedTuple):
    """The time of a run."""

    products: float
    recurrence: float
    communication: float

    @property
    def total(self) -> float:
        """One after the other: nothing is overlapped."""
        return sum(self)


def all_reduce(size: float, p: int) -> Traffic:
    """A sum of ``size`` bytes over p processes, known to all: each part goes round twice."""
    return Traffic(size, 2 * (p - 1) / p * size, 2 * math.ceil(math.log2(p)))


def all_gather(size: float, p: int) -> Traffic:
    """Parts joined to ``size`` bytes, one process's after the other's.

    And as much the other way, for a sum of which each process keeps its part.
    """
    return Traffic(size, (p - 1) / p * size, p * math.ceil(math.log2(p)))


def product_traffic(n: float, run: Run, p: int) -> Traffic:
    """Bytes of one block product: the headers, and the block."""
    size = VECTOR * n * run.at_once
    header = all_reduce(WIDE * HEADER * p, p)
    if run.gathered:  # every device keeps its rows
        return header
    if not run.sharded:
        return header.then(all_reduce(size, p))
    rounds = math.ceil(run.at_once / run.whole)
    both = all_gather(size / rounds, p).times(2)
    return all_reduce(WIDE * p, p).then(header.then(both).times(rounds))


def sums_traffic(run: Run, p: int) -> Traffic:
    """Bytes of the sums over rows of all steps of one block, where vectors are sharded."""
    b = run.at_once
    columns = all_reduce(WIDE * b, p)  # a number for each probe
    total = columns  # the lengths of the start vectors
    for step in range(run.steps):
        if run.basis == "full":  # two Gram matrices for each probe
            total = total.then(all_reduce(WIDE * (step + 1), p).times(2 * b))
        else:  # the bare recurrence; its second step looks whether the operator is symmetric
            total = total.then(columns.times(2 if step == 1 else 1))
        if run.basis == "half":  # all but the last two vectors, and these in full precision
            kept = all_reduce(WIDE * (step - 1), p).times(2 * b) if step > 1 else columns
            total = total.then(kept).then(columns.times(2))
        total = total.then(columns)  # the new lengths
    return total


def run_traffic(n: float, run: Run, p: int) -> Traffic:
    """All that a run sends for its vectors."""
    total = product_traffic(n, run, p).times(run.blocks)
    if not run.sharded:
        return total
    agreed = all_reduce(2 * WIDE * p, p)  # who holds which rows
    return agreed.then(total).then(sums_traffic(run, p).times(run.blocks / run.steps))


def weights_traffic(network: Network, run: Run, p: int) -> Traffic:
    """What a product sends because no device has all weights.

    Split, a gradient adds activations up four times a layer and a product twice as often.
    Gathered, a gradient takes all weights twice, and sums gradients once.
    """
    if run.gathered:
        size = network.number * network.parameters
        sent = 3 * (p - 1) / p * size
        hops = 3 * network.depth * math.ceil(math.log2(p))
        return Traffic(3 * size, sent, hops).times(2 * run.at_once)
    if run.split == 1:
        return Traffic(0.0, 0.0, 0.0)
    size = network.number * network.width * run.tokens * run.split / p
    return all_reduce(size, run.split).times(8 * network.depth * run.at_once)


def product_flops(network: Network, run: Run) -> float:
    """Operations of one block product over all data."""
    gradients = 2.0 * run.at_once
    if run.products == "recomputed":
        gradients += 1  # shared by the block
    if run.gathered:
        gradients *= 4 / 3  # checkpoints: the forward pass is made again
    return gradients * network.gradient_flops * run.tokens


def recurrence_bytes(run: Run) -> float:
    """Bytes between memory and processor for each row of a vector, over all steps of one block.

    A stored vector is read four times a step. Twice it is converted to double precision, which
    writes and reads it once more; in 16 bits it is converted four times.
    """
    b, m = run.at_once, run.steps
    converted = 2 * WIDE
    plain = 12 * VECTOR * m  # the bare recurrence
    reads = m * (m + 1) / 2
    if run.basis == "full":
        return b * (plain + reads * (2 * (VECTOR + converted) + 2 * VECTOR))
    if run.basis == "half":
        half = VECTOR // 2
        return b * (plain + reads * (2 * (half + converted) + 2 * (half + 2 * VECTOR)))
    return b * plain


def seconds(network: Network, run: Run, cluster: Cluster, p: int) -> Seconds:
    """The time of the whole run on p devices, without what comes before the first product."""
    n = network.parameters
    groups = p // run.split
    products = product_flops(network, run) / (p * cluster.flops)
    rows = n / p if run.sharded or run.gathered else n / run.split
    rounds = run.blocks / run.steps
    moved = rounds * rows * recurrence_bytes(run)
    sent = run_traffic(n / run.split, run, groups)
    link, within = cluster.link(p), cluster.link(p if run.gathered else run.split)
    weights = weights_traffic(network, run, p).times(run.blocks)
    waiting = sent.sent / link.bandwidth + sent.hops * link.latency
    waiting += weights.sent / within.bandwidth + weights.hops * within.latency
    return Seconds(run.blocks * products, moved / cluster.bandwidth, waiting)
