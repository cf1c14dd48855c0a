"""Spectral densities, computed from the quadratures of several probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np

from matfree import plotting
from matfree.arguments import spectral_values
from matfree.protocol import HostArray
from matfree.quadratures.bias import QuadratureSettings, density_bias, require_spectrum
from matfree.quadratures.brackets import Spectrum
from matfree.results.bands import variation_error
from matfree.results.distribution import Distribution
from matfree.results.error_model import ErrorModel
from matfree.results.estimate import Estimate
from matfree.results.intervals import is_informative
from matfree.results.merging import (
    by_first_probe,
    joined_ranges,
    require_agreement,
    require_same_setting,
    spread,
)
from matfree.results.reasons import StoppingReason
from matfree.results.record import memory_rows
from matfree.results.tridiagonal import Quadrature
from matfree.results.variance_reduction import reduce_variance

_MUST_AGREE = ("method", "reorthogonalize", "size", "num_steps", "seed", "kind", "epsilon")
"""The settings that runs must have in common in order to be merged."""


@final
@dataclass(frozen=True, eq=False)
class SpectralDensity(Distribution):
    r"""The eigenvalue distribution of a Hermitian operator, by stochastic quadrature.

    Probe p yields nodes :math:`\theta_{pj}` and weights :math:`\tau_{pj}`. The discrete measures
    of the probes are averaged to estimate the spectral measure of the operator:

    .. math:: \frac{1}{\mathrm{probes}} \sum_p \sum_j \tau_{pj} \, \delta(x - \theta_{pj})
        \approx \frac{1}{n} \sum_i \delta(x - \lambda_i).

    Only the nodes and weights are stored. Densities, distribution functions and traces are
    computed from them, without further matvecs.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.linspace(0.0, 1.0, 500))
    >>> density = mf.spectral_density(A, num_steps=20, num_probes=4, seed=0)
    >>> count = density.count(0.0, 0.5)  # n times the mass
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
    """Per probe: the nodes, (steps,) float64, ascending. They are Ritz values, and fewer if
    Lanczos broke down, in which case the quadrature is exact for that probe."""
    weights: tuple[HostArray, ...]
    """Per probe: the weights, positive, with sum 1."""
    size: int
    """n, the number of eigenvalues that have the mass 1 together."""
    num_steps: int
    """The number of matvecs per probe that was asked for."""
    num_matvecs: int
    """The number of matvecs, all included."""
    epsilon: float
    """The machine epsilon of the data type of the vectors."""
    seed: int
    """The seed that repeats this run."""
    kind: str = "rademacher"
    """The distribution of the probes."""
    probe_ranges: tuple[tuple[int, int], ...] = ()
    """The numbers of the probes that were used, as ranges (first, one past the last)."""
    reason: str = field(default=StoppingReason.ALL_PROBES, repr=False)
    """Why the run stopped, in words."""
    residuals: tuple[HostArray, ...] = ()
    """Per probe: how far from its node the mass of each weight may lie. These are the Ritz
    residuals, 0 after breakdown and for known eigenvalues; for "kpm" the width of the kernel."""
    method: str = "lanczos"
    """"lanczos" or "kpm"."""
    reorthogonalize: str = "full"
    """"full"; "half" if the basis was stored in 16 bits; "none" if nodes may be repeated."""
    known: HostArray = field(default_factory=lambda: np.zeros(0))
    """(k,) eigenvalues that have the mass 1/n each in every probe: they were deflated, or their
    multiplicity was determined by ``variance_reduced``."""
    noise: float = 0.0
    """The difference of two matvecs with one vector, relative to ||A||; 0 if not measured."""
    storage_error: float = 0.0
    """A bound on the error of nodes due to a basis in 16 bits, relative to ||A||; else 0."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What was chosen for a given memory budget; see :class:`matfree.Estimate`."""
    recurrences: tuple[HostArray, ...] = field(default=(), repr=False)
    """Per probe the coefficients of the Lanczos recurrence, (2, steps): the diagonal, and the
    off-diagonal with the norm of the last remainder at its end. Empty for "kpm"."""
    units: ClassVar[tuple[str, ...]] = ("nodes", "residuals", "known", "recurrences")

    @property
    def num_probes(self) -> int:
        """The number of probes."""
        return len(self.nodes)

    @property
    def noise_floor(self) -> float:
        """||A|| times the largest of eps, ``noise`` and ``storage_error``: the sign of an
        eigenvalue of smaller magnitude is not determined."""
        return max(self.epsilon, self.noise, self.storage_error) * max(
            abs(end) for end in self.support
        )

    def variance_reduced(self) -> SpectralDensity:
        """The same quadratures with the exact masses of isolated eigenvalues.

        A node to which Lanczos has converged in every probe is an eigenvalue. Its weight, which
        differs from probe to probe, is replaced by its multiplicity / n, and the other weights
        are scaled so that the sum is 1. Eigenvalues whose multiplicity cannot be determined
        from the weights are left unchanged. For spectra with outliers this removes most of the
        sampling error, without further matvecs. Two eigenvalues that are closer together than
        the probes can resolve count as one. Without reorthogonalization, and for "kpm", no node
        is known to be an eigenvalue, and the result is unchanged.

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

        For "lanczos" the quadrature is exact for p up to 2 num_steps - 1, so that only the
        sampling error remains; "kpm" yields the moments of the smoothed measure.
        """
        means = [float(weight @ node**p) for node, weight, _ in self._rules()]
        return self._mean(np.asarray(means), f"moment {p}")

    def trace_function(
        self, f: Callable[[HostArray], HostArray], *, spectrum: Spectrum | None = None
    ) -> Estimate:
        """tr f(A) = sum_i f(lambda_i), with the standard error over the probes.

        ``bias`` bounds the error of the quadratures, as for :func:`matfree.trace_function`, with
        a ConvergenceWarning if it is unknown.

        Parameters
        ----------
        f : function of a float64 array
            It maps an array of Ritz values to an array of the same shape, float64 or complex128.
        spectrum : (float or None, float or None), optional
            Known bounds (a, b) of all eigenvalues, as for :func:`matfree.trace_function`.

        Raises
        ------
        ValueError
            f is not finite at a Ritz value (the logarithm of a negative one, for example), or
            does not return one number per Ritz value; or a Ritz value is outside ``spectrum``.
        """
        sums = [weight @ spectral_values(f, node) for node, weight, _ in self._rules()]
        estimate = self._mean(self.size * np.asarray(sums), "tr f(A) by quadrature")
        if self.method == "lanczos":
            mass, steps = float(self.size - len(self.known)), self.num_steps
            options = QuadratureSettings(steps, self._rounding, require_spectrum(spectrum))
            bias = density_bias(f, self.nodes, self.recurrences, mass, options)
        else:
            bias = self.size * variation_error(self._rules(), self._error_model, f)
        half = estimate.half_width() + bias
        done = is_informative(abs(estimate.value), half, bias, size=self.size)
        return replace(estimate, bias=bias, converged=done)

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the density and return the Axes; see :func:`matfree.plotting.plot_density`."""
        return plotting.plot_density(self, ax=ax, **options)

    def plot_cdf(self, ax: Any = None, **options: Any) -> Any:
        """Draw the distribution and return the Axes; see :func:`matfree.plotting.plot_cdf`."""
        return plotting.plot_cdf(self, ax=ax, **options)

    def merge(self, *others: SpectralDensity) -> SpectralDensity:
        """Merge runs over different probes of one problem into one density, exactly.

        Parameters
        ----------
        *others : SpectralDensity
            Runs with the same settings and seed on the same operator, over other probes
            (``first_probe``).

        Raises
        ------
        ValueError
            The runs differ in size, steps, seed or kind of probes, share a probe, or have
            moments so far apart that they cannot be of one operator (see ``Estimate.merge``).
        """
        runs = (self, *others)
        for name in _MUST_AGREE:
            require_same_setting(name, [getattr(run, name) for run in runs])
        require_same_setting(
            "set of known eigenvalues", [tuple(run.known.tolist()) for run in runs]
        )
        ranges = joined_ranges([run.probe_ranges for run in runs])
        # Densities of different operators are detected by their mean and mean square.
        for power in (1, 2):
            require_agreement([run.moment(power) for run in runs])
        ordered = by_first_probe(runs)
        return replace(
            self,
            nodes=tuple(node for run in ordered for node in run.nodes),
            weights=tuple(weight for run in ordered for weight in run.weights),
            residuals=tuple(residual for run in ordered for residual in run.residuals),
            recurrences=tuple(array for run in ordered for array in run.recurrences),
            noise=max(run.noise for run in runs),
            storage_error=max(run.storage_error for run in runs),
            num_matvecs=sum(run.num_matvecs for run in runs),
            probe_ranges=ranges,
            reason=f"{len(runs)} runs merged",
        )

    @property
    def _error_model(self) -> ErrorModel:
        return ErrorModel(
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
        """The rounding error of a node, relative to the largest."""
        return max(32 * self.epsilon, self.storage_error)

    def _rules(self) -> list[Quadrature]:
        """The quadratures; without residuals, as in older files, no node counts as converged."""
        residuals = self.residuals or tuple(np.full(len(t), math.inf) for t in self.nodes)
        return list(map(Quadrature, self.nodes, self.weights, residuals))

    def _mean(self, samples: HostArray, method: str) -> Estimate:
        count = samples.size
        return Estimate(
            value=samples.mean().item(),
            stderr=spread(samples) / math.sqrt(count),
            method=method,
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
        # Ritz values lie within the range of the spectrum; Chebyshev nodes enclose it.
        relation = "contains" if self.method == "lanczos" else "within"
        known = f", {len(self.known)} eigenvalues known" if len(self.known) else ""
        return [
            ("spectrum", f"{relation} [{low:.6g}, {high:.6g}], n = {self.size}{known}"),
            ("median", f"{self.quantile(0.5):.6g}"),
            ("negative mass", f"{negative.value:.3g}, 95 % interval [{least:.2g}, {most:.2g}]"),
            ("noise floor", f"{self.noise_floor:.2g}"),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_probes} probes"),
            ("method", f"{self.method}, up to {self.num_steps} steps per probe"),
            ("stopped", self.reason),
            *memory_rows(self.memory),
            ("seed", str(self.seed)),
        ]
