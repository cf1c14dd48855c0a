"""Linear combinations of Lanczos vectors that are accumulated while the recurrence runs."""

from __future__ import annotations

from typing import final

from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


@final
class RunningCombination:
    """The sum over j of v_j Y[j, :] for one start vector, accumulated during a run.

    Parameters
    ----------
    space : VectorSpace
    column : int
        The column of the start vector in its block.
    Y : (steps, k) float64 or complex128
    """

    def __init__(self, space: VectorSpace, column: int, Y: HostArray) -> None:
        self.space, self.column, self.Y = space, column, Y
        self.X = space.zeros(Y.shape[1])

    def append(self, V: Array, step: int) -> None:
        """Add the term of a step, one slab of rows at a time."""
        if step >= self.Y.shape[0]:
            return
        y = self.space.asarray(self.Y[step : step + 1, :])
        v = V[:, self.column : self.column + 1]
        for rows in self.space.slabs(self.Y.shape[1]):
            self.X[rows, :] += v[rows, :] @ y
