"""Rows of vectors, and the shards of parameters that they are made of.

Vectors are the whole network's parameters laid end to end, whatever holds them: each process
has a contiguous range of rows. A process also holds a shard of every parameter. A product starts
by sending rows where their shards are, and ends by sending them back; both are one exchange in
which each entry travels once to each process that needs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor

from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import Mesh, is_dtensor, local_tensor


class Region(NamedTuple):
    """The part of a tensor that a process holds: a box, whose entries are numbered in order."""

    shape: tuple[int, ...]
    sides: tuple[range, ...]

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(map(len, self.sides))

    def below(self, entry: int) -> int:
        """How many of its entries come before an entry of the flattened tensor."""
        if entry >= math.prod(self.shape):
            return self.size
        count, left, stride, inner = 0, entry, math.prod(self.shape), self.size
        for length, side in zip(self.shape, self.sides, strict=True):
            stride, inner = stride // length, inner // max(1, len(side))
            place, left = divmod(left, stride)
            count += min(max(place - side.start, 0), len(side)) * inner
            if place not in side:
                break
        return count

    def entries(self, numbers: range, device: torch.device) -> slice | Tensor:
        """Where some of its entries lie in the flattened tensor; a slice, if side by side."""
        strides = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        cut = next((d for d, side in enumerate(self.sides) if len(side) != 1), len(self.sides))
        later = zip(self.sides[cut + 1 :], self.shape[cut + 1 :], strict=True)
        if all(len(side) == length for side, length in later):
            pairs = zip(self.sides, strides, strict=True)
            begin = sum(side.start * stride for side, stride in pairs)
            return slice(begin + numbers.start, begin + numbers.stop)
        left = torch.arange(numbers.start, numbers.stop, device=device)
        found = torch.zeros_like(left)
        for side, stride in zip(reversed(self.sides), reversed(strides), strict=True):
            found += (left % len(side) + side.start) * stride
            left = left // len(side)
        return found


class Segment(NamedTuple):
    """Entries of a tensor that are in one process's rows and in one process's shard."""

    region: Region
    start: int
    """Where the tensor begins among the rows of the process that holds these."""
    numbers: range
    """Their numbers in the region."""
    offset: int
    """Where the region begins in the shard."""


@final
class Redistribution:
    """Rows of vectors to shards of parameters, and back.

    Parameters
    ----------
    processes : Processes
        Those of the mesh.
    tensors : sequence of Tensor
        The parameters, laid end to end; those that are not cut up are whole in every process.
    held : sequence of range
        The rows of each process.

    Raises
    ------
    ValueError
        A parameter is cut up in another way than into contiguous ranges of its dimensions.
    """

    def __init__(
        self, communicator: Communicator, tensors: Sequence[Tensor], row_ranges: Sequence[range]
    ) -> None:
        self.communicator, self.row_ranges = communicator, tuple(row_ranges)
        self.rows = row_ranges[communicator.rank]
        self.unsharded = not any(map(is_dtensor, tensors))
        """Whether all tensors are whole in every process."""
        me, ranks = communicator.rank, range(communicator.size)
        members = dist.get_process_group_ranks(communicator.group)
        regions = [[_region(p, member) for member in members] for p in tensors]
        for p, by_rank in zip(tensors, regions, strict=True):
            if tuple(local_tensor(p).shape) != tuple(map(len, by_rank[me].sides)):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is cut up as {_placements(p)}, which "
                    "is not even ranges of its dimensions; distribute it anew, by Shard(0) for one."
                )
        pieces = partial(_pieces, regions, row_ranges)
        self._out = [pieces(me, rank, None) for rank in ranks]
        self._in = [pieces(rank, me, None) for rank in ranks]
        self._back_out = [pieces(rank, me, me) for rank in ranks]
        self._back_in = [pieces(me, rank, rank) for rank in ranks]

    def to_shards(self, X: Tensor) -> Tensor:
        """The rows of all processes, (rows, k) in each, as this process's shards one by one."""
        parts = [X[self._places(piece)] for pieces in self._out for piece in pieces]
        return self._sent(parts, X, self._out, self._in)

    def to_rows(self, Y: Tensor) -> Tensor:
        """The shards of all processes as the rows of this one."""
        parts = [
            Y[piece.offset + piece.numbers.start : piece.offset + piece.numbers.stop]
            for pieces in self._back_out
            for piece in pieces
        ]
        received = self._sent(parts, Y, self._back_out, self._back_in)
        X = Y.new_empty((len(self.rows), Y.shape[1]))
        begin = 0
        for piece in itertools.chain.from_iterable(self._back_in):
            end = begin + len(piece.numbers)
            X[self._places(piece)] = received[begin:end]
            begin = end
        return X

    def _places(self, piece: Segment) -> slice | Tensor:
        found = piece.region.entries(piece.numbers, self.communicator.device)
        if isinstance(found, slice):
            return slice(found.start + piece.start, found.stop + piece.start)
        return found + piece.start

    def _sent(
        self, parts: list[Tensor], like: Tensor, out: list[list[Segment]], into: list[list[Segment]]
    ) -> Tensor:
        ours = torch.cat(parts) if parts else like.new_empty((0, like.shape[1]))
        sizes = [sum(len(piece.numbers) for piece in pieces) for pieces in into]
        sent = [sum(len(piece.numbers) for piece in pieces) for pieces in out]
        return self.communicator.all_to_all(ours, sent, sizes)


def even_rows(n: int, communicator: int) -> list[range]:
    """About as many rows for each process."""
    edges = [n * rank // communicator for rank in range(communicator + 1)]
    return [range(*pair) for pair in itertools.pairwise(edges)]


def _pieces(
    regions: list[list[Region]],
    row_ranges: Sequence[range],
    owner: int,
    holder: int,
    source: int | None,
) -> list[Segment]:
    """What of a process's rows is in a process's shards.

    With a source: what comes back from there. Of several processes that hold the same, the owner
    itself is asked first.
    """
    found, start, offset = [], 0, 0
    for by_rank in regions:
        region = by_rank[holder]
        size = math.prod(region.shape)
        begin = min(max(row_ranges[owner].start - start, 0), size)
        end = min(max(row_ranges[owner].stop - start, 0), size)
        numbers = range(region.below(begin), region.below(end))
        if numbers and (source is None or source == _asked(by_rank, holder, owner)):
            found.append(Segment(region, start - row_ranges[owner].start, numbers, offset))
        start, offset = start + size, offset + region.size
    return found


def _asked(by_rank: list[Region], holder: int, owner: int) -> int:
    same = [rank for rank, region in enumerate(by_rank) if region == by_rank[holder]]
    return owner if owner in same else same[owner % len(same)]


def _region(p: Tensor, member: int) -> Region:
    """What of a tensor a process of the mesh holds."""
    sides = [range(length) for length in p.shape]
    if is_dtensor(p):
        mesh: Mesh = p.device_mesh  # type: ignore[attr-defined]
        (coordinates,) = (mesh.mesh == member).nonzero().tolist()
        counts = mesh.mesh.shape
        for place, number, count in zip(_placements(p), coordinates, counts, strict=True):
            if place.is_shard():
                side = sides[place.dim]
                step = -(-len(side) // count)
                begin = min(side.start + number * step, side.stop)
                sides[place.dim] = range(begin, min(begin + step, side.stop))
    return Region(tuple(p.shape), tuple(sides))


def _placements(p: Tensor) -> Any:
    return p.placements  # type: ignore[attr-defined]
