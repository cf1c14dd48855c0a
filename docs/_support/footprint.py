"""Model of the memory that the curvature of a network needs on each of many devices.

The formulas of ``explanation/scale.md``, compared with measurements by the tests and by
``make bench ONLY=scale``. A run is Lanczos quadrature in single precision with the Hessian of
a transformer, whose data are distributed over p devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Basis: TypeAlias = Literal["full", "half", "none", "two-pass"]
Strategy: TypeAlias = Literal["kept", "recomputed", "differences"]

VECTOR = 4  # bytes of an entry of a vector
WIDE = 8  # bytes of an entry of a sum over rows

_BLOCK = 12  # weights of a layer in width^2: 3 + 1 for attention, 4 + 4 for the perceptron
_GRAPH = 33.0  # numbers in the gradient's graph, for each token and layer, in widths
_GRAPH_SCORES = 3.0  # the same in attention scores
_FORWARD = 16.6  # numbers in the loss's graph, which recomputes the scores, in widths
_INSPECTION = 12  # vectors of the initial inspection: two probes, two copies, two matvecs
_CHECKSUM_ENTRIES = 1 << 20  # entries whose checksum is computed at a time
_PROPORTION = 128  # width over depth, and the width of a head


@dataclass(frozen=True)
class Network:
    """A transformer: ``depth`` layers of attention and a perceptron four times as wide.

    Parameters
    ----------
    depth, width, heads, sequence : its sizes, which need not be integers in a model
    vocabulary : number of different tokens, or 0 to neglect the embeddings
    itemsize : bytes of a weight and of an activation
    """

    depth: float
    width: float
    heads: float
    sequence: int
    vocabulary: int = 0
    itemsize: int = 4

    @classmethod
    def of_size(cls, parameters: float, *, sequence: int = 2048, itemsize: int = 2) -> Network:
        """The network with this number of parameters that is 128 times as wide as deep."""
        depth = (parameters / (_BLOCK * _PROPORTION**2)) ** (1 / 3)
        width = _PROPORTION * depth
        return cls(depth, width, width / _PROPORTION, sequence, itemsize=itemsize)

    @property
    def matrix_weights(self) -> float:
        """The number of weights that multiply each token."""
        return self.depth * _BLOCK * self.width**2 + self.vocabulary * self.width

    @property
    def parameters(self) -> float:
        """n: matrix weights, embeddings, biases (9 widths a layer) and normalizations (4)."""
        if not self.vocabulary:
            return self.matrix_weights
        embedded = (self.vocabulary + self.sequence) * self.width
        return self.matrix_weights + embedded + 13 * self.depth * self.width

    def graph(self, strategy: Strategy) -> float:
        """Bytes per token of the graph that a matvec differentiates."""
        widths = _FORWARD if strategy == "differences" else _GRAPH
        scores = 0.0 if strategy == "differences" else _GRAPH_SCORES * self.heads * self.sequence
        return self.itemsize * self.depth * (widths * self.width + scores)

    @property
    def gradient_flops(self) -> float:
        """Operations per token of a loss and its gradient, three times the forward pass's.

        The forward pass has two for each weight, and 4 width for each token of the sequence.
        """
        return 6 * self.matrix_weights + 12 * self.depth * self.width * self.sequence


@dataclass(frozen=True)
class Run:
    """A spectral density and the way it is computed.

    Parameters
    ----------
    tokens : tokens of the data, over all devices
    batch : tokens that pass through the network together on one device
    steps, probes : Lanczos steps of each probe, and the number of probes
    at_once : probes that run together, a divisor of ``probes``
    basis : how Lanczos vectors are stored; "two-pass" repeats the run for eigenvectors
    strategy : whether graphs are kept, recomputed, or replaced by differences of gradients
    sharded : whether every process holds only some rows of each vector
    gathered_vectors : vectors that are gathered at a time, if they are sharded
    tensor_parallel : devices that share one copy of the weights, with every layer sharded
    fully_sharded : whether all devices share one copy of the weights and gather each layer
        while they use it, as in training by FSDP: for differences of gradients, with
        activation checkpoints between layers
    """

    tokens: float
    batch: float
    steps: int = 80
    probes: int = 8
    at_once: int = 1
    basis: Basis = "full"
    strategy: Strategy = "kept"
    sharded: bool = False
    gathered_vectors: int = 1
    tensor_parallel: int = 1
    fully_sharded: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks of matvecs in the whole run."""
        passes = 2 if self.basis == "two-pass" else 1
        return passes * self.steps * math.ceil(self.probes / self.at_once)


class Memory(NamedTuple):
    """Bytes on one device at the peak."""

    weights: float
    graph: float
    basis: float
    """The stored Lanczos vectors."""
    step: float
    """The work memory of a step: other vectors, and a pass through one batch."""

    @property
    def total(self) -> float:
        """The sum of all contributions."""
        return sum(self)


def basis_vectors(run: Run) -> float:
    """The stored Lanczos vectors, in vectors of single precision."""
    return run.at_once * run.steps * {"full": 1.0, "half": 0.5}.get(run.basis, 0.0)


def recurrence_vectors(run: Run) -> int:
    """Other vectors of the recurrence: the last two blocks and a new one."""
    return (4 if run.basis == "half" else 3) * run.at_once


def matvec_vectors(run: Run, p: int) -> int:
    """Whole vectors alive in a matvec: argument, sum, columns, and the block of columns."""
    b = run.gathered_vectors if run.sharded else run.at_once
    reduced = b if p > run.tensor_parallel else 0
    temporary = {"kept": 2, "recomputed": 3, "differences": 4}[run.strategy]
    return reduced + max(4 * b, 3 * b + temporary)


def checksum_bytes(entries: float) -> float:
    """Work memory of the checksum with which processes compare a block."""
    return 4 * WIDE * min(entries, _CHECKSUM_ENTRIES)


def graphs(network: Network, run: Run, p: int) -> tuple[float, float]:
    """Bytes of the graphs kept on a device, with their gradients, and of one batch's graph."""
    local = run.tokens * run.tensor_parallel / p
    batch = min(run.batch, local)
    if run.fully_sharded:  # the inputs of all layers, and the graph of one layer
        inputs = network.itemsize * network.depth * network.width
        return inputs * batch, network.graph(run.strategy) * batch / network.depth
    token = network.graph(run.strategy) / run.tensor_parallel
    if run.strategy != "kept":
        return token * batch, token * batch
    gradients = local / batch * network.itemsize * network.parameters / run.tensor_parallel
    return token * local + gradients, token * batch


def memory(network: Network, run: Run, p: int) -> Memory:
    """The peak on each of p devices, including the inspection of the operator before the run.

    The inspection applies the operator to two vectors of its own, before there is a basis. A
    pass through a batch needs about as much again as its graph.
    """
    n = network.parameters
    shard = n / p if run.fully_sharded else n / run.tensor_parallel
    rows = n / p if run.sharded else shard
    weights = network.itemsize * (shard + (2 * n / network.depth if run.fully_sharded else 0))
    basis = VECTOR * rows * basis_vectors(run)
    graph, passing = graphs(network, run, p)
    matvec = VECTOR * shard * matvec_vectors(run, p) + passing
    inspection = VECTOR * shard * _INSPECTION + passing
    if p > run.tensor_parallel:
        compared = 6 * VECTOR * shard + checksum_bytes(2 * shard)
        inspection = max(inspection + 2 * VECTOR * shard, compared)
        if not run.sharded:
            block = shard * run.at_once
            matvec = max(matvec, 2 * VECTOR * block + checksum_bytes(block))
    step = max(VECTOR * rows * recurrence_vectors(run) + matvec, inspection - basis)
    return Memory(weights, graph, basis, step)
