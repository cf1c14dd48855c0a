"""The values of a matrix function applied to vectors, with estimates of their errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from matfree.protocol import Array
from matfree.results.record import Record, memory_rows


@final
@dataclass(frozen=True, eq=False)
class FunctionValues(Record):
    """f(t A) B for one or many numbers t, with an estimate of the error of every vector.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> found = mf.apply_function(np.diag([1.0, 4.0, 9.0]), "sqrt", np.ones(3))
    >>> found.values.round(12), bool(found.error < 1e-12)
    (array([1., 2., 3.]), True)
    """

    values: Array
    """f(t A) B in the operator's library and device, of the shape of B; (T, n) or (T, n, k) for T
    numbers t."""
    error: Any
    """The estimated 2-norms of the errors, absolute: a float for a vector B, (k,) for a block,
    (T,) or (T, k) for T numbers t."""
    converged: Any
    """Whether each error is within the tolerance; of the shape of ``error``."""
    t: Any
    """The number t, or (T,) numbers."""
    num_matvecs: int
    """The number of matvecs, those of a second run included."""
    num_steps: int
    """The number of Lanczos steps."""
    method: str
    """The name of the algorithm."""
    reason: str
    """Why the run stopped, in words."""
    history: tuple[tuple[int, int, float], ...] = field(default=(), repr=False)
    """(matvecs, steps, largest error relative to the norm of its vector) at each convergence
    check."""
    memory: dict[str, Any] = field(default_factory=dict)
    """How the Lanczos vectors were stored: "basis" ("full" or "none"), "at_once" (columns),
    "stored" (number of stored vectors per column), "predicted" and "budget" (peak memory in bytes,
    per process)."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local rows of ``values``; None if vectors are whole."""

    @property
    def by_row(self) -> dict[str, tuple[int, str]]:  # type: ignore[override]  # the axis depends on t
        """The axis of ``values`` that has the rows."""
        return {"values": (np.ndim(self.t), "rows")}

    def _rows(self) -> list[tuple[str, str]]:
        largest, done = np.max(self.error, initial=0.0), np.all(self.converged)
        return [
            ("values", f"array of shape {tuple(self.values.shape)}"),
            ("error", f"at most {largest:.2g} (estimated, 2-norm of a vector)"),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_steps} steps"),
            ("converged", f"{'yes' if done else 'NO'}: {self.reason}"),
            *memory_rows(self.memory),
        ]
