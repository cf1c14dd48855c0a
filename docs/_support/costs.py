"""What the curvature of a network takes on many devices: bytes kept, bytes sent, seconds.

The formulas of ``explanation/scale.md``, held against real processes by the tests and by
``make bench ONLY=scale``. A run is Lanczos from random vectors in single precision, with
products of a transformer's Hessian over data that p devices share out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Basis: TypeAlias = Literal["full", "half", "none", "two-pass"]
Products: TypeAlias = Literal["kept", "recomputed", "differences"]

VECTOR = 4  # bytes of an entry of a vector
WIDE = 8  # bytes of an entry of a sum over rows
HEADER = 10  # numbers of each process before a block

_BLOCK = 12  # weights of a layer in width^2: 3 + 1 for attention, 4 + 4 behind it
_GRAPH = 33.0  # entries of the gradient's graph, for each token and layer, in widths
_GRAPH_SCORES = 3.0  # and in attention scores
_FORWARD = 16.6  # those of the loss's own graph, whose scores are made again
_LOOKING = 12  # vectors of a first look: two probes, copied twice, and a product of two
_MARKED = 1 << 20  # entries that are marked together
_PROPORTION = 128  # width over depth, and the width of a head


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


@dataclass(frozen=True)
class Network:
    """A transformer: ``depth`` layers of attention and a perceptron four times as wide.

    Parameters
    ----------
    depth, width, heads, sequence : its sizes; not whole where it is one on paper
    vocabulary : tokens that it tells apart, 0 where embeddings do not count
    number : bytes of a weight and of an activation
    """

    depth: float
    width: float
    heads: float
    sequence: int
    vocabulary: int = 0
    number: int = 4

    @classmethod
    def of_size(cls, parameters: float, *, sequence: int = 2048, number: int = 2) -> Network:
        """The one with so many weights whose layers are 128 times as wide as it is deep."""
        depth = (parameters / (_BLOCK * _PROPORTION**2)) ** (1 / 3)
        width = _PROPORTION * depth
        return cls(depth, width, width / _PROPORTION, sequence, number=number)

    @property
    def multiplied(self) -> float:
        """Weights that each token is multiplied by."""
        return self.depth * _BLOCK * self.width**2 + self.vocabulary * self.width

    @property
    def parameters(self) -> float:
        """n: these, the embeddings, the biases (9 widths a layer) and normalisations (4)."""
        if not self.vocabulary:
            return self.multiplied
        embedded = (self.vocabulary + self.sequence) * self.width
        return self.multiplied + embedded + 13 * self.depth * self.width

    def graph(self, products: Products) -> float:
        """Bytes that the graph behind a product holds for each token."""
        widths = _FORWARD if products == "differences" else _GRAPH
        scores = 0.0 if products == "differences" else _GRAPH_SCORES * self.heads * self.sequence
        return self.number * self.depth * (widths * self.width + scores)

    @property
    def gradient_flops(self) -> float:
        """Operations of a loss and its gradient for each token: three times the forward pass's.

        Which are two for each weight, and 4 width for each other token of the sequence.
        """
        return 6 * self.multiplied + 12 * self.depth * self.width * self.sequence


@dataclass(frozen=True)
class Run:
    """A spectral density, and how it is computed.

    Parameters
    ----------
    tokens : of the data, over all devices
    batch : tokens that go through the network together, on one device
    steps, probes : products with each probe, and how many of these
    at_once : probes that run together
    basis : how Lanczos vectors are kept; "two-pass" runs again for eigenvectors
    products : how they are made
    sharded : whether every process holds some rows of each vector
    whole : vectors made whole at a time, where they are sharded
    split : devices that share one copy of the weights
    """

    tokens: float
    batch: float
    steps: int = 80
    probes: int = 8
    at_once: int = 1
    basis: Basis = "full"
    products: Products = "kept"
    sharded: bool = False
    whole: int = 1
    split: int = 1

    @property
    def blocks(self) -> int:
        """Block products of the whole run."""
        passes = 2 if self.basis == "two-pass" else 1
        return passes * self.steps * math.ceil(self.probes / self.at_once)


class Memory(NamedTuple):
    """Bytes on one device at the peak."""

    weights: float
    graph: float
    basis: float
    """Lanczos vectors that are kept."""
    step: float
    """What a step works with: vectors beside the basis, and a pass through one batch."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


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
        """This and another."""
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


def stored(run: Run) -> float:
    """Lanczos vectors that are kept, in vectors of single precision."""
    return run.at_once * run.steps * {"full": 1.0, "half": 0.5}.get(run.basis, 0.0)


def working(run: Run) -> int:
    """Vectors of the recurrence beside them: the last two blocks and a new one."""
    return (4 if run.basis == "half" else 3) * run.at_once


def multiplying(run: Run, p: int) -> int:
    """Whole vectors alive in a product: argument, sum, columns, and the block joined of them."""
    b = run.whole if run.sharded else run.at_once
    shared = b if p > run.split else 0
    apart = {"kept": 2, "recomputed": 3, "differences": 4}[run.products]
    return shared + max(4 * b, 3 * b + apart)


def marking(entries: float) -> float:
    """Bytes to mark a block by, which all processes must have the same: part by part."""
    return 4 * WIDE * min(entries, _MARKED)


def memory(network: Network, run: Run, p: int) -> Memory:
    """The peak on each of p devices, where the operator has been looked at before the run.

    Looking multiplies two vectors of its own, before there is a basis. A pass through a batch
    holds about as much again as its graph.
    """
    piece = network.parameters / run.split
    rows = network.parameters / p if run.sharded else piece
    share = run.tokens * run.split / p
    held = share if run.products == "kept" else min(run.batch, share)
    basis = VECTOR * rows * stored(run)
    passing = network.graph(run.products) * min(run.batch, share) / run.split
    product = VECTOR * piece * multiplying(run, p) + passing
    looking = VECTOR * piece * _LOOKING + passing
    if p > run.split:
        block = piece * run.at_once
        product = max(product, 2 * VECTOR * block + marking(block))
        looking = max(looking + 2 * VECTOR * piece, 8 * VECTOR * piece + marking(2 * piece))
    return Memory(
        weights=network.number * piece,
        graph=network.graph(run.products) * held / run.split,
        basis=basis,
        step=max(VECTOR * rows * working(run) + product, looking - basis),
    )


def all_reduce(size: float, p: int) -> Traffic:
    """A sum of ``size`` bytes over p processes, known to all: each part goes round twice."""
    return Traffic(size, 2 * (p - 1) / p * size, 2 * math.ceil(math.log2(p)))


def all_gather(size: float, p: int) -> Traffic:
    """Parts joined to ``size`` bytes; and a sum of which each keeps its part, the other way."""
    return Traffic(size, (p - 1) / p * size, math.ceil(math.log2(p)))


def product_traffic(n: float, columns: int, p: int, *, sharded: bool = False) -> Traffic:
    """What one block product sends: the header, and the block."""
    header = all_reduce(WIDE * HEADER * p, p)
    size = VECTOR * n * columns
    if not sharded:
        return header.then(all_reduce(size, p))
    return header.then(all_gather(size, p).times(2))


def sums_traffic(run: Run, p: int) -> Traffic:
    """What the sums over rows of all steps of one block send, where vectors are sharded."""
    b, m = run.at_once, run.steps
    total = all_reduce(WIDE * b, p)  # the lengths of the start vectors
    for step in range(m):
        if run.basis == "full":  # two Gram matrices for each probe
            total = total.then(all_reduce(WIDE * (step + 1), p).times(2 * b))
        elif run.basis == "half":
            kept = max(0, step - 1)
            total = total.then(all_reduce(WIDE * kept, p).times(2 * b if kept else 0))
            total = total.then(all_reduce(WIDE * b, p).times(3))
        else:
            total = total.then(all_reduce(WIDE * b, p))
        total = total.then(all_reduce(WIDE * b, p))  # the new lengths
    return total


def split_traffic(network: Network, run: Run, p: int) -> Traffic:
    """What a product sends where weights are split: activations, four times a layer and pass.

    A gradient adds activations up four times a layer, and a product twice as often.
    """
    if run.split == 1:
        return Traffic(0.0, 0.0, 0.0)
    size = network.number * network.width * run.tokens * run.split / p
    return all_reduce(size, run.split).times(8 * network.depth * run.at_once)


def product_flops(network: Network, run: Run) -> float:
    """Operations of one block product over all data."""
    gradients = 2.0 * run.at_once
    if run.products == "recomputed":
        gradients += 1  # shared by the block
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
    rows = n / p if run.sharded else n / run.split
    rounds = run.blocks / run.steps
    moved = rounds * rows * recurrence_bytes(run)
    sends = product_traffic(n / run.split, run.at_once, groups, sharded=run.sharded)
    sent = sends.times(run.blocks)
    if run.sharded:
        sent = sent.then(sums_traffic(run, p).times(rounds))
    link, within = cluster.link(p), cluster.link(run.split)
    split = split_traffic(network, run, p).times(run.blocks)
    waiting = sent.sent / link.bandwidth + sent.hops * link.latency
    waiting += split.sent / within.bandwidth + split.hops * within.latency
    return Seconds(run.blocks * products, moved / cluster.bandwidth, waiting)
