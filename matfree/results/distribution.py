"""A distribution on the line by quadratures of several probes, and what is read off it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from matfree.protocol import HostArray
from matfree.results import bands
from matfree.results import interpretations as readings
from matfree.results.interpretations import Pieces, Reading
from matfree.results.record import Record
from matfree.results.tridiagonal import Quadrature

DEFAULT_WIDTH = 0.01
"""Standard deviation of the smoothing Gaussian, relative to the spectrum's range."""


class Distribution(Record, ABC):
    """The mean of discrete measures, one for each probe."""

    @abstractmethod
    def _rules(self) -> list[Quadrature]:
        """The probes' quadratures."""

    @property
    @abstractmethod
    def _probing(self) -> bands.Probing:
        """Who looked at the spectrum."""

    @property
    def support(self) -> tuple[float, float]:
        """The least and the largest node: the spectrum's ends, from the inside for Ritz values."""
        return (
            min(float(rule.nodes[0]) for rule in self._rules()),
            max(float(rule.nodes[-1]) for rule in self._rules()),
        )

    def grid(self, width: float | None = None) -> HostArray:
        """Points that resolve the density smoothed by ``width``: 3 a width, 5 widths out.

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
        """Per probe, the atoms and uniform pieces that a reading makes of the quadrature.

        "atoms" leaves each weight on its node; "spread" lets neighbours that have not
        converged share theirs over the gap between them, which suits a continuous bulk and
        leaves eigenvalues that stand alone where they are.

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
            return tuple(readings.as_atoms(*rule[:2]) for rule in self._rules())
        if reading != "spread":
            raise ValueError(f'reading must be "atoms" or "spread": got {reading!r}.')
        return tuple(readings.spread(*rule) for rule in self._rules())

    def density(
        self, grid: Any = None, width: float | None = None, *, reading: Reading = "atoms"
    ) -> HostArray:
        """The eigenvalue density, smoothed by a Gaussian; it integrates to 1.

        Parameters
        ----------
        grid : (m,) array_like of float64, optional
            Where to evaluate it; ``self.grid(width)`` by default.
        width : float, optional
            Standard deviation of the Gaussian relative to the range of the spectrum
            (to its magnitude where the range is 0); 0.01 by default.
        reading : {"atoms", "spread"}
            See ``pieces``.

        Returns
        -------
        (m,) float64, eigenvalue fraction per unit of the eigenvalue.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> grid = density.grid(width=0.1)
        >>> float(np.trapezoid(density.density(grid, width=0.1), grid).round(6))
        1.0
        """
        points = self.grid(width) if grid is None else np.asarray(grid, dtype=np.float64)
        return readings.smoothed(self.pieces(reading), points, self._sigma(width))

    def density_band(
        self,
        grid: Any = None,
        width: float | None = None,
        level: float = 0.95,
        *,
        reading: Reading = "atoms",
    ) -> tuple[HostArray, HostArray]:
        """Bounds (low, high) that hold the smoothed density at each point, at ``level``.

        Of all eigenvalues smoothed in the same way, so only chance is in it, the theoretical
        one, as in ``cdf_band``: one probe has a band as well. What the smoothing hides, and
        what too few steps leave open, is not.

        Parameters
        ----------
        grid, width, reading
            As for ``density``.
        level : float
            Of the interval at each point.

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
        measures, sigma = self.pieces(reading), self._sigma(width)
        return bands.density_band(measures, self._probing, points, sigma, level)

    def cdf(self, x: Any, *, reading: Reading = "atoms") -> HostArray:
        """The fraction of eigenvalues at or below x, estimated; x scalar or (m,).

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> density.cdf([-1.0, 0.5, 2.0]).round(6)
        array([0.  , 0.25, 1.  ])
        """
        return readings.cdf(self.pieces(reading), np.asarray(x, dtype=np.float64))

    def cdf_band(self, x: Any, level: float = 0.95) -> tuple[HostArray, HostArray]:
        """Bounds (low, high) that hold the distribution function at each x, at ``level``.

        The Markov-Stieltjes bracket of what so many nodes can resolve, averaged over the
        probes, and beyond it the sampling error z sqrt(2 Phi (1 - Phi) / ((n + 2) probes)),
        the theoretical one, so that one probe has a band as well; see
        ``matfree.results.bands``. Where Lanczos ended early there is no bracket.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag(np.linspace(0.0, 1.0, 2000))
        >>> low, high = mf.spectral_density(A, num_probes=4, seed=0).cdf_band(0.3)
        >>> bool(low <= 0.3 <= high), bool(high - low < 0.1)
        (True, True)
        """
        points = np.asarray(x, dtype=np.float64)
        return bands.cdf_band(self._rules(), self._probing, points, level)

    def quantile(self, q: float, *, reading: Reading = "atoms") -> float:
        """The least point with at least the fraction q of the mass at or below it.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> density = mf.spectral_density(np.diag([0.0, 1.0, 1.0, 1.0]), num_steps=3, seed=0)
        >>> round(density.quantile(0.2), 6), round(density.quantile(0.5), 6)
        (0.0, 1.0)
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be in [0, 1]: got {q}; pass 0.5 for the median.")
        return readings.quantile(self.pieces(reading), q)

    def _sigma(self, width: float | None) -> float:
        relative = DEFAULT_WIDTH if width is None else width
        if not relative > 0:
            raise ValueError(f"width must be positive: got {width}; it is relative to the range.")
        low, high = self.support
        return relative * ((high - low) or max(abs(low), abs(high)) or 1.0)
