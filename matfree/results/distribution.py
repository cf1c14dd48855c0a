"""A spectral distribution that is given by the quadratures of several probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from matfree.protocol import HostArray
from matfree.results import bands, interpretations
from matfree.results.error_model import ErrorModel
from matfree.results.estimate import Estimate
from matfree.results.interpretations import Pieces, Reading
from matfree.results.merging import safe_unit
from matfree.results.record import Record
from matfree.results.tridiagonal import Quadrature

DEFAULT_WIDTH = 0.01
"""The standard deviation of the smoothing Gaussian, relative to the range of the spectrum."""


class Distribution(Record, ABC):
    """The average of discrete measures, one for each probe."""

    @abstractmethod
    def _rules(self) -> list[Quadrature]:
        """The quadratures of the probes."""

    @property
    @abstractmethod
    def _error_model(self) -> ErrorModel:
        """The parameters of the error bounds other than the quadratures."""

    @abstractmethod
    def _mean(self, samples: HostArray, method: str) -> Estimate:
        """The mean of one number per probe, with its standard error over the probes."""

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest node. Ritz values lie within the range of the spectrum."""
        return (
            min(float(rule.nodes[0]) for rule in self._rules()),
            max(float(rule.nodes[-1]) for rule in self._rules()),
        )

    @property
    def node_rounding(self) -> float:
        """The rounding error of the nodes: closer numbers are not distinguished by ``cdf``,
        ``cdf_band``, ``mass_below``, ``mass_between`` and ``count``."""
        return bands.node_rounding(self._rules(), self._error_model)

    def grid(self, width: float | None = None) -> HostArray:
        """Points that resolve the density smoothed by ``width``.

        The distance of the points is a third of the smoothing width, and they extend 5 widths
        beyond the support.

        Parameters
        ----------
        width : float, optional
            As for ``density``.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> grid = density.grid(width=0.1)
        >>> grid[[0, -1]].round(6)
        array([-0.5,  1.5])
        """
        sigma, (low, high) = self._sigma(width), self.support
        count = math.ceil(3 * (high - low) / sigma) + 31
        return np.linspace(low - 5 * sigma, high + 5 * sigma, count)

    def pieces(self, reading: Reading = "spread") -> tuple[Pieces, ...]:
        """The distribution of each probe as point masses and uniform densities between nodes.

        Parameters
        ----------
        reading : {"atoms", "spread"}
            "atoms" places each weight at its node. "spread" distributes weight of neighbouring
            nodes that have not converged uniformly over the gap between them, which suits a
            continuous bulk, and leaves isolated eigenvalues at their nodes.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag(np.linspace(0.0, 1.0, 500))
        >>> density = mf.spectral_density(A, num_steps=5, num_probes=1, seed=0)
        >>> for reading in ("atoms", "spread"):
        ...     (piece,) = density.pieces(reading)
        ...     print(round(piece.atoms.sum(), 2), round(piece.gaps.sum(), 2))
        1.0 0.0
        0.28 0.72
        """
        if reading == "atoms":
            return tuple(interpretations.as_atoms(*rule[:2]) for rule in self._rules())
        if reading != "spread":
            raise ValueError(f'reading must be "atoms" or "spread": got {reading!r}.')
        return tuple(interpretations.spread_over_gaps(*rule) for rule in self._rules())

    def density(
        self, grid: Any = None, width: float | None = None, *, reading: Reading = "atoms"
    ) -> HostArray:
        """The spectral density, smoothed by a Gaussian; its integral is 1.

        Parameters
        ----------
        grid : (m,) array_like of float64, optional
            The points of evaluation; ``self.grid(width)`` by default.
        width : float, optional
            Standard deviation of the Gaussian relative to the range of the spectrum
            (relative to its magnitude if the range is 0); 0.01 by default.
        reading : {"atoms", "spread"}
            See ``pieces``.

        Returns
        -------
        (m,) float64, fraction of the eigenvalues per unit of the eigenvalue.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> grid = density.grid(width=0.1)
        >>> float(np.trapezoid(density.density(grid, width=0.1), grid).round(6))
        1.0
        """
        points = self.grid(width) if grid is None else np.asarray(grid, dtype=np.float64)
        return interpretations.smoothed(self.pieces(reading), points, self._sigma(width))

    def density_band(
        self,
        grid: Any = None,
        width: float | None = None,
        level: float = 0.95,
        *,
        reading: Reading = "atoms",
    ) -> tuple[HostArray, HostArray]:
        """Bounds (low, high) that contain the smoothed density at each point, at ``level``.

        The bounds hold for the exact eigenvalues smoothed by the same Gaussian, and they cover
        the sampling error only. It is the theoretical one, as in ``cdf_band``, so that a single
        probe has a band as well. The effect of the smoothing and the error of too few steps
        are not included.

        Parameters
        ----------
        grid, width, reading
            As for ``density``.
        level : float in (0, 1)
            The level of the interval at each point.

        Returns
        -------
        (low, high), each (m,) float64.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> eigenvalues = np.r_[np.linspace(0.0, 1.0, 499), 4.0]
        >>> density = mf.spectral_density(np.diag(eigenvalues), num_probes=4, seed=0)
        >>> low, high = density.density_band([0.5, 4.0], width=0.01)
        >>> peak = 1 / (0.04 * np.sqrt(2 * np.pi))  # of a mass of 1
        >>> low < [499 / 500, peak / 500], high > [499 / 500, peak / 500]
        (array([ True,  True]), array([ True,  True]))
        """
        points = self.grid(width) if grid is None else np.asarray(grid, dtype=np.float64)
        unit = safe_unit(np.asarray(self.support))
        if unit != 1:  # the band is computed from squares of densities
            same: Distribution = self.times(1 / unit)
            low, high = same.density_band(points / unit, width, level, reading=reading)
            return low / unit, high / unit
        measures, sigma = self.pieces(reading), self._sigma(width)
        return bands.density_band(measures, self._error_model, points, sigma, level)

    def cdf(self, x: Any, *, reading: Reading = "atoms") -> HostArray:
        """The fraction of eigenvalues at or below x, estimated; x scalar or (m,).

        Nodes that exceed x by at most ``node_rounding`` count as at x, because an eigenvalue 2
        may be computed as 2 + 1e-15.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> density.cdf([-1.0, 0.5, 2.0]).round(6)
        array([0.  , 0.25, 1.  ])
        """
        points = np.asarray(x, dtype=np.float64) + self.node_rounding
        return interpretations.cdf(self.pieces(reading), points)

    def cdf_band(self, x: Any, level: float = 0.95) -> tuple[HostArray, HostArray]:
        r"""Bounds (low, high) that contain the distribution function at each x, at ``level``.

        The bounds add two errors: the resolution error, from the Markov-Stieltjes inequalities
        averaged over the probes, and the theoretical sampling error

        .. math:: z \sqrt{\frac{2 \Phi (1 - \Phi)}{(n + 2) \, \mathrm{probes}}},

        so that a single probe has a band as well; see ``matfree.results.bands``. There is no
        resolution error if Lanczos broke down. As in ``cdf``, nodes within their rounding error
        of x count as at x.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag(np.linspace(0.0, 1.0, 2000))
        >>> low, high = mf.spectral_density(A, num_probes=4, seed=0).cdf_band(0.3)
        >>> bool(low <= 0.3 <= high), bool(high - low < 0.1)
        (True, True)
        """
        points = np.asarray(x, dtype=np.float64)
        return bands.cdf_band(self._rules(), self._error_model, points, level)

    def mass_below(self, x: float) -> Estimate:
        """The fraction of eigenvalues below x.

        Its interval covers both the resolution error of the nodes (``bias``) and the sampling
        error of the probes (``stderr``).

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag(np.r_[-np.ones(20), np.ones(60)])
        >>> density = mf.spectral_density(A, num_probes=4, num_steps=5, seed=0)
        >>> density.mass_below(0.0).value
        0.25
        """
        return self._mass(-math.inf, x, "left", f"mass below {x:g}")

    def mass_between(self, low: float, high: float) -> Estimate:
        """The fraction of eigenvalues in [low, high], with an interval as in ``mass_below``."""
        return self._mass(low, high, "right", f"mass in [{low:g}, {high:g}]")

    def count(self, low: float, high: float) -> Estimate:
        """The number of eigenvalues in [low, high]: n times ``mass_between``."""
        method = f"eigenvalues in [{low:g}, {high:g}]"
        return self._mass(low, high, "right", method, total=self._error_model.size)

    def quantile(self, q: float, *, reading: Reading = "atoms") -> float:
        """The smallest point with at least the fraction q of the mass at or below it.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> round(density.quantile(0.2), 6), round(density.quantile(0.5), 6)
        (0.0, 1.0)
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be in [0, 1]: got {q}; pass 0.5 for the median.")
        return interpretations.quantile(self.pieces(reading), q)

    def _mass(
        self, low: float, high: float, side: bands.Side, method: str, total: int = 1
    ) -> Estimate:
        """``total`` times the mass from low (included) to high, with the theoretical interval."""
        if not low <= high:
            raise ValueError(f"low must be at most high: got [{low:g}, {high:g}]; swap them.")
        mass = bands.interval_mass(self._rules(), self._error_model, low, high, side)
        return replace(
            self._mean(total * mass.samples, method),
            stderr=total * mass.stderr,
            bias=total * mass.bias,
            degrees_of_freedom=math.inf,
            limits=(total * mass.limits[0], total * mass.limits[1]),
            mergeable=False,
        )

    def _sigma(self, width: float | None) -> float:
        relative = DEFAULT_WIDTH if width is None else width
        if not relative > 0:
            raise ValueError(f"width must be positive: got {width}; it is relative to the range.")
        low, high = self.support
        # A spectrum of one eigenvalue has the range 0; its magnitude is the only scale then.
        return relative * ((high - low) or max(abs(low), abs(high)) or 1.0)
