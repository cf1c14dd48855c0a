"""Iterations in which every column has numbers of its own, and finished columns are dropped."""

from __future__ import annotations

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.solver import Solver, add_columns, take_columns
from matfree.protocol import Array, HostArray

SMALLEST_RATIO = 100.0
"""The size, in multiples of eps, of ||A^H r|| / (||A|| ||r||) at which r is orthogonal to the
range of A up to rounding."""


class ColumnwiseSolver(Solver):
    """A solver for columns that are independent of each other but for the common matmat.

    A subclass names its blocks in ``blocks`` and its numbers per column in ``numbers``. They hold
    the active columns only.

    Parameters
    ----------
    A, R, norms, targets
        As for :class:`Solver`.
    """

    blocks: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    x: Array
    """(rows, active): the present solutions of the active columns."""

    def __init__(self, A: CountedOperator, R: Array, norms: HostArray, targets: HostArray) -> None:
        super().__init__(A, R, norms, targets)
        self.space = A.space
        self.active: HostArray = np.arange(len(norms))
        self.X = self.x = self.space.zeros(len(norms))
        """(rows, k): the solutions of the columns that are no longer active."""

    @property
    def cost(self) -> int:
        return len(self.active)

    def solution(self) -> Array:
        return add_columns(self.space, self.X, self.active, self.x)

    def drop(self, finished: HostArray) -> None:
        """Remove active columns, given by a mask (active,) bool, after adding them to X."""
        if not finished.any():
            return
        gone, stay = np.flatnonzero(finished), np.flatnonzero(~finished)
        done = take_columns(self.space, self.x, gone)
        self.X = add_columns(self.space, self.X, self.active[gone], done)
        self.active = self.active[stay]
        self.is_exhausted = not len(stay)
        for name in self.blocks:
            setattr(self, name, take_columns(self.space, getattr(self, name), stay))
        for name in self.numbers:
            setattr(self, name, getattr(self, name)[stay])
