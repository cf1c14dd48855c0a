r"""How well a quadrature knows a part of the spectrum: what is certain, and what is luck.

**Resolution.** With nodes theta_1 < theta_2 < ... and c_i the sum of the first i weights, the
distribution function Psi of the measure that a probe saw obeys the Markov-Stieltjes
inequalities

    c_{i-1} <= Psi(theta_i -) <= Psi(theta_i) <= c_i,

so between two nodes it is known up to the weights of both. Where there is no mass it is known
better. All measures with these moments, the quadrature's among them, have distribution
functions that differ at x by no more than the Christoffel function

    rho(x) = 1 / sum_{j < m} p_j(x)^2 = 1 / sum_i l_i(x)^2 / tau_i

(p_j the orthonormal polynomials, l_i the Lagrange polynomials of the nodes), which falls
exponentially with m inside a gap of the spectrum, next to an isolated eigenvalue too. The
smaller of the two bounds counts. Where Lanczos ended early the nodes are all there is,
and nothing is left open.

**Sampling.** A random unit vector v sees the fraction p of the eigenvalues with the weight
||P v||^2, P the projector on their eigenvectors, of mean p and variance 2 p (1 - p) / (n + 2)
for a real Gaussian direction, at most 2 p (1 - p) / n for signs (exactly
2 (n p - sum_i P_ii^2) / n^2) and half as much in the complex case. That is the variance of a
proportion from (n + 2) / 2 independent trials a probe.

References
----------
The inequalities: N. I. Akhiezer (1965), The classical moment problem. For Lanczos: T. Chen, T.
Trogdon, S. Ubaru (2021), arXiv:2105.06595. A. Agresti, B. A. Coull (1998),
doi:10.1080/00031305.1998.10480550, for proportions near 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.results.interpretations import Pieces, as_atoms, converged, significant, smoothed
from matfree.results.intervals import require_level, student_quantile
from matfree.results.tridiagonal import Quadrature

Side = Literal["left", "right"]

KERNEL_TAIL = 6e-3
"""The part of a Jackson kernel's mass that lies beyond three of its widths on one side."""

_TINY = np.finfo(float).tiny
_NOTHING = 1e-12  # a share of the mass that rounding leaves where there is none


class Probing(NamedTuple):
    """Who looked at the spectrum, and through what."""

    size: int
    """n."""
    known: HostArray
    """(k,) eigenvalues that the probes need not see: they count exactly."""
    num_probes: int
    kind: str
    gauss: bool
    """Whether the quadratures are Gauss rules; otherwise a kernel has moved the mass."""
    orthogonal: bool
    """Whether the Lanczos vectors were kept so; otherwise nodes repeat, or are about to."""
    rounding: float
    """What numbers are off by, relative to the largest around."""

    @property
    def random_part(self) -> float:
        """The fraction of the eigenvalues that is sampled."""
        return 1 - len(self.known) / self.size

    @property
    def trials(self) -> float:
        """Independent trials that tell as much of a proportion as all probes do."""
        directions = self.size - len(self.known) + (2 if self.kind in ("gaussian", "sphere") else 0)
        return self.num_probes * directions / 2

    def proportion(self, share: Any, num_known: Any, z: float) -> tuple[HostArray, HostArray]:
        """The centre and the standard error of the interval for a share of all eigenvalues.

        A share of nothing, or of everything, has no sampling error: every probe weighs
        none, or all. Otherwise z^2 / 2 trials are added on either side (Agresti and
        Coull), which keeps the interval honest where a probe sees one eigenvalue of many.
        """
        random, exact = self.random_part, np.asarray(num_known) / self.size
        if random <= 0:
            exact = exact + np.zeros(np.shape(share))
            return exact, np.zeros_like(exact)
        part = np.clip((np.asarray(share) - exact) / random, 0.0, 1.0)
        trials = self.trials
        centre = (trials * part + z**2 / 2) / (trials + z**2)
        spread = np.sqrt(centre * (1 - centre) / (trials + z**2))
        certain = (part <= _NOTHING) | (part >= 1 - _NOTHING)
        centre, spread = np.where(certain, np.round(part), centre), np.where(certain, 0.0, spread)
        return exact + random * centre, random * spread


class Share(NamedTuple):
    """A part of the mass: the samples' mean +- (z stderr + bias) holds it."""

    stderr: float
    bias: float
    """What the nodes leave open, and how far the interval's centre lies from the mean."""
    samples: HostArray
    """(probes,)"""


def share_between(
    rules: list[Quadrature], probing: Probing, low: float, high: float, side: Side
) -> Share:
    """The mass from ``low`` (included) to ``high`` (``side="right"``: included).

    Ends that are included lie as far out, and others as far in, as rounding may have moved
    an eigenvalue that sits there: 2 may come out as 2 + 1e-15.
    """
    slack = probing.rounding * max(float(np.abs(nodes).max(initial=0.0)) for nodes, _, _ in rules)
    low, high = low - slack, high - slack if side == "left" else high + slack
    below = np.less if side == "left" else np.less_equal
    inside = [(low <= nodes) & below(nodes, high) for nodes, _, _ in rules]
    samples = np.asarray(
        [rule.weights[mask].sum() for rule, mask in zip(rules, inside, strict=True)]
    )
    least, most = _brackets(rules, np.asarray(high), side, probing)
    least_before, most_before = _brackets(rules, np.asarray(low), "left", probing)
    ends = np.asarray(
        (
            np.mean(np.maximum(least - most_before, 0.0)),
            np.mean(np.minimum(most - least_before, 1.0)),
        )
    )
    num_known = np.sum((low <= probing.known) & below(probing.known, high))
    centres, spreads = probing.proportion(ends, num_known, student_quantile(0.95, math.inf))
    value = float(samples.mean())
    bias = max(value - float(centres[0]), float(centres[1]) - value, 0.0)
    return Share(float(spreads.max()), bias, samples)


def cdf_band(
    rules: list[Quadrature], probing: Probing, points: HostArray, level: float
) -> tuple[HostArray, HostArray]:
    """Bounds that hold the distribution function at each of the points."""
    require_level(level)
    z = student_quantile(level, math.inf)
    num_known = np.searchsorted(probing.known, points, side="right")
    low, high = (np.mean(bound, axis=0) for bound in _brackets(rules, points, "right", probing))
    below, spread_below = probing.proportion(low, num_known, z)
    above, spread_above = probing.proportion(high, num_known, z)
    return np.maximum(below - z * spread_below, 0.0), np.minimum(above + z * spread_above, 1.0)


def density_band(
    measures: Sequence[Pieces], probing: Probing, points: HostArray, sigma: float, level: float
) -> tuple[HostArray, HostArray]:
    """Bounds that hold the density smoothed by sigma at each of the points.

    A probe sees tr K(A) / n, K the Gaussian around the point, with the variance of
    tr K(A)^2 / n = c tr K(A) / n over half as many trials as there are directions. With c as
    measured, |seen - true| <= z sqrt(c true / trials) is solved for the true one (Wilson), so
    that a probe that happens to miss an eigenvalue leaves room for it.
    """
    require_level(level)
    z, size = student_quantile(level, math.inf), probing.size
    known = as_atoms(np.sort(probing.known), np.full(len(probing.known), 1 / size))
    exact, exact_squared = _with_square([known], points, sigma)
    seen, squared = _with_square(measures, points, sigma)
    seen, squared = np.maximum(seen - exact, 0.0), np.maximum(squared - exact_squared, 0.0)
    there = seen > np.maximum(_NOTHING * exact, _TINY)  # more than rounding leaves
    height = np.divide(squared, seen, out=np.zeros_like(seen), where=there)
    room = z**2 * height / max(probing.trials, _TINY) / 2
    reach = np.sqrt(room * (2 * seen + room))
    return exact + seen + room - reach, exact + seen + room + reach


def bracket(
    points: HostArray, rule: Quadrature, side: Side, probing: Probing
) -> tuple[HostArray, HostArray]:
    """Bounds on the mass at or below the points (``side="left"``: below them) of one probe."""
    if not probing.gauss:
        low = _mass(points, rule.nodes + rule.residuals, rule.weights, side)
        high = _mass(points, rule.nodes - rule.residuals, rule.weights, side)
        return np.maximum(low - KERNEL_TAIL, 0.0), np.minimum(high / (1 - KERNEL_TAIL), 1.0)
    nodes, weights, residuals = significant(rule, probing.rounding)
    exact = residuals == 0
    if converged(nodes, residuals).all():  # there is nothing else, up to rounding
        exact = np.ones(len(nodes), dtype=bool)
    atoms = _mass(points, nodes[exact], weights[exact], side)
    loose, weights = nodes[~exact], weights[~exact]
    mass = np.concatenate(([0.0], np.cumsum(weights)))
    j = np.searchsorted(loose, points, side=side)
    slack = christoffel(points, loose, weights) if probing.orthogonal else np.inf
    least = np.maximum(mass[np.maximum(j - 1, 0)], mass[j] - slack)
    most = np.minimum(mass[np.minimum(j + 1, loose.size)], mass[j] + slack)
    everything, nothing = points == np.inf, points == -np.inf
    return (
        atoms + np.where(everything, mass[-1], least),
        atoms + np.where(nothing, 0.0, most),
    )


def christoffel(points: HostArray, nodes: HostArray, weights: HostArray) -> HostArray:
    """rho(x) = 1 / sum_i l_i(x)^2 / tau_i, l_i the Lagrange polynomials of the nodes.

    In logarithms, because the products over the nodes leave the range of numbers.
    """
    if not nodes.size:
        return np.zeros(np.shape(points))
    reach = 10 * (nodes[-1] - nodes[0]) + 1e-3 * np.abs(nodes).max()
    points = np.clip(points, nodes[0] - reach, nodes[-1] + reach)  # it only falls beyond
    apart = np.log(np.maximum(np.abs(nodes[:, None] - nodes), _TINY))
    np.fill_diagonal(apart, 0.0)
    away = np.log(np.maximum(np.abs(points[..., None] - nodes), _TINY))
    lagrange = away.sum(axis=-1, keepdims=True) - away - apart.sum(axis=0)
    return np.asarray(np.exp(-scipy.special.logsumexp(2 * lagrange - np.log(weights), axis=-1)))


def _brackets(
    rules: list[Quadrature], points: HostArray, side: Side, probing: Probing
) -> tuple[HostArray, HostArray]:
    """``bracket`` of every probe, (probes, ...)."""
    bounds = [bracket(points, rule, side, probing) for rule in rules]
    return np.stack([low for low, _ in bounds]), np.stack([high for _, high in bounds])


def _with_square(
    measures: Sequence[Pieces], points: HostArray, sigma: float
) -> tuple[HostArray, HostArray]:
    """The means of the Gaussian around each point and of its square, a narrower Gaussian."""
    narrow = smoothed(measures, points, sigma / math.sqrt(2))
    return smoothed(measures, points, sigma), narrow / (2 * math.sqrt(math.pi) * sigma)


def _mass(points: HostArray, nodes: HostArray, weights: HostArray, side: Side) -> HostArray:
    order = np.argsort(nodes, kind="stable")
    mass = np.concatenate(([0.0], np.cumsum(weights[order])))
    return np.asarray(mass[np.searchsorted(nodes[order], points, side=side)])
