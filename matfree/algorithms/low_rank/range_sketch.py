r"""A random sketch of the range of an operator, Y = A W = Q R, grown block by block.

W has k random probes as columns, and Q is an orthonormal basis of the range of Y. XTrace and
the related methods need nothing else than Q and small matrices. The probes W are functions of
their numbers, so that they are drawn again whenever they are needed instead of being stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.arguments import SMALL_ENTRIES
from matfree.arrays import to_host
from matfree.probes import PROBES
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_FEW_DIMENSIONS = 16

_DEPENDENT = 1e-8  # squared length outside the span of others, relative, that is a rounding error


@final
class Columns:
    """A growing block of vectors in memory that can be reserved beforehand.

    Appending to a reserved block never needs memory for two copies of it.

    Parameters
    ----------
    space : VectorSpace
        The space of the vectors.
    """

    saved = ("block",)
    by_row: Mapping[str, int] = {"block": 0}  # replaced, never written into

    def __init__(self, space: VectorSpace) -> None:
        self.space = space
        self.allocated: Array = space.zeros(0)
        self.count = 0

    @property
    def block(self) -> Array:
        """The columns so far, (rows, count)."""
        return self.allocated[:, : self.count]

    @block.setter
    def block(self, X: Array) -> None:
        self.count = 0
        self.append(X)

    def reserve(self, capacity: int) -> None:
        """Allocate memory for ``capacity`` columns in total."""
        if capacity > self.allocated.shape[1]:
            allocated = self.space.zeros(capacity)
            allocated[:, : self.count] = self.block
            self.allocated = allocated

    def append(self, X: Array) -> None:
        """Append the columns of X."""
        end = self.count + X.shape[1]
        self.reserve(end)
        self.allocated[:, self.count : end] = X
        self.count = end


@final
class RangeSketch:
    """The factors Q and R of Y = A W, extended by one block of probes at a time.

    Parameters
    ----------
    A : CountedOperator
    plan : Plan
        Seed, distribution and block size of the probes.
    stream : int
        The stream of random numbers that the probes are drawn from.
    """

    saved = ("num_probes", "basis", "R")

    def __init__(self, A: CountedOperator, plan: Plan, *, stream: int = PROBES) -> None:
        self.A, self.space, self.plan, self.stream = A, A.space, plan, stream
        self.num_probes = 0
        # The sketch of Hutch++ has a separate stream, and does not depend on ``first_probe``.
        self.first_probe = plan.first_probe if stream == PROBES else 0
        self.target = A.operator.space  # of Y and Q; A may be rectangular
        self.basis = Columns(self.target)
        if self.target.size != self.space.size:  # checkpoints divide rows like those of x
            self.basis.by_row = {}
        self.R: HostArray = np.zeros((0, 0))
        self._last_block: tuple[range, Array] = (range(0), self.basis.block)

    @property
    def Q(self) -> Array:
        """The orthonormal basis, (rows, rank)."""
        return self.basis.block

    @property
    def rank(self) -> int:
        """The number of columns of Q: less than that of the probes if A has a lower rank."""
        return self.basis.count

    def reserve(self, num_probes: int) -> None:
        """Allocate memory for a sketch with ``num_probes`` probes in total."""
        self.basis.reserve(num_probes)

    def extend(self, count: int) -> Array:
        """Extend the sketch by ``count`` probes, and return the new columns of Q."""
        old_rank = self.rank
        for W in self.probe_blocks(range(self.num_probes, self.num_probes + count)):
            Y = self.A(W)
            del W  # drawn again later: the memory is needed for the orthonormalization
            self.basis.append(self.target.orthonormalize(Y, against=self.Q))
            columns = to_host(self.target.gram(self.Q, Y))
            if not self.rank:  # the range of NaN is empty
                self.A.require_finite(to_host(self.target.norms(Y)))
            self.A.require_finite(columns)
            # The new basis vectors are orthogonal to the earlier columns of Y.
            rows = np.zeros((self.rank - self.R.shape[0], self.R.shape[1]), columns.dtype)
            self.R = np.hstack((np.vstack((self.R, rows)), columns))
        self.num_probes += count
        return self.Q[:, old_rank:]

    def complete(self, num_probes: int, block_done: Callable[[], None]) -> None:
        """Extend the sketch to ``num_probes`` probes, one block at a time."""
        while self.num_probes < num_probes:
            self.extend(min(self.plan.block_size, num_probes - self.num_probes))
            block_done()

    def probe_blocks(self, numbers: range | None = None) -> Iterator[Array]:
        """Draw the probes with these numbers block by block; all of them by default."""
        chosen, block = range(self.num_probes) if numbers is None else numbers, self.plan.block_size
        for begin in range(chosen.start, chosen.stop, block):
            yield self._block(range(begin, min(begin + block, chosen.stop)))

    def _block(self, numbers: range) -> Array:
        """A block of probes.

        The last block is stored if its memory is negligible: it is often needed again next.
        """
        last_numbers, W = self._last_block
        if last_numbers == numbers:
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

    def gram_of_probes(self) -> HostArray:
        """W^H W, (k, k). The probes are drawn again, block by block."""
        k, gram = self.num_probes, self.space.gram
        G: HostArray = np.zeros((k, k), dtype=self.R.dtype)
        rows = slice(0, 0)
        for W in self.probe_blocks():
            rows = slice(rows.stop, rows.stop + W.shape[1])
            G[rows, rows] = to_host(gram(W, W))
            columns = rows
            for V in self.probe_blocks(range(rows.stop, k)):
                columns = slice(columns.stop, columns.stop + V.shape[1])
                G[rows, columns] = to_host(gram(W, V))
                G[columns, rows] = G[rows, columns].conj().T
        return G

    def independent_probes(self) -> IndependentProbes:
        """The probes that are linearly independent.

        On few dimensions, some of the random signs are equal up to sign, or linearly dependent.
        The sketch then has a lower rank than the number of probes, without holding the range of A.
        """
        k = self.num_probes
        everything = IndependentProbes(np.arange(k), np.ones(k, dtype=bool))
        if self.rank == k:
            return everything
        found = _independent_columns(self.gram_of_probes())
        return everything if len(found.numbers) >= min(k, self.space.size) else found

    def against_probes(self, *bases: Array) -> list[HostArray]:
        """The matrices B^H W for every basis B, and ||w_i||^2, (k,), in one pass over W."""
        parts: list[list[HostArray]] = [[] for _ in range(len(bases) + 1)]
        for W in self.probe_blocks():
            for part, basis in zip(parts, bases, strict=False):
                part.append(to_host(self.space.gram(basis, W)))
            parts[-1].append(to_host(self.space.norms(W)) ** 2)
        return [np.hstack(part) for part in parts]


class IndependentProbes(NamedTuple):
    """A largest set of linearly independent probes, in the order of their numbers."""

    numbers: HostArray
    """(j,)"""
    essential: HostArray
    """(j,) bool: whether all probes without this one span a smaller space."""

    def widened(self, S: HostArray, num_probes: int) -> HostArray:
        """The directions (r, j) that the range loses without a probe, for all probes.

        They are 0 for probes without which the range is the same.
        """
        wide = np.zeros((S.shape[0], num_probes), dtype=S.dtype)
        wide[:, self.numbers] = S * self.essential
        return wide


def _independent_columns(G: HostArray) -> IndependentProbes:
    """The independent columns of a matrix with the Gram matrix G."""
    chosen: list[int] = []
    needed: set[int] = set()
    for j in range(len(G)):
        inner = G[np.ix_(chosen, chosen)]
        coefficients = np.linalg.solve(inner, G[chosen, j]) if chosen else np.zeros(0)
        rest = (G[j, j] - G[j, chosen] @ coefficients).real
        if rest > _DEPENDENT * G[j, j].real:
            chosen.append(j)
        else:
            needed.update(np.asarray(chosen)[np.abs(coefficients) > _DEPENDENT].tolist())
    index = np.asarray(chosen, dtype=int)
    return IndependentProbes(index, ~np.isin(index, list(needed)))


def coincidence_stderr(space: VectorSpace, kind: str, stderr: float, residual: float) -> float:
    """The standard error of a sketch that does not contain the range of A, on few dimensions.

    There are few vectors of signs, and the estimates without each probe may be equal by chance.
    The standard error is then the residual that was sampled.

    Parameters
    ----------
    space : VectorSpace
    kind : str
        The distribution of the probes.
    stderr : float
        The standard error by the jackknife.
    residual : float
        The largest difference of an estimate and the trace on the range of the sketch.
    """
    discrete = kind in ("rademacher", "z4") and space.size <= _FEW_DIMENSIONS
    return residual if discrete and stderr <= 1e-6 * residual else stderr


def jackknife_stderr(left_out: HostArray) -> float:
    """The matrix jackknife sqrt(sum_i |t_i - mean|^2) of estimates t_i without probe i.

    It is infinite for a single probe.
    """
    if left_out.size < 2:
        return math.inf
    return float(np.linalg.norm(left_out - left_out.mean()))
