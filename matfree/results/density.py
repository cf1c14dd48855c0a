"""A spectral density: quadrature nodes and weights, and everything read off them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from matfree import plotting
from matfree.results.estimate import Estimate, by_first_probe, joined_ranges, require_same
from matfree.results.record import Record

HostArray = np.ndarray[Any, Any]

DEFAULT_WIDTH = 0.01
"""Standard deviation of the smoothing Gaussian, relative to the spectrum's range."""


@final
@dataclass(frozen=True, eq=False)
class SpectralDensity(Record):
    r"""The eigenvalue distribution of a Hermitian operator, by stochastic Lanczos quadrature.

    Probe p saw the discrete measure sum_j weights[p][j] delta(x - nodes[p][j]), whose
    mean over probes estimates (1/n) sum_i delta(x - lambda_i). The nodes and weights are
    the truth; densities, distribution functions and traces are computed from them without
    a further product.
    """

    nodes: tuple[HostArray, ...]
    """Per probe: the Ritz values, (steps,) float64, ascending; fewer where Lanczos broke
    down, which makes the quadrature exact for that probe."""
    weights: tuple[HostArray, ...]
    """Per probe: positive weights of sum 1."""
    size: int
    """n, the number of eigenvalues that the mass 1 stands for."""
    num_steps: int
    """Lanczos steps asked for."""
    num_matvecs: int
    """Products of the operator with one vector, everything counted."""
    epsilon: float
    """The relative spacing of the vectors' data type."""
    seed: int
    """The seed that repeats this run."""
    kind: str = "rademacher"
    """The distribution of the probes."""
    probe_ranges: tuple[tuple[int, int], ...] = ()
    """Which probes were used, as ranges (first, past the last) of their numbers."""
    reason: str = field(default="all probes done", repr=False)
    """Why it stopped, in words."""

    @property
    def num_probes(self) -> int:
        """Probes averaged over."""
        return len(self.nodes)

    @property
    def support(self) -> tuple[float, float]:
        """The least and the largest Ritz value: the spectrum's ends, from the inside."""
        return min(float(t[0]) for t in self.nodes), max(float(t[-1]) for t in self.nodes)

    @property
    def noise_floor(self) -> float:
        """eps ||A||: an eigenvalue smaller than this has no sign to speak of."""
        return self.epsilon * max(abs(end) for end in self.support)

    def grid(self, width: float | None = None) -> HostArray:
        """Points that resolve the density smoothed by ``width``: 3 a width, 5 widths out."""
        sigma, (low, high) = self._sigma(width), self.support
        count = math.ceil(3 * (high - low) / sigma) + 31
        return np.linspace(low - 5 * sigma, high + 5 * sigma, count)

    def density(self, grid: Any = None, width: float | None = None) -> HostArray:
        """The eigenvalue density, smoothed by a Gaussian; it integrates to 1.

        Parameters
        ----------
        grid : (m,) array_like of float64, optional
            Where to evaluate it; ``self.grid(width)`` by default.
        width : float, optional
            Standard deviation of the Gaussian relative to the range of the spectrum
            (to its magnitude where the range is 0); 0.01 by default.

        Returns
        -------
        (m,) float64, eigenvalue fraction per unit of the eigenvalue.
        """
        sigma = self._sigma(width)
        points = self.grid(width) if grid is None else np.asarray(grid, dtype=np.float64)
        total = np.zeros(points.shape)
        for node, weight in self._atoms():
            total += weight * np.exp(-0.5 * ((points - node) / sigma) ** 2)
        return total / (sigma * math.sqrt(2 * math.pi) * self.num_probes)

    def cdf(self, x: Any) -> HostArray:
        """The fraction of eigenvalues at or below x, estimated; x scalar or (m,)."""
        points = np.asarray(x, dtype=np.float64)
        return np.asarray(np.mean([_mass_up_to(points, *pair) for pair in self._pairs()], axis=0))

    def mass_below(self, x: float) -> Estimate:
        """The fraction of eigenvalues below x, with the probes' error bar.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag(np.r_[-np.ones(20), np.ones(60)])
        >>> density = mf.spectral_density(A, num_probes=4, num_steps=5, seed=0)
        >>> density.mass_below(0.0).value
        0.25
        """
        below = [float(weight[node < x].sum()) for node, weight in self._pairs()]
        return self._mean(np.asarray(below), f"mass below {x:g}")

    def quantile(self, q: float) -> float:
        """The least Ritz value with at least the fraction q of the mass at or below it."""
        if not 0 <= q <= 1:
            raise ValueError(f"q must be in [0, 1]: got {q}; pass 0.5 for the median.")
        nodes, weights = np.concatenate(self.nodes), np.concatenate(self.weights)
        order = np.argsort(nodes)
        mass = np.cumsum(weights[order]) / self.num_probes
        first = min(int(np.searchsorted(mass, q - 1e-12)), mass.size - 1)
        return float(nodes[order][first])

    def moment(self, p: int) -> Estimate:
        """The mean p-th power of the eigenvalues, tr(A^p) / n; exact quadrature for
        p up to 2 num_steps - 1, so that only the sampling error remains."""
        means = [float(weight @ node**p) for node, weight in self._pairs()]
        return self._mean(np.asarray(means), f"moment {p}")

    def trace_function(self, f: Callable[[HostArray], HostArray]) -> Estimate:
        """tr f(A) = sum_i f(lambda_i), with the probes' error bar.

        Parameters
        ----------
        f : function of a float64 array, applied to the Ritz values elementwise.

        Raises
        ------
        ValueError
            f is not finite on a Ritz value (the logarithm of a negative one, say).
        """
        sums = []
        for node, weight in self._pairs():
            with np.errstate(all="ignore"):
                values = np.asarray(f(node), dtype=np.float64)
            if not np.all(np.isfinite(values)):
                bad = float(node[~np.isfinite(values)][0])
                raise ValueError(
                    f"f is not finite at the Ritz value {bad:.6g} (least: {self.support[0]:.6g}); "
                    "shift the operator, or choose an f that is defined on its spectrum."
                )
            sums.append(float(weight @ values))
        return self._mean(self.size * np.asarray(sums), "tr f(A) by quadrature")

    def plot(self, ax: Any = None, *, width: float | None = None) -> Any:
        """Draw the density on matplotlib Axes and return them; see ``matfree.plotting``."""
        return plotting.plot_density(self, ax=ax, width=width)

    def merge(self, *others: SpectralDensity) -> SpectralDensity:
        """One density from runs over different probes of one problem, exactly.

        Raises
        ------
        ValueError
            The runs differ in size, steps, seed or kind of probes, or share a probe.
        """
        runs = (self, *others)
        for name in ("size", "num_steps", "seed", "kind", "epsilon"):
            require_same(name, [getattr(run, name) for run in runs])
        ordered = by_first_probe(runs)
        return replace(
            self,
            nodes=tuple(node for run in ordered for node in run.nodes),
            weights=tuple(weight for run in ordered for weight in run.weights),
            num_matvecs=sum(run.num_matvecs for run in runs),
            probe_ranges=joined_ranges([run.probe_ranges for run in runs]),
            reason=f"{len(runs)} runs merged",
        )

    def _pairs(self) -> list[tuple[HostArray, HostArray]]:
        return list(zip(self.nodes, self.weights, strict=True))

    def _atoms(self) -> list[tuple[float, float]]:
        return list(zip(np.concatenate(self.nodes), np.concatenate(self.weights), strict=True))

    def _sigma(self, width: float | None) -> float:
        relative = DEFAULT_WIDTH if width is None else width
        if not relative > 0:
            raise ValueError(f"width must be positive: got {width}; it is relative to the range.")
        low, high = self.support
        return relative * ((high - low) or max(abs(low), abs(high)) or 1.0)

    def _mean(self, samples: HostArray, what: str) -> Estimate:
        count = samples.size
        spread = float(samples.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return Estimate(
            value=float(samples.mean()),
            stderr=spread,
            method=what,
            num_probes=count,
            num_matvecs=self.num_matvecs,
            degrees_of_freedom=count - 1,
            converged=True,
            reason=self.reason,
            seed=self.seed,
            kind=self.kind,
            size=self.size,
            mergeable=True,
            samples=samples,
            probe_ranges=self.probe_ranges,
        )

    def _rows(self) -> list[tuple[str, str]]:
        low, high = self.support
        negative = self.mass_below(-self.noise_floor)
        return [
            ("spectrum", f"[{low:.6g}, {high:.6g}] seen from the inside, n = {self.size}"),
            ("median", f"{self.quantile(0.5):.6g}"),
            ("negative mass", f"{negative.value:.3g} +- {negative.half_width():.2g}"),
            ("noise floor", f"{self.noise_floor:.2g}"),
            ("cost", f"{self.num_matvecs} products, {self.num_probes} probes"),
            ("steps", f"up to {self.num_steps} each; {self.reason}"),
            ("seed", str(self.seed)),
        ]


def _mass_up_to(points: HostArray, nodes: HostArray, weights: HostArray) -> HostArray:
    total = np.concatenate(([0.0], np.cumsum(weights)))
    return total[np.searchsorted(nodes, points, side="right")]
