"""An estimated number (or vector) with an error bar that means what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import scipy.stats

from matfree.protocol import Array
from matfree.results.record import Record


@final
@dataclass(frozen=True, eq=False)
class Estimate(Record):
    """The result of a stochastic estimator: a value, its error bar, and how it came about.

    ``float(estimate)`` is the value. Where the value is an array (a diagonal), so is the
    standard error, and the interval holds entry by entry.
    """

    value: Any
    """The estimate: a float (a complex number for a complex operator), or an (n,) array."""
    stderr: Any
    """Its standard error, like ``value`` but real: 0 where exact, inf after one probe."""
    method: str
    """The estimator's name, or "exact"."""
    num_probes: int
    """Random probes used; 0 where the answer is exact."""
    num_matvecs: int
    """Products of the operator with one vector, everything counted."""
    degrees_of_freedom: float
    """Of Student's t for the interval: num_probes - 1; inf where the answer is exact."""
    converged: bool
    """Whether the tolerance was met; True where none was asked for."""
    reason: str
    """Why it stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    samples: Array | None = None
    """One estimate per probe, (num_probes,) float64 or complex128, for a scalar value."""
    first_probe: int = 0
    """The number of the first probe used."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """(products, value, half-width of the 95 % interval) each time it was looked at; for
    a diagonal the 2-norms of both."""

    def half_width(self, level: float = 0.95) -> Any:
        """Half of the interval's width: Student's t quantile times the standard error."""
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1): got {level}; pass 0.95 for 95 %.")
        if np.isinf(self.degrees_of_freedom):  # exact: no bar, whatever the level
            return 0.0 * self.stderr
        return student_quantile(level, self.degrees_of_freedom) * self.stderr

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval (low, high) at ``level``, by Student's t.

        For a complex value it is the interval of the real part.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> low, high = mf.trace(np.diag([1.0, 2.0, 3.0]), num_probes=4, seed=0).interval()
        >>> low, high  # signs see a diagonal matrix exactly
        (6.0, 6.0)
        """
        half, center = self.half_width(level), _real(self.value)
        return center - half, center + half

    def __float__(self) -> float:
        if np.ndim(self.value) > 0:
            raise TypeError("this estimate is an array; read its .value instead.")
        if isinstance(self.value, complex) and abs(self.value.imag) > 1e-8 * abs(self.value):
            raise TypeError(f"the value {self.value} is complex; read its .value instead.")
        return float(self.value.real)

    def __complex__(self) -> complex:
        return complex(self.value)

    def _rows(self) -> list[tuple[str, str]]:
        if hasattr(self.value, "shape") and self.value.shape:
            value, bar = f"array of shape {tuple(self.value.shape)}", "one per entry"
        else:
            value, (low, high) = f"{self.value:.8g}", self.interval()
            bar = f"{self.stderr:.2g}, 95 % interval [{low:.6g}, {high:.6g}]"
        return [
            ("value", value),
            ("standard error", bar),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} products, {self.num_probes} probes"),
            ("converged", f"{'yes' if self.converged else 'NO'}: {self.reason}"),
            ("seed", str(self.seed)),
        ]


def student_quantile(level: float, degrees_of_freedom: float) -> float:
    """How many standard errors half of the two-sided interval spans; inf for one sample."""
    if degrees_of_freedom < 1:
        return float("inf")
    return float(scipy.stats.t.ppf(0.5 + level / 2, degrees_of_freedom))


def _real(value: Any) -> Any:
    return value.real if isinstance(value, complex) else value
