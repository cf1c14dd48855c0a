"""What the curvature of a network takes on many devices: bytes kept on each of them.

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

_BLOCK = 12  # weights of a layer in width^2: 3 + 1 for attention, 4 + 4 behind it
_GRAPH = 33.0  # entries of the gradient's graph, for each token and layer, in widths
_GRAPH_SCORES = 3.0  # and in attention scores
_FORWARD = 16.6  # those of the loss's own graph, whose scores are made again
_LOOKING = 12  # vectors of a first look: two probes, copied twice, and a product of two
_MARKED = 1 << 20  # entries that are marked together
_PROPORTION = 128  # width over depth, and the width of a head


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
    at_once : probes that run together, a divisor of ``probes``
    basis : how Lanczos vectors are kept; "two-pass" runs again for eigenvectors
    products : how they are made
    sharded : whether every process holds some rows of each vector
    whole : vectors made whole at a time, where they are sharded
    split : devices that share one copy of the weights, every layer cut into as many parts
    gathered : whether all devices share one, and make a layer whole while they use it, as
        training does by FSDP: for differences of gradients, with checkpoints between layers
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
    gathered: bool = False

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


def graphs(network: Network, run: Run, p: int) -> tuple[float, float]:
    """Bytes of the graphs that are kept on a device, each with its gradient, and of one batch's."""
    share = run.tokens * run.split / p
    batch = min(run.batch, share)
    if run.gathered:  # what comes into each layer, and one layer's graph
        inputs = network.number * network.depth * network.width
        return inputs * batch, network.graph(run.products) * batch / network.depth
    token = network.graph(run.products) / run.split
    if run.products != "kept":
        return token * batch, token * batch
    gradients = share / batch * network.number * network.parameters / run.split
    return token * share + gradients, token * batch


def memory(network: Network, run: Run, p: int) -> Memory:
    """The peak on each of p devices, where the operator has been looked at before the run.

    Looking multiplies two vectors of its own, before there is a basis. A pass through a batch
    holds about as much again as its graph.
    """
    n = network.parameters
    piece = n / p if run.gathered else n / run.split
    rows = n / p if run.sharded else piece
    weights = network.number * (piece + (2 * n / network.depth if run.gathered else 0))
    basis = VECTOR * rows * stored(run)
    graph, passing = graphs(network, run, p)
    product = VECTOR * piece * multiplying(run, p) + passing
    looking = VECTOR * piece * _LOOKING + passing
    if p > run.split:
        marked = 6 * VECTOR * piece + marking(2 * piece)
        looking = max(looking + 2 * VECTOR * piece, marked)
        if not run.sharded:
            block = piece * run.at_once
            product = max(product, 2 * VECTOR * block + marking(block))
    step = max(VECTOR * rows * working(run) + product, looking - basis)
    return Memory(weights, graph, basis, step)
