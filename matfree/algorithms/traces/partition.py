"""Partitions of the coordinates into named diagonal blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple


class Block(NamedTuple):
    """A diagonal block: a range of coordinates with a name."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return self.stop - self.start

    def within(self, rows: range) -> slice:
        """The positions of the block's coordinates in an array that has only these rows."""
        length = len(rows)
        return slice(
            min(max(self.start - rows.start, 0), length),
            min(max(self.stop - rows.start, 0), length),
        )


def blocks_of(partition: Mapping[str, slice | range], size: int) -> list[Block]:
    """The blocks of a partition, in its order.

    Raises
    ------
    ValueError
        The partition is empty, or its blocks overlap or exceed [0, size).
    """
    if not isinstance(partition, Mapping) or not partition:
        raise ValueError(
            "partition must name at least one block, like {'first': slice(0, 10)}: got "
            f"{partition!r}."
        )
    blocks = []
    for name, part in partition.items():
        if not isinstance(part, slice | range):
            raise ValueError(f"partition: block {name!r} must be a slice or a range: got {part!r}.")
        start, stop = part.start or 0, size if part.stop is None else part.stop
        if (part.step or 1) != 1 or not 0 <= start < stop <= size:
            raise ValueError(
                f"partition: block {name!r} must be slice(start, stop) with 0 <= start < stop <= "
                f"{size}: got {part}."
            )
        blocks.append(Block(name, start, stop))
    ordered = sorted(blocks, key=lambda block: block.start)
    for left, right in itertools.pairwise(ordered):
        if right.start < left.stop:
            raise ValueError(
                f"partition: blocks {left.name!r} and {right.name!r} overlap; pass disjoint blocks."
            )
    return blocks
