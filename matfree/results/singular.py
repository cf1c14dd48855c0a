"""Singular triplets with the residuals that say how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from matfree.protocol import Array
from matfree.results.record import Record


@final
@dataclass(frozen=True, eq=False)
class SingularResult(Record):
    """Singular triplets: A v_i = sigma_i u_i and A^H u_i = sigma_i v_i up to ``residuals[i]``.

    A singular value of A lies within ``residuals[i] * norm`` of ``values[i]``, always.

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
    """(k,) float64, descending, not negative."""
    right: Array
    """(n, k), orthonormal columns v_i, likewise."""
    residuals: np.ndarray[Any, Any]
    """(k,) the larger of ||A v_i - sigma_i u_i|| and ||A^H u_i - sigma_i v_i||, over
    ``norm``, from actual products with both."""
    converged: np.ndarray[Any, Any]
    """(k,) bool: which residuals met the tolerance."""
    norm: float
    """The estimate of ||A||_2 that the residuals are relative to."""
    method: str
    """The algorithm's name."""
    num_matvecs: int
    """Products of A and of A^H with one vector, everything counted."""
    reason: str
    """Why it stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    verified: bool = False
    """Whether the complement was searched for missed singular values, to the end."""
    left_rows: tuple[int, int, int] | None = None
    """(start, stop, m) where ``left`` holds these rows only, and other processes the others."""
    right_rows: tuple[int, int, int] | None = None
    """(start, stop, n) of ``right``, likewise."""

    by_row: ClassVar[dict[str, tuple[int, str]]] = {
        "left": (0, "left_rows"),
        "right": (0, "right_rows"),
    }

    def _rows(self) -> list[tuple[str, str]]:
        triplets = [
            (
                f"singular value {j + 1}",
                f"{value:.10g}   residual {residual:.1e}{'' if ok else '   NOT converged'}",
            )
            for j, (value, residual, ok) in enumerate(
                zip(self.values, self.residuals, self.converged, strict=True)
            )
        ]
        return [
            *triplets,
            ("method", self.method),
            ("cost", f"{self.num_matvecs} products of A and A^H"),
            ("stopped", self.reason),
            ("verified", "yes" if self.verified else "no"),
            ("seed", str(self.seed)),
        ]
