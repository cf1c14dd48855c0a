"""Solutions of linear systems with their true residuals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np

from matfree.protocol import Array
from matfree.results.record import Record


@final
@dataclass(frozen=True, eq=False)
class Solution(Record):
    """Solutions X of (A + shift I) X = B, with residuals computed from a matvec with X.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> solution = mf.solve(np.diag([1.0, 2.0, 4.0]), np.ones(3), lower=1.0)
    >>> solution.values.round(9), bool(solution.error_bound[0] < 1e-6)
    (array([1.  , 0.5 , 0.25]), True)
    """

    values: Array
    """(n,) or (n, k), as the right-hand sides, in the operator's library, dtype and device."""
    residuals: np.ndarray[Any, Any]
    """(k,) ||b - (A + shift I) x|| / ||b||, with k = 1 for a single vector; 0 if b = 0."""
    converged: np.ndarray[Any, Any]
    """(k,) bool: whether the residual is within the tolerance or, if A is rectangular, x is a
    least-squares solution."""
    method: str
    """The name of the algorithm, or of the algorithms in the order in which they were used."""
    num_matvecs: int
    """The number of matvecs with A and with A^H, those of a preconditioner's sketch and of the
    residuals included."""
    num_steps: int
    """The number of iterations, over all blocks of right-hand sides."""
    reason: str
    """Why the run stopped, in words."""
    seed: int
    """The seed of the preconditioner's sketch."""
    shift: complex = 0.0
    """The number sigma in (A + sigma I) X = B."""
    rank: int = 0
    """The rank of the Nystrom preconditioner; 0 without one."""
    error_bound: np.ndarray[Any, Any] | None = None
    """(k,) bounds on ||x - x*|| for the exact solutions x*; None if no lower bound of the
    spectrum is known."""
    history: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """(matvecs, largest relative residual), one entry per step; the residuals are those of the
    recurrences, except those at the end of a block of right-hand sides."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local rows of ``values``; None if vectors are whole."""

    by_row: ClassVar[dict[str, tuple[int, str]]] = {"values": (0, "rows")}

    def times(self, factor: float) -> Self:
        """The solution for the system c (A + shift I) X = B: it is divided by c > 0.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> mf.solve(np.eye(2), np.ones(2)).times(4.0).values
        array([0.25, 0.25])
        """
        bound = None if self.error_bound is None else self.error_bound / factor
        return dataclasses.replace(
            self, values=self.values / factor, shift=self.shift * factor, error_bound=bound
        )

    def _rows(self) -> list[tuple[str, str]]:
        listed = zip(self.residuals[:10], self.converged[:10], strict=True)
        rows = [
            (f"residual {j}", f"{residual:.1e}{'' if done else '   NOT converged'}")
            for j, (residual, done) in enumerate(listed, start=1)
        ]
        if len(self.residuals) > 10:
            worst, missing = self.residuals.max(), int((~self.converged).sum())
            text = f"{worst:.1e}, {missing} of {len(self.residuals)} NOT converged"
            rows.append(("largest residual", text))
        if self.error_bound is not None:
            rows.append(("error bound", f"{np.max(self.error_bound):.1e}"))
        if self.rank:
            rows.append(("preconditioner", f"Nystrom, rank {self.rank}"))
        return [
            *rows,
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_steps} steps"),
            ("stopped", self.reason),
        ]
