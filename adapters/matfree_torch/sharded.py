"""Vectors cut into rows that several processes hold, and curvatures on them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

import array_api_compat
import torch
from torch import Tensor

from matfree import Operator, OperatorError, RowSpace
from matfree.protocol import Array
from matfree_torch.marks import Mark
from matfree_torch.memory import available
from matfree_torch.processes import Processes
from matfree_torch.shards import even_rows

if TYPE_CHECKING:
    from matfree_torch.parameterwise import ParameterCurvature

_SHARE = 16  # of the free memory, what vectors that are whole may take
_COPIES = 4  # of a block while it is multiplied: whole, by vectors, joined again, summed
_ARGUMENTS = "give all of them the same arguments"


@final
class ShardedSpace(RowSpace):
    """Vectors of which every process of a group holds some rows.

    Parameters
    ----------
    processes : Processes
    counts : sequence of int
        The rows of each process, by rank; some may have none.
    dtype : torch.dtype
    """

    def __init__(self, processes: Processes, counts: Sequence[int], dtype: torch.dtype) -> None:
        edges = [0, *itertools.accumulate(counts)]
        self.held = tuple(range(*pair) for pair in itertools.pairwise(edges))
        """The rows of each process, by rank."""
        super().__init__(
            array_api_compat.array_namespace(torch.empty(0)),
            edges[-1],
            dtype,
            processes.device,
            rows=self.held[processes.rank],
            peers=processes,
        )
        self.processes = processes

    def add_up(self, partial: Array) -> Array:
        """The sum over all processes, the same to the bit in each."""
        return self.processes.sum(partial.clone(memory_format=torch.contiguous_format))

    def gather(self, X: Tensor) -> Tensor:
        """Vectors (rows,) or a block (rows, k), whole in every process."""
        return self.processes.joined(X, self.held)


@final
class ShardedCurvature(Operator):
    """A curvature in parameters on vectors cut into pieces; made by its ``sharded``.

    Parameters
    ----------
    whole : ParameterCurvature
        The same on whole vectors, over data that several processes share out.
    rows : the rows of each process, by rank; None for about as many each
    block_size : vectors that are whole at a time; None for as many as fit well
    """

    space: ShardedSpace

    def __init__(
        self, whole: ParameterCurvature, rows: Sequence[int] | None, block_size: int | None
    ) -> None:
        processes = whole.objective.processes
        if processes is None:
            raise ValueError(
                "sharded vectors need several processes; make the operator with process_group=."
            )
        self.whole, self.processes, self._block_size = whole, processes, block_size
        counts = list(rows or map(len, even_rows(whole.layout.size, processes.size)))
        told = processes.exchange(lambda: self._sensible(counts))  # one that is wrong ends all
        others = [rank for rank, answer in enumerate(told) if answer != told[0]]
        if others:
            raise OperatorError(
                f"process {others[0]} was given other rows or another block_size, "
                f"{told[others[0]]}, than process 0, {told[0]}; give all of them the same."
            )
        super().__init__(ShardedSpace(processes, counts, whole.dtype))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the whole vector."""
        return self.whole.names

    @property
    def partition(self) -> dict[str, slice]:
        """Where each tensor lies in the whole vector."""
        return self.whole.partition

    @property
    def positive_semidefinite(self) -> bool:
        """Whether x^T A x >= 0 for every x, by construction."""
        return self.whole.positive_semidefinite

    @property
    def noise(self) -> float:
        """The relative rounding error of products, as the whole operator's."""
        return self.whole.noise

    def gather(self, X: Tensor) -> Tensor:
        """A vector or a block, (rows,) or (rows, k) in each process, whole in all of them."""
        return self.space.gather(X)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rows of this process, (rows,), of tensors by name."""
        rows = self.space.rows
        return self.whole.flatten(tensors)[rows.start : rows.stop].clone()

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector, (rows,) in each process, as whole tensors by name; all processes call it."""
        return self.whole.unflatten(self.gather(vector))

    def _apply(self, X: Array) -> Array:
        count = float(X.shape[1])
        self.processes.require_same(Mark("numbers of vectors", _ARGUMENTS, (count,)))
        self.whole.inspect()
        step = self._columns()
        parts = [self._product(X[:, j : j + step]) for j in range(0, X.shape[1], step)]
        return torch.cat(parts, dim=1) if parts else X.clone()

    _apply_adjoint = _apply

    def _product(self, X: Tensor) -> Tensor:
        """The rows of this process of A @ X, whose pieces are made whole to multiply them."""
        layout, space, rows = self.whole.layout, self.space, self.space.rows
        with self.whole.differentiating():
            Y = self.whole.summed(
                space.gather(X.clone()),
                layout,
                layout,
                lambda block: self.processes.sum_of_rows(block, space.held),
            )
        for name, decay in self.whole.weight_decay.items():
            place = layout.partition[name]
            here = slice(
                max(place.start, rows.start) - rows.start,
                max(min(place.stop, rows.stop) - rows.start, 0),
            )
            Y[here] += decay * X[here]
        return Y

    def _columns(self) -> int:
        """Vectors that are whole at a time, as many in every process."""
        if self._block_size is None:
            self._block_size = columns_at_once(self.processes, self.space.size, self.dtype)
        return self._block_size

    def _sensible(self, counts: list[int]) -> tuple[list[int], int | None]:
        n, size = self.whole.layout.size, self.processes.size
        if len(counts) != size or sum(counts) != n or min(counts) < 0:
            raise ValueError(
                f"rows must be {size} numbers that add up to {n}, one for each process: got "
                f"{counts}."
            )
        if self._block_size is not None and self._block_size < 1:
            raise ValueError(f"block_size must be positive: got {self._block_size}.")
        return counts, self._block_size

    def __repr__(self) -> str:
        rows = self.space.rows
        return f"<rows {rows.start} to {rows.stop} of {self.whole!r}>"


def columns_at_once(processes: Processes, size: int, dtype: torch.dtype) -> int:
    """Vectors that may be whole at a time, as many in every process."""
    free = available(processes.device)
    vector = _COPIES * size * torch.finfo(dtype).bits // 8
    fit = 1 if free is None else free // (_SHARE * processes.neighbours * vector)
    return max(1, min(processes.exchange(lambda: int(fit))))
