"""The contract of the iterative methods: what a step does, and what a run needs to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import epsilon, rounding
from matfree.errors import NoAdjointError
from matfree.operators import Operator
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

Precondition = Callable[[Array], Array]
"""It maps a block R to P R, where P is Hermitian, positive definite and close to A^-1."""


class SolveStep(NamedTuple):
    """What a callback is given after each step."""

    num_matvecs: int
    """The number of matvecs so far."""
    residuals: HostArray
    """(k,) float64: the residuals relative to ||b|| according to the recurrence."""

    def times(self, factor: float) -> SolveStep:
        """The same for the operator multiplied by a factor."""
        return self


class Solver(ABC):
    """An iterative method for A X = R with a start at X = 0.

    Parameters
    ----------
    A : CountedOperator
    R : (rows, k)
        The right-hand sides.
    norms : (k,) float64
        Their norms, all positive.
    targets : (k,) float64
        The norms that the residuals have to reach.
    """

    name: str
    margin = 1.0
    """The fraction of the tolerance at which the recurrence stops."""
    saved: tuple[str, ...] = ()
    """The attributes that change from step to step, which a checkpoint stores."""

    def __init__(self, A: CountedOperator, R: Array, norms: HostArray, targets: HostArray) -> None:
        self.A, self.eps = A, epsilon(A.space.xp, A.space.dtype)
        # In single precision, residuals of recurrences drift by a percent or so.
        self.targets = min(self.margin, 1 - min(0.02, 1e5 * self.eps)) * targets
        self.rounding = rounding(A.space.xp, A.space.dtype)
        self.residuals = norms.copy()
        """(k,) float64: the norms of the residuals according to the recurrence."""
        self.least_squares = np.zeros(len(norms), dtype=bool)
        """(k,) bool: which columns are least-squares solutions with a residual that remains."""
        self.least_quotient = np.inf
        """The smallest x^H A x / x^H x of the directions so far, if A is Hermitian."""
        self.norm = 0.0
        """A lower bound of ||A||."""
        self.num_steps = 0
        self.is_exhausted = False
        """Whether a further step would not change the solution."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """The number of matvecs of the next step."""

    @abstractmethod
    def advance(self) -> None:
        """Do one step for all columns that have not converged."""

    @abstractmethod
    def solution(self) -> Array:
        """The best X so far, (rows, k)."""

    @property
    def reached(self) -> HostArray:
        """(k,) bool: which columns have met their targets, or are least-squares solutions."""
        return np.asarray((self.residuals <= self.targets) | self.least_squares)

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.is_exhausted or bool(self.reached.all())


def has_adjoint(operator: Operator) -> bool:
    """Whether the adjoint of an operator is known, which an empty block reveals."""
    try:
        operator.rmatmat(operator.space.zeros(0))
    except NoAdjointError:
        return False
    return True


def take_columns(space: VectorSpace, X: Array, index: HostArray) -> Array:
    """The columns of X with these indices, as a block of its own."""
    return space.xp.take(X, space.xp.asarray(index, device=space.device), axis=1)


def add_columns(space: VectorSpace, X: Array, index: HostArray, part: Array) -> Array:
    """X with ``part`` added to the columns with these indices."""
    selection = np.zeros((len(index), X.shape[1]))
    selection[np.arange(len(index)), index] = 1.0
    return X + part @ space.asarray(selection)
