"""Singular triplets with the residuals that bound their errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from matfree.protocol import Array
from matfree.results.record import Record, residual_rows


@final
@dataclass(frozen=True, eq=False)
class SingularResult(Record):
    """Singular triplets: A v_i = sigma_i u_i and A^H u_i = sigma_i v_i up to ``residuals[i]``.

    The interval of radius ``residuals[i] * norm`` around ``values[i]`` always contains a
    singular value of A.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> found = mf.svds(np.diag([3.0, 2.0, 1.0]), 2, seed=0)
    >>> found.values.round(6), found.left.shape, bool(found.residuals.max() < 1e-6)
    (array([3., 2.]), (3, 2), True)
    """

    left: Array
    """(m, k), orthonormal columns u_i, in the operator's own library, dtype and device."""
    values: np.ndarray[Any, Any]
    """(k,) float64, descending and nonnegative."""
    right: Array
    """(n, k), orthonormal columns v_i, in the operator's own library, dtype and device."""
    residuals: np.ndarray[Any, Any]
    """(k,) the larger of ||A v_i - sigma_i u_i|| and ||A^H u_i - sigma_i v_i||, divided by
    ``norm``, computed from matvecs with A and A^H."""
    converged: np.ndarray[Any, Any]
    """(k,) bool: whether each residual is within the tolerance."""
    norm: float
    """The estimate of ||A||_2 that the residuals are relative to."""
    method: str
    """The name of the algorithm."""
    num_matvecs: int
    """The number of matvecs with A and with A^H, all included."""
    reason: str
    """Why the run stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    verified: bool = False
    """Whether the orthogonal complement was searched for missed singular values until its
    stopping test was satisfied."""
    left_rows: tuple[int, int, int] | None = None
    """(start, stop, m): the range of local rows of ``left``; None if vectors are whole."""
    right_rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local rows of ``right``; None if vectors are whole."""

    units: ClassVar[tuple[str, ...]] = ("values", "norm")
    by_row: ClassVar[dict[str, tuple[int, str]]] = {
        "left": (0, "left_rows"),
        "right": (0, "right_rows"),
    }

    def _rows(self) -> list[tuple[str, str]]:
        return [
            *residual_rows("singular value", self.values, self.residuals, self.converged),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs with A and A^H"),
            ("stopped", self.reason),
            ("verified", "yes" if self.verified else "no"),
            ("seed", str(self.seed)),
        ]
