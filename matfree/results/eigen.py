"""Eigenpairs with the residuals that bound their errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np

from matfree import plotting
from matfree.protocol import Array
from matfree.results.record import Record, residual_rows


@final
@dataclass(frozen=True, eq=False)
class EigenResult(Record):
    """Eigenpairs of a Hermitian operator: A u_i = theta_i u_i up to ``residuals[i]``.

    The interval of radius ``residuals[i] * norm`` around ``values[i]`` always contains an
    eigenvalue of A.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> pairs = mf.eigsh(np.diag([1.0, 2.0, 3.0, 9.0]), 2, seed=0)
    >>> pairs.values.round(6), pairs.verified
    (array([9., 3.]), True)
    >>> ax = pairs.plot(exact=[9.0, 3.0])
    """

    values: np.ndarray[Any, Any]
    """(k,) float64, in the order that ``which`` asks for."""
    vectors: Array
    """(n, k), orthonormal columns, in the operator's own library, dtype and device."""
    residuals: np.ndarray[Any, Any]
    """(k,) ||A u_i - theta_i u_i|| / norm, computed from a matvec with u_i."""
    converged: np.ndarray[Any, Any]
    """(k,) bool: whether each residual is within the tolerance."""
    norm: float
    """The estimate of ||A||_2 that the residuals are relative to: the largest ||A v|| over
    the unit vectors v to which the operator was applied."""
    which: str
    """The order of the eigenvalues: "LM" is the largest in magnitude first."""
    method: str
    """The name of the algorithm."""
    num_matvecs: int
    """The number of matvecs, all included."""
    num_steps: int
    """The number of iterations, over all pairs."""
    reason: str
    """Why the run stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    verified: bool = False
    """Whether the orthogonal complement was searched for missed eigenvalues until its stopping
    test was satisfied."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """For power iteration (pair, Rayleigh quotient, relative residual), one entry per step; for
    the other methods (matvecs, first value, largest relative residual), one entry per step."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local rows of ``vectors``; None if vectors are whole."""

    units: ClassVar[tuple[str, ...]] = ("values", "norm")
    history_units: ClassVar[tuple[bool, ...]] = (False, True, False)
    by_row: ClassVar[dict[str, tuple[int, str]]] = {"vectors": (0, "rows")}

    def plot(self, ax: Any = None, *, exact: Any = None) -> Any:
        """Draw the convergence of the residuals, and return the Axes.

        See :func:`matfree.plotting.plot_power` and :func:`matfree.plotting.plot_search`.
        """
        draw = plotting.plot_power if self.method == "power iteration" else plotting.plot_search
        return draw(self, exact, ax=ax)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            *residual_rows("eigenvalue", self.values, self.residuals, self.converged),
            ("method", f"{self.method}, {self.which}"),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_steps} steps"),
            ("stopped", self.reason),
            ("verified", "yes" if self.verified else "no"),
            ("seed", str(self.seed)),
        ]
