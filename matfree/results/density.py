"""A spectral density: quadrature nodes and weights, and everything read off them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from matfree import plotting
from matfree.protocol import HostArray
from matfree.results.bands import Probing, Side, share_between
from matfree.results.distribution import Distribution
from matfree.results.estimate import Estimate
from matfree.results.merging import merged
from matfree.results.record import memory_rows
from matfree.results.tridiagonal import Quadrature
from matfree.results.variance_reduction import reduce_variance


@final
@dataclass(frozen=True, eq=False)
class SpectralDensity(Distribution):
    r"""The eigenvalue distribution of a Hermitian operator, by stochastic quadrature.

    Probe p saw the discrete measure sum_j weights[p][j] delta(x - nodes[p][j]), whose
    mean over probes estimates (1/n) sum_i delta(x - lambda_i). The nodes and weights are
    the truth; densities, distribution functions and traces are computed from them without
    a further product.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.linspace(0.0, 1.0, 500))
    >>> density = mf.spectral_density(A, num_steps=20, num_probes=4, seed=0)
    >>> count = density.count(0.0, 0.5)  # n times the mass there
    >>> round(float(density.mass_between(0.0, 0.5)), 3), round(float(count))
    (0.5, 250)
    >>> round(float(density.moment(2)), 4), round(float(density.trace_function(np.exp)), 4)
    (0.3337, 859.2821)
    >>> later = mf.spectral_density(A, num_steps=20, num_probes=4, first_probe=4, seed=0)
    >>> density.merge(later).num_probes
    8
    >>> ax, below = density.plot(width=0.02), density.plot_cdf(band=True)
    """

    nodes: tuple[HostArray, ...]
    """Per probe: the nodes, (steps,) float64, ascending: Ritz values, fewer where Lanczos
    broke down, which makes the quadrature exact for that probe."""
    weights: tuple[HostArray, ...]
    """Per probe: positive weights of sum 1."""
    size: int
    """n, the number of eigenvalues that the mass 1 stands for."""
    num_steps: int
    """Products asked for with each probe."""
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
    residuals: tuple[HostArray, ...] = ()
    """Per probe: how far from its node each weight's mass may lie: the Ritz residuals, 0
    where Lanczos broke down or the eigenvalue was known; for "kpm" the kernel's reach."""
    method: str = "lanczos"
    """"lanczos" or "kpm"."""
    reorthogonalize: str = "full"
    """"full"; "half" where the basis was kept in 16 bits; "none" where nodes may repeat."""
    known: HostArray = field(default_factory=lambda: np.zeros(0))
    """(k,) eigenvalues that count exactly 1/n in every probe: deflated, or recognised."""
    noise: float = 0.0
    """What two products with one vector differed by, relative to ||A||; 0 if not measured."""
    storage_error: float = 0.0
    """What a basis in 16 bits may have moved nodes by, relative to ||A||; 0 for others."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The choice made within a budget of memory; see :class:`matfree.Estimate`."""

    @property
    def num_probes(self) -> int:
        """Probes averaged over."""
        return len(self.nodes)

    @property
    def noise_floor(self) -> float:
        """eps ||A||, or what the products' noise or the storage adds: below it is no sign."""
        return max(self.epsilon, self.noise, self.storage_error) * max(
            abs(end) for end in self.support
        )

    def mass_below(self, x: float) -> Estimate:
        """The fraction of eigenvalues below x; its interval counts what the nodes cannot
        resolve (``bias``) and what the probes leave to chance (``stderr``).

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
        """The fraction of eigenvalues in [low, high], with an interval like ``mass_below``."""
        return self._mass(low, high, "right", f"mass in [{low:g}, {high:g}]")

    def count(self, low: float, high: float) -> Estimate:
        """The number of eigenvalues in [low, high]: n times ``mass_between``."""
        what = f"eigenvalues in [{low:g}, {high:g}]"
        return self._mass(low, high, "right", what, total=self.size)

    def variance_reduced(self) -> SpectralDensity:
        """The same quadrature with the masses of isolated eigenvalues put in exactly.

        A node to which Lanczos has converged in every probe is an eigenvalue, and its mass
        is its multiplicity / n instead of the weight that each probe happened to see; the
        other weights are scaled to what that leaves. Eigenvalues whose multiplicity the
        weights do not settle stay as they are. For spectra with outliers it removes most
        of the error, at no further product; two eigenvalues closer together than the
        probes can tell count as one. Without reorthogonalisation, and by "kpm", no node is
        known to be an eigenvalue, and nothing changes.

        References
        ----------
        R. Bhattacharjee et al. (2024), arXiv:2410.21690.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.zeros((300, 300)) + np.diag(np.r_[np.linspace(0.0, 1.0, 299), 9.0])
        >>> A[0, -1] = A[-1, 0] = 1.0
        >>> density = mf.spectral_density(A, num_steps=30, num_probes=3, seed=0)
        >>> density.variance_reduced().count(5.0, 10.0).value
        1.0
        """
        rules, known = self._rules(), self.known
        if self.method == "lanczos" and self.reorthogonalize != "none":
            rules, known = reduce_variance(rules, self.size, known, self._rounding)
        nodes, weights = tuple(rule.nodes for rule in rules), tuple(rule.weights for rule in rules)
        return replace(self, nodes=nodes, weights=weights, known=known)

    def moment(self, p: int) -> Estimate:
        """The mean p-th power of the eigenvalues, tr(A^p) / n.

        By Lanczos the quadrature is exact for p up to 2 num_steps - 1, so that only the
        sampling error remains; "kpm" gives the moments of the smoothed measure.
        """
        means = [float(weight @ node**p) for node, weight, _ in self._rules()]
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
        for node, weight, _ in self._rules():
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

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the density and return the Axes; see :func:`matfree.plotting.plot_density`."""
        return plotting.plot_density(self, ax=ax, **options)

    def plot_cdf(self, ax: Any = None, **options: Any) -> Any:
        """Draw the distribution and return the Axes; see :func:`matfree.plotting.plot_cdf`."""
        return plotting.plot_cdf(self, ax=ax, **options)

    def merge(self, *others: SpectralDensity) -> SpectralDensity:
        """One density from runs over different probes of one problem, exactly.

        Raises
        ------
        ValueError
            The runs differ in size, steps, seed or kind of probes, share a probe, or have
            moments so far apart that they cannot be of one operator (see ``Estimate.merge``).
        """
        return merged((self, *others))

    @property
    def _probing(self) -> Probing:
        return Probing(
            size=self.size,
            known=self.known,
            num_probes=self.num_probes,
            kind=self.kind,
            gauss=self.method == "lanczos",
            orthogonal=self.reorthogonalize != "none",
            rounding=self._rounding,
        )

    @property
    def _rounding(self) -> float:
        """What a node is off by, relative to the largest."""
        return max(32 * self.epsilon, self.storage_error)

    def _rules(self) -> list[Quadrature]:
        """The probes' quadratures; files older than the residuals tell of no convergence."""
        residuals = self.residuals or tuple(np.full(len(t), math.inf) for t in self.nodes)
        return list(map(Quadrature, self.nodes, self.weights, residuals))

    def _mass(self, low: float, high: float, side: Side, what: str, total: int = 1) -> Estimate:
        """``total`` times the mass from low (included) to high, with the interval of theory."""
        if not low <= high:
            raise ValueError(f"low must be at most high: got [{low:g}, {high:g}].")
        share = share_between(self._rules(), self._probing, low, high, side)
        return replace(
            self._mean(total * share.samples, what),
            stderr=total * share.stderr,
            bias=total * share.bias,
            degrees_of_freedom=math.inf,
            limits=(0.0, float(total)),
            mergeable=False,
        )

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
        least, most = negative.interval()
        seen = "seen from the inside" if self.method == "lanczos" else "enclosed"
        known = f", {len(self.known)} eigenvalues known" if len(self.known) else ""
        return [
            ("spectrum", f"[{low:.6g}, {high:.6g}] {seen}, n = {self.size}{known}"),
            ("median", f"{self.quantile(0.5):.6g}"),
            ("negative mass", f"{negative.value:.3g}, 95 % interval [{least:.2g}, {most:.2g}]"),
            ("noise floor", f"{self.noise_floor:.2g}"),
            ("cost", f"{self.num_matvecs} products, {self.num_probes} probes"),
            ("steps", f"up to {self.num_steps} each, {self.method}; {self.reason}"),
            *memory_rows(self.memory),
            ("seed", str(self.seed)),
        ]
