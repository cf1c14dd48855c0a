"""Redistribution between the rows of vectors and the shards of parameters.

A vector holds the parameters of the whole network, flattened and concatenated, independently of
how the parameters are sharded, and every process holds a contiguous range of its rows. A process
also holds one shard of every parameter. A matvec begins by sending rows to the processes whose
shards contain them, and ends by sending them back. Both are a single all-to-all, in which each
entry is sent once to each process that needs it.
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
    """The box of a tensor that a process holds; its entries are indexed in row-major order."""

    shape: tuple[int, ...]
    """The shape of the full tensor."""
    sides: tuple[range, ...]
    """The indices of the box along each dimension."""

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(map(len, self.sides))

    def below(self, entry: int) -> int:
        """Count the entries of the region that precede ``entry`` in the flattened full tensor."""
        if entry >= math.prod(self.shape):
            return self.size
        count, remainder, stride, inner = 0, entry, math.prod(self.shape), self.size
        for length, side in zip(self.shape, self.sides, strict=True):
            stride, inner = stride // length, inner // max(1, len(side))
            index, remainder = divmod(remainder, stride)
            # All slices of the box with a smaller index along this dimension precede the entry.
            count += min(max(index - side.start, 0), len(side)) * inner
            if index not in side:
                break
        return count

    def entries(self, indices: range, device: torch.device) -> slice | Tensor:
        """The positions of the entries with these indices in the flattened full tensor.

        They are returned as a slice if they are contiguous.
        """
        strides = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        # A box is contiguous if all dimensions after the first one longer than 1 are complete.
        first = next((d for d, side in enumerate(self.sides) if len(side) != 1), len(self.sides))
        later = zip(self.sides[first + 1 :], self.shape[first + 1 :], strict=True)
        if all(len(side) == length for side, length in later):
            pairs = zip(self.sides, strides, strict=True)
            begin = sum(side.start * stride for side, stride in pairs)
            return slice(begin + indices.start, begin + indices.stop)
        remainder = torch.arange(indices.start, indices.stop, device=device)
        positions = torch.zeros_like(remainder)
        for side, stride in zip(reversed(self.sides), reversed(strides), strict=True):
            positions += (remainder % len(side) + side.start) * stride
            remainder = remainder // len(side)
        return positions


class Segment(NamedTuple):
    """Entries of one tensor that belong to the rows of one process and the shards of another."""

    region: Region
    start: int
    """The first entry of the tensor, relative to the rows of the process that holds them."""
    indices: range
    """The indices of the entries within the region."""
    offset: int
    """The first entry of the region among the concatenated shards of its process."""


@final
class Redistribution:
    """The exchange between rows of vectors and shards of parameters, in both directions.

    Parameters
    ----------
    communicator : Communicator
        The processes of the mesh.
    tensors : sequence of Tensor
        The parameters in the order of the vector. Every process holds those that are not DTensors
        in full.
    row_ranges : sequence of range
        The rows of each process, by rank.

    Raises
    ------
    ValueError
        The shards of a parameter are not contiguous ranges of its dimensions.
    """

    def __init__(
        self, communicator: Communicator, tensors: Sequence[Tensor], row_ranges: Sequence[range]
    ) -> None:
        self.communicator, self.row_ranges = communicator, tuple(row_ranges)
        self.rows = row_ranges[communicator.rank]
        self.unsharded = not any(map(is_dtensor, tensors))
        """Whether every process holds all tensors in full."""
        own, ranks = communicator.rank, range(communicator.size)
        members = dist.get_process_group_ranks(communicator.group)
        regions = [[_region(p, member) for member in members] for p in tensors]
        for p, by_rank in zip(tensors, regions, strict=True):
            if tuple(local_tensor(p).shape) != tuple(map(len, by_rank[own].sides)):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} has the placements {_placements(p)}, "
                    "which do not divide its dimensions into even ranges; redistribute it, with "
                    "Shard(0) for example."
                )
        segments = partial(_segments, regions, row_ranges)
        # To the shards, every process that holds an entry receives it. Back to the rows, exactly
        # one of them sends it.
        self._to_shards = (
            [segments(own, rank, None) for rank in ranks],
            [segments(rank, own, None) for rank in ranks],
        )
        self._to_rows = (
            [segments(rank, own, own) for rank in ranks],
            [segments(own, rank, rank) for rank in ranks],
        )

    def to_shards(self, X: Tensor) -> Tensor:
        """Send rows to shards: (rows, k) in each process, to its flattened shards, concatenated."""
        sent, received = self._to_shards
        blocks = [X[self._rows_of(segment)] for segments in sent for segment in segments]
        return self._exchanged(blocks, X, sent, received)

    def to_rows(self, Y: Tensor) -> Tensor:
        """Send shards to rows: the inverse of :meth:`to_shards`."""
        sent, received = self._to_rows
        blocks = [
            Y[segment.offset + segment.indices.start : segment.offset + segment.indices.stop]
            for segments in sent
            for segment in segments
        ]
        entries = self._exchanged(blocks, Y, sent, received)
        X = Y.new_empty((len(self.rows), Y.shape[1]))
        begin = 0
        for segment in itertools.chain.from_iterable(received):
            end = begin + len(segment.indices)
            X[self._rows_of(segment)] = entries[begin:end]
            begin = end
        return X

    def _rows_of(self, segment: Segment) -> slice | Tensor:
        """The rows of this process that a segment belongs to."""
        found = segment.region.entries(segment.indices, self.communicator.device)
        if isinstance(found, slice):
            return slice(found.start + segment.start, found.stop + segment.start)
        return found + segment.start

    def _exchanged(
        self,
        blocks: list[Tensor],
        like: Tensor,
        sent: list[list[Segment]],
        received: list[list[Segment]],
    ) -> Tensor:
        own = torch.cat(blocks) if blocks else like.new_empty((0, like.shape[1]))
        return self.communicator.all_to_all(own, _sizes(sent), _sizes(received))


def _sizes(by_rank: list[list[Segment]]) -> list[int]:
    return [sum(len(segment.indices) for segment in segments) for segments in by_rank]


def even_rows(n: int, num_processes: int) -> list[range]:
    """Row ranges that divide n rows among processes as evenly as possible."""
    edges = [n * rank // num_processes for rank in range(num_processes + 1)]
    return [range(*pair) for pair in itertools.pairwise(edges)]


def _segments(
    regions: list[list[Region]],
    row_ranges: Sequence[range],
    owner: int,
    holder: int,
    source: int | None,
) -> list[Segment]:
    """The segments in the rows of ``owner`` and the shards of ``holder``.

    With a source, only the segments that ``source`` sends back are returned. If several processes
    hold the same shard, one of them is chosen for each owner; the owner, if it holds the shard.
    """
    found, start, offset = [], 0, 0
    for by_rank in regions:
        region = by_rank[holder]
        size = math.prod(region.shape)
        begin = min(max(row_ranges[owner].start - start, 0), size)
        end = min(max(row_ranges[owner].stop - start, 0), size)
        indices = range(region.below(begin), region.below(end))
        if indices and (source is None or source == _sender(by_rank, holder, owner)):
            found.append(Segment(region, start - row_ranges[owner].start, indices, offset))
        start, offset = start + size, offset + region.size
    return found


def _sender(by_rank: list[Region], holder: int, owner: int) -> int:
    """The process, among those that hold the same region, that sends it to ``owner``."""
    same = [rank for rank, region in enumerate(by_rank) if region == by_rank[holder]]
    # Different owners choose different senders, which balances the load.
    return owner if owner in same else same[owner % len(same)]


def _region(p: Tensor, member: int) -> Region:
    """The region of a tensor that a process of its mesh holds."""
    sides = [range(length) for length in p.shape]
    if is_dtensor(p):
        mesh: Mesh = p.device_mesh  # type: ignore[attr-defined]
        (coordinates,) = (mesh.mesh == member).nonzero().tolist()
        counts = mesh.mesh.shape
        for place, coordinate, count in zip(_placements(p), coordinates, counts, strict=True):
            if place.is_shard():
                side = sides[place.dim]
                step = -(-len(side) // count)  # torch rounds up, so that the last ones may be empty
                begin = min(side.start + coordinate * step, side.stop)
                sides[place.dim] = range(begin, min(begin + step, side.stop))
    return Region(tuple(p.shape), tuple(sides))


def _placements(p: Tensor) -> Any:
    return p.placements  # type: ignore[attr-defined]
