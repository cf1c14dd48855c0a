"""A number with a lower and an upper bound, each certain or estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from matfree.results.record import Record


@final
@dataclass(frozen=True, eq=False)
class BoundedNumber(Record):
    """A norm or a condition number between two bounds.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> norm = mf.spectral_norm(np.diag([1.0, -4.0, 2.0]), seed=0)
    >>> low, high = norm.interval()
    >>> bool(low <= norm.value <= high), norm.low_is_certain, norm.high_is_certain
    (True, True, False)
    """

    value: float
    """The estimate; inf for the condition number of a singular operator."""
    low: float
    """The lower bound."""
    high: float
    """The upper bound."""
    low_is_certain: bool
    """Whether the lower bound holds up to rounding, whatever the operator is."""
    high_is_certain: bool
    """The same for the upper bound. An estimated bound fails only if the search for extreme
    eigenvalues, started from random vectors, has missed one."""
    converged: bool
    """Whether the searches converged and were verified."""
    method: str
    """The name of the algorithm."""
    num_matvecs: int
    """The number of matvecs with A and A^H, all included."""
    reason: str
    """Why the last search stopped, in words."""
    seed: int
    """The seed that repeats this run."""

    units: ClassVar[tuple[str, ...]] = ("value", "low", "high")

    def interval(self) -> tuple[float, float]:
        """The bounds (low, high)."""
        return self.low, self.high

    def __float__(self) -> float:
        return self.value

    def _rows(self) -> list[tuple[str, str]]:
        sides = [
            f"{bound:.6g} ({'certain' if certain else 'estimated'})"
            for bound, certain in (
                (self.low, self.low_is_certain),
                (self.high, self.high_is_certain),
            )
        ]
        return [
            ("value", f"{self.value:.8g}"),
            ("bounds", f"{sides[0]}, {sides[1]}"),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs"),
            ("converged", f"{'yes' if self.converged else 'NO'}: {self.reason}"),
            ("seed", str(self.seed)),
        ]
