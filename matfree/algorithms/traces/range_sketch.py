r"""What a random sketch of an operator sees, in coordinates that fit on a page.

W holds k random probes, Y = A W their products, Q an orthonormal basis of Y's range, so
that Y = Q R. Everything that XTrace and its relatives compute is then said by small
matrices; W itself is made again from its counter wherever it is needed, and not kept but for
a block so small that its memory does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.arguments import SMALL_ENTRIES
from matfree.arrays import to_host
from matfree.probes import PROBES
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


@final
class Columns:
    """A block of vectors that grows in place, so that growing does not keep it twice.

    Parameters
    ----------
    space : where the vectors live
    """

    saved = ("block",)
    by_row: ClassVar = {"block": 0}

    def __init__(self, space: VectorSpace) -> None:
        self.space = space
        self.room: Array = space.zeros(0)
        self.count = 0

    @property
    def block(self) -> Array:
        """The columns so far, (rows, count)."""
        return self.room[:, : self.count]

    @block.setter
    def block(self, X: Array) -> None:
        self.count = 0
        self.append(X)

    def reserve(self, capacity: int) -> None:
        """Make room for so many columns in all."""
        if capacity > self.room.shape[1]:
            room = self.space.zeros(capacity)
            room[:, : self.count] = self.block
            self.room = room

    def append(self, X: Array) -> None:
        """Put the columns of X behind the others."""
        end = self.count + X.shape[1]
        self.reserve(end)
        self.room[:, self.count : end] = X
        self.count = end


@final
class RangeSketch:
    """Q and R of Y = A W, grown a block of probes at a time.

    Parameters
    ----------
    product : the operator, counted
    plan : seed, kind and block size of the probes
    stream : int
        The probes' stream.
    """

    saved = ("num_probes", "basis", "R")

    def __init__(self, A: CountedOperator, plan: Plan, *, stream: int = PROBES) -> None:
        self.A, self.space, self.plan, self.stream = A, A.space, plan, stream
        self.num_probes = 0
        # The range that Hutch++ learns is the same whichever probes test what is left.
        self.first_probe = plan.first_probe if stream == PROBES else 0
        self.basis = Columns(self.space)
        self.R: HostArray = np.zeros((0, 0))
        self._last_block: tuple[range, Array] = (range(0), self.basis.block)

    @property
    def Q(self) -> Array:
        """The orthonormal basis, (rows, rank)."""
        return self.basis.block

    @property
    def rank(self) -> int:
        """Columns of Q; fewer than probes where the operator has a lower rank."""
        return self.basis.count

    def reserve(self, num_probes: int) -> None:
        """Make room for the products of so many probes in all."""
        self.basis.reserve(num_probes)

    def extend(self, count: int) -> Array:
        """Sketch with ``count`` more probes; the columns that Q gained."""
        old_rank = self.rank
        for W in self.probe_blocks(range(self.num_probes, self.num_probes + count)):
            Y = self.A(W)
            del W  # it is made again where it is needed
            self.basis.append(self.space.orthonormalize(Y, against=self.Q))
            columns = to_host(self.space.gram(self.Q, Y))
            self.A.require_finite(columns)
            rows = np.zeros((self.rank - self.R.shape[0], self.R.shape[1]), columns.dtype)
            self.R = np.hstack((np.vstack((self.R, rows)), columns))
        self.num_probes += count
        return self.Q[:, old_rank:]

    def complete(self, num_probes: int, block_done: Callable[[], None]) -> None:
        """Extend to ``num_probes``, a block at a time."""
        while self.num_probes < num_probes:
            self.extend(min(self.plan.block_size, num_probes - self.num_probes))
            block_done()

    def probe_blocks(self, numbers: range | None = None) -> Iterator[Array]:
        """The probes themselves, made again block by block; all of them by default."""
        chosen, block = range(self.num_probes) if numbers is None else numbers, self.plan.block_size
        for begin in range(chosen.start, chosen.stop, block):
            yield self._block(range(begin, min(begin + block, chosen.stop)))

    def _block(self, numbers: range) -> Array:
        """A block of probes; a small one is kept, because it is asked for again at once."""
        kept_numbers, W = self._last_block
        if kept_numbers == numbers:
            return W
        W = self.space.probes(
            len(numbers),
            seed=self.plan.seed,
            start=self.first_probe + numbers.start,
            kind=self.plan.kind,
            stream=self.stream,
        )
        if self.space.size * len(numbers) <= SMALL_ENTRIES:
            self._last_block = numbers, W
        return W

    def against_probes(self, *bases: Array) -> list[HostArray]:
        """basis^H W for each basis, and ||w_i||^2, (k,), from one pass over the probes."""
        parts: list[list[HostArray]] = [[] for _ in range(len(bases) + 1)]
        for W in self.probe_blocks():
            for part, basis in zip(parts, bases, strict=False):
                part.append(to_host(self.space.gram(basis, W)))
            parts[-1].append(to_host(self.space.norms(W)) ** 2)
        return [np.hstack(part) for part in parts]


def spread(left_out: HostArray) -> float:
    """sqrt(sum_i |t_{-i} - mean|^2) of estimates without each probe; inf for a single one."""
    if left_out.size < 2:
        return math.inf
    return float(np.linalg.norm(left_out - left_out.mean()))
