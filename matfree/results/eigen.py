"""Eigenpairs with the residuals that say how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np

from matfree import plotting
from matfree.protocol import Array
from matfree.results.record import Record


@final
@dataclass(frozen=True, eq=False)
class EigenResult(Record):
    """Eigenpairs of a Hermitian operator: A u_i = theta_i u_i up to ``residuals[i]``.

    An eigenvalue of A lies within ``residuals[i] * norm`` of ``values[i]``, always.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> pairs = mf.eigsh(np.diag([1.0, 2.0, 3.0, 9.0]), 2, seed=0)
    >>> pairs.values.round(6), pairs.verified
    (array([9., 3.]), True)
    >>> ax = pairs.plot(exact=[9.0, 3.0])
    """

    values: np.ndarray[Any, Any]
    """(k,) float64, sorted as ``which`` says."""
    vectors: Array
    """(n, k), orthonormal columns, in the operator's own library, dtype and device."""
    residuals: np.ndarray[Any, Any]
    """(k,) ||A u_i - theta_i u_i|| / norm, from actual products with u_i."""
    converged: np.ndarray[Any, Any]
    """(k,) bool: which residuals met the tolerance."""
    norm: float
    """The estimate of ||A||_2 that the residuals are relative to: the largest ||A v||
    over unit vectors v met on the way."""
    which: str
    """The order: "LM" by largest magnitude."""
    method: str
    """The algorithm's name."""
    num_matvecs: int
    """Products of the operator with one vector, everything counted."""
    num_steps: int
    """Iterations, over all pairs."""
    reason: str
    """Why it stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    verified: bool = False
    """Whether the complement was searched for missed eigenvalues, to the end."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """(pair, Rayleigh quotient, relative residual), one entry a step of power iteration;
    (products, first value, largest relative residual), one a step of the others."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n) where ``vectors`` holds their rows start to stop only, and other
    processes the others; None where it holds all of them."""

    by_row: ClassVar[dict[str, tuple[int, str]]] = {"vectors": (0, "rows")}

    def plot(self, ax: Any = None, *, exact: Any = None) -> Any:
        """Draw how the residuals fell, and return the Axes.

        See :func:`matfree.plotting.plot_power` and :func:`matfree.plotting.plot_search`.
        """
        draw = plotting.plot_power if self.method == "power iteration" else plotting.plot_search
        return draw(self, exact, ax=ax)

    def _rows(self) -> list[tuple[str, str]]:
        pairs = [
            (
                f"eigenvalue {j + 1}",
                f"{value:.10g}   residual {residual:.1e}{'' if ok else '   NOT converged'}",
            )
            for j, (value, residual, ok) in enumerate(
                zip(self.values, self.residuals, self.converged, strict=True)
            )
        ]
        return [
            *pairs,
            ("method", f"{self.method}, {self.which}"),
            ("cost", f"{self.num_matvecs} products, {self.num_steps} steps"),
            ("stopped", self.reason),
            ("verified", "yes" if self.verified else "no"),
            ("seed", str(self.seed)),
        ]
