"""Protocols for the results that can be plotted.

Results import this package, because they have a ``plot`` method. The package therefore cannot
import results; protocols describe the attributes and methods that plots read.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from matfree.protocol import HostArray


class PlottableEigenpairs(Protocol):
    """An ``EigenResult``, as far as plots read it."""

    @property
    def norm(self) -> float:
        """The norm that the residuals are relative to."""

    @property
    def history(self) -> tuple[tuple[int, float, float], ...]:
        """(pair or number of matvecs, eigenvalue, relative residual) for each step."""


class PlottableEstimate(Protocol):
    """An ``Estimate``, as far as plots read it."""

    @property
    def value(self) -> Any:
        """A number or an (n,) array."""

    @property
    def samples(self) -> Any:
        """One estimate per probe, or None."""

    @property
    def method(self) -> str:
        """The name of the estimator."""

    @property
    def mergeable(self) -> bool:
        """Whether the samples are averaged independently."""

    def first(self, num_probes: int, /) -> PlottableEstimate:
        """The estimate from the first probes only."""

    def half_width(self) -> Any:
        """The half-width of the 95 % interval."""


class PlottableDensity(Protocol):
    """A ``SpectralDensity``, as far as plots read it."""

    @property
    def nodes(self) -> tuple[HostArray, ...]:
        """The nodes, per probe."""

    @property
    def weights(self) -> tuple[HostArray, ...]:
        """The weights, per probe."""

    @property
    def size(self) -> int:
        """n, the number of eigenvalues."""

    @property
    def num_probes(self) -> int:
        """The number of probes."""

    @property
    def num_steps(self) -> int:
        """The number of steps per probe."""

    @property
    def noise_floor(self) -> float:
        """The magnitude below which the sign of an eigenvalue is not determined."""

    @property
    def node_rounding(self) -> float:
        """The rounding error of the nodes, up to which they count as at a point."""

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest node."""

    def grid(self, width: float | None = None) -> HostArray:
        """Points that resolve the smoothed density and extend 5 widths beyond the support."""

    def density(
        self, grid: Any, width: float | None, *, reading: Literal["atoms", "spread"]
    ) -> HostArray:
        """The smoothed density."""

    def density_band(
        self, grid: Any, width: float | None, *, reading: Literal["atoms", "spread"]
    ) -> tuple[HostArray, HostArray]:
        """Bounds of the smoothed density."""

    def cdf(self, x: Any, *, reading: Literal["atoms", "spread"]) -> HostArray:
        """The distribution function."""

    def cdf_band(self, x: Any) -> tuple[HostArray, HostArray]:
        """Bounds of the distribution function."""
